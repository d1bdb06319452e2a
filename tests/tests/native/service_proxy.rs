//! The stand-in for kube-proxy does what kube-proxy does, in each of its modes.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what cannot go on fails here"
)]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ebbtide_vpc::{
    edge::Listener,
    nft,
    path::Exchange,
    patience::PATIENCE,
    plan::{Family, Plan},
    proxy::{self, Backend, ExternalTrafficPolicy, Mode, NodePorts, Service, Settings, Style},
    tap::{Direction, Place, Taps},
    traffic::{Client, Protocol, Server},
    vpc::Vpc,
};

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
/// The time limit for what must not arrive.
const SHORT: Duration = Duration::from_millis(300);

/// Defines each test once for each mode.
macro_rules! in_each_mode {
    ($($proof:ident),+ $(,)?) => {
        mod by_iptables {
            $(#[test]
            fn $proof() {
                super::$proof(super::Mode::Iptables);
            })+
        }

        mod by_nft {
            $(#[test]
            fn $proof() {
                super::each_style(super::$proof);
            })+
        }
    };
}

in_each_mode!(
    cluster_ip_masquerades_what_comes_from_outside_the_cluster_cidr,
    node_ports_are_served_at_the_addresses_that_are_set_alone,
    policy_cluster_reaches_another_node_masqueraded,
    policy_local_keeps_the_client_address,
    policy_local_refuses_a_node_without_endpoint,
);

fn each_style(proof: fn(Mode)) {
    let vpc = vpc();
    if nft::is_here(vpc.node("master")) {
        for style in Style::ALL {
            proof(Mode::Nftables(style));
        }
    }
}

fn by(mode: Mode) -> Settings {
    Settings {
        mode,
        ..Settings::default()
    }
}

fn vpc() -> Vpc {
    Vpc::build(Plan::default()).unwrap()
}

fn primary(vpc: &Vpc, node: &str, nic: &str, family: Family) -> IpAddr {
    vpc.nic(node, nic).primary(family)
}

/// Starts what a test of a Service needs besides the VPC: servers on both nodes in place of pods.
fn service(
    vpc: &Vpc,
    family: Family,
    protocol: Protocol,
    policy: ExternalTrafficPolicy,
    on: &str,
) -> Service {
    Service {
        name: format!("{protocol}-{family}"),
        protocol,
        cluster: match family {
            Family::V4 => "10.96.0.10:80",
            Family::V6 => "[fd00:10:96::10]:80",
        }
        .parse()
        .unwrap(),
        node_port: Some(NODE_PORT),
        policy,
        masquerade: true,
        backends: vec![Backend {
            address: SocketAddr::new(primary(vpc, on, "ens5", family), PORT),
            node: on.into(),
        }],
    }
}

fn services(vpc: &Vpc, policy: ExternalTrafficPolicy, on: &str) -> Vec<Service> {
    Family::BOTH
        .into_iter()
        .flat_map(|family| Protocol::BOTH.map(|protocol| (family, protocol)))
        .map(|(family, protocol)| service(vpc, family, protocol, policy, on))
        .collect()
}

fn policy_local_keeps_the_client_address(mode: Mode) {
    let vpc = vpc();
    let taps = Taps::on_all_wires(&vpc).unwrap();
    let master = vpc.node("master");
    let _servers = Server::on_any(master, PORT).unwrap();
    let services = services(&vpc, ExternalTrafficPolicy::Local, "master");
    proxy::install(master, "master", &by(mode), &services).unwrap();
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            let node = primary(&vpc, "master", "ens5", family);
            let listener = Listener {
                protocol,
                port: 80,
                target: SocketAddr::new(node, NODE_PORT),
            };
            vpc.edge.listen(&[listener]).unwrap();
            let mark = taps.mark().unwrap();
            let answer = Client::new(&vpc.world, protocol)
                .from_ip(Plan::client(family))
                .ask(listener.address())
                .unwrap();
            assert_eq!(answer.seen_as, answer.local);

            let seen = taps.since(mark).unwrap();
            let reply = seen
                .iter()
                .find(|packet| packet.source_port == NODE_PORT)
                .unwrap();
            assert_eq!(reply.source, node);
            assert_eq!(reply.direction, Direction::Out);
            assert_eq!(reply.destination, Plan::client(family));
            assert_eq!(
                reply.place,
                Place::Wire {
                    node: "master".into(),
                    nic: "ens5".into()
                }
            );
        }
    }
    vpc.assert_no_violations().unwrap();
}

