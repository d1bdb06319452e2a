//! Addresses that the node translates and that no setting names: load balancers', externalIPs, a firewall's DNAT.
//! Pods send requests to them by their NIC. The host translates in OUTPUT, and must translate the answer of a backend
//! on another node back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::two_ways::talk::{echoed, pattern};
use ebbtide_vpc::{
    iptables,
    lab::Lab,
    plan::{Family, Plan},
    pod::Pod,
    traffic::{Client, Protocol, Server, socket},
};

/// The port of the backends.
const BACKEND: u16 = 8080;
/// The port of the Services.
const SERVICE: u16 = 80;

/// Returns a load balancer's address, one for each backend.
fn balancer(family: Family, backend: u8) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, backend).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xba1, 0, 0, 0, 0, backend.into()).into(),
    };
    SocketAddr::new(address, SERVICE)
}

struct Stage {
    // Before the lab, so that they are dropped first.
    asking: Pod,
    backends: Vec<Pod>,
    lab: Lab,
}

impl Stage {
    /// Creates a client pod, and backends beside it, on its node's other NIC, and on another node.
    fn build() -> Result<Self> {
        let lab = Lab::start(Plan::default())?;
        let asking = lab.pod("master", "ens5", "asking")?;
        let backends = [("master", "ens6"), ("worker1", "ens5"), ("worker1", "ens6")];
        let backends = backends
            .iter()
            .zip(["b1", "b2", "b3"])
            .map(|((node, nic), name)| lab.pod(node, nic, name))
            .collect::<Result<Vec<_>>>()?;
        let stage = Self {
            asking,
            backends,
            lab,
        };
        for family in Family::BOTH {
            let rules = stage.each(family).flat_map(|(service, backend)| {
                ["PREROUTING", "OUTPUT"].into_iter().flat_map(move |chain| {
                    Protocol::BOTH.map(|protocol| {
                        let (to, port) = (service.ip(), service.port());
                        format!(
                            "-I {chain} -d {to} -p {protocol} --dport {port} -j DNAT --to-destination {backend}\n"
                        )
                    })
                })
            });
            let script = format!("*nat\n{}COMMIT\n", rules.collect::<String>());
            iptables::restore(stage.lab.vpc.node("master"), family, &script)?;
        }
        Ok(stage)
    }

    /// Returns the requested addresses, each with the backend that must answer.
    fn each(&self, family: Family) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        let backends = self.backends.iter().zip(1..);
        backends.map(move |(pod, number)| {
            let backend = SocketAddr::new(pod.address(family), BACKEND);
            (balancer(family, number), backend)
        })
    }

    fn ask(&self, protocol: Protocol, from: SocketAddr, server: SocketAddr) -> Result<()> {
        let client = Client::new(&self.asking.netns, protocol).from(from);
        let mut connection = client.connect(server)?;
        for _ in 0..3 {
            let answer = connection.ask()?;
            ensure!(
                answer.seen_as.ip() == from.ip(),
                "seen as {}",
                answer.seen_as
            );
        }
        connection.abort()
    }

    fn delete(self) -> Result<()> {
        self.lab.vpc.assert_no_violations()?;
        self.asking.delete()?;
        self.backends.into_iter().try_for_each(Pod::delete)
    }
}

#[test]
fn a_pod_reaches_every_backend_of_an_address_that_only_its_node_translates() -> Result<()> {
    let stage = Stage::build()?;
    let servers = stage
        .backends
        .iter()
        .map(|pod| Server::on_any(&pod.netns, BACKEND));
    let _servers = servers.collect::<Result<Vec<_>>>()?;
    let mut port = 40_000;
    for family in Family::BOTH {
        for (service, backend) in stage.each(family) {
            for protocol in Protocol::BOTH {
                port += 1;
                let from = SocketAddr::new(stage.asking.address(family), port);
                // The second time directly, and from the same port: the node gives one of the two another port.
                for server in [service, backend, service, backend] {
                    stage.ask(protocol, from, server).with_context(|| {
                        format!("{protocol} from {from} to {server} ({backend})")
                    })?;
                }
            }
        }
    }
    stage.delete()
}

#[test]
fn what_is_longer_than_the_mtu_reaches_them_too() -> Result<()> {
    let stage = Stage::build()?;
    let long = pattern(20_000);
    for family in Family::BOTH {
        for ((service, backend), pod) in stage.each(family).zip(&stage.backends) {
            let any = SocketAddr::new(family.any(), BACKEND);
            let server: UdpSocket = socket(&pod.netns, Protocol::Udp, any)?.into();
            let from = SocketAddr::new(stage.asking.address(family), 0);
            let client: UdpSocket = socket(&stage.asking.netns, Protocol::Udp, from)?.into();
            client.connect(service)?;
            for _ in 0..3 {
                client.send(&long)?;
                echoed(&server, &client, &long)
                    .with_context(|| format!("{service} ({backend})"))?;
            }
        }
    }
    stage.delete()
}