fn policy_local_refuses_a_node_without_endpoint(mode: Mode) {
    let vpc = vpc();
    let _servers = Server::on_any(vpc.node("worker1"), PORT).unwrap();
    let services = services(&vpc, ExternalTrafficPolicy::Local, "worker1");
    proxy::install(vpc.node("master"), "master", &by(mode), &services).unwrap();
    let server = SocketAddr::new(primary(&vpc, "master", "ens5", Family::V6), NODE_PORT);
    Client::new(&vpc.world, Protocol::Tcp)
        .from_ip(Plan::client(Family::V6))
        .timeout(SHORT)
        .ask(server)
        .unwrap_err();
}

fn policy_cluster_reaches_another_node_masqueraded(mode: Mode) {
    let vpc = vpc();
    let taps = Taps::on_all_wires(&vpc).unwrap();
    let _servers = Server::on_any(vpc.node("worker1"), PORT).unwrap();
    let services = services(&vpc, ExternalTrafficPolicy::Cluster, "worker1");
    proxy::install(vpc.node("master"), "master", &by(mode), &services).unwrap();
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            let node = primary(&vpc, "master", "ens5", family);
            let listener = Listener {
                protocol,
                port: 80,
                target: SocketAddr::new(node, NODE_PORT),
            };
            vpc.edge.listen(&[listener]).unwrap();
            let mark = taps.mark().unwrap();
            let answer = Client::new(&vpc.world, protocol)
                .from_ip(Plan::client(family))
                .ask(listener.address())
                .unwrap();
            assert_eq!(answer.seen_as.ip(), node);
            let exchange = Exchange::of(&taps.since(mark).unwrap(), &[NODE_PORT, PORT]);
            assert_eq!(
                exchange.to_string(),
                "vpc → master/ens5 → vpc → worker1/ens5"
            );
        }
    }
    vpc.assert_no_violations().unwrap();
}

fn cluster_ip_masquerades_what_comes_from_outside_the_cluster_cidr(mode: Mode) {
    let vpc = vpc();
    let settings = Settings {
        cluster_cidr: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        ..by(mode)
    };
    let master = vpc.node("master");
    let _servers = Server::on_any(vpc.node("worker1"), PORT).unwrap();
    let services = services(&vpc, ExternalTrafficPolicy::Cluster, "worker1");
    proxy::install(master, "master", &settings, &services).unwrap();
    for service in &services {
        let answer = Client::new(master, service.protocol)
            .ask(service.cluster)
            .unwrap();
        let family = Family::of(service.cluster.ip());
        assert_eq!(answer.seen_as.ip(), primary(&vpc, "master", "ens5", family));
    }
    vpc.assert_no_violations().unwrap();
}

fn node_ports_are_served_at_the_addresses_that_are_set_alone(mode: Mode) {
    for (nic, is_served) in [("ens5", true), ("ens6", false)] {
        let vpc = vpc();
        let _servers = Server::on_any(vpc.node("worker1"), PORT).unwrap();
        let services = services(&vpc, ExternalTrafficPolicy::Cluster, "worker1");
        let addresses = Family::BOTH.map(|family| primary(&vpc, "master", nic, family));
        let settings = Settings {
            node_ports: NodePorts::At(addresses.into()),
            ..by(mode)
        };
        proxy::install(vpc.node("master"), "master", &settings, &services).unwrap();
        for service in &services {
            let family = Family::of(service.cluster.ip());
            let listener = Listener {
                protocol: service.protocol,
                port: 80,
                target: SocketAddr::new(primary(&vpc, "master", "ens5", family), NODE_PORT),
            };
            vpc.edge.listen(&[listener]).unwrap();
            let answer = Client::new(&vpc.world, service.protocol)
                .timeout(if is_served { PATIENCE } else { SHORT })
                .ask(listener.address());
            assert_eq!(
                answer.is_ok(),
                is_served,
                "{service:?} at {nic}: {answer:?}"
            );
        }
    }
}
