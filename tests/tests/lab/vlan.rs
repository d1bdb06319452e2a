//! A NIC that is a VLAN of another one. Before Linux 6.2 a packet of a VLAN keeps its tag after it was decapsulated,
//! and seems to have one more (`vlan_present` of `struct __sk_buff`).

use std::net::IpAddr;

use anyhow::{Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    netlink::VethEnd,
    plan::{Family, Plan},
    pod::Pod,
    proxy::{self, Backend, ExternalTrafficPolicy, Service, Settings},
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};

const NODE: &str = "master";
const TRUNK: &str = "trunk";
const NIC: &str = "trunk.5";
const NETWORK: &str = "default/of-a-vlan";
const PORT: u16 = 9090;
const NODE_PORT: u16 = 30090;

/// Returns the VLAN's subnets, without the last part of an address.
const fn subnet(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.72.0.",
        Family::V6 => "fd00:72::",
    }
}

const fn cluster(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.90:80",
        Family::V6 => "[fd00:10:96::90]:80",
    }
}

const fn length(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// Returns the manifests of its network and pools.
fn manifests() -> String {
    let mut yaml = "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: of-a-vlan, namespace: default}
spec:
  cniType: ipvlan
  ipvlan: {master: [trunk.5], mode: l3}
"
    .to_owned();
    for family in Family::BOTH {
        let (subnet, length) = (subnet(family), length(family));
        yaml += &format!(
            "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: of-a-vlan-{}}}
spec:
  default: true
  subnet: \"{subnet}0/{length}\"
  ips: [\"{subnet}40-{subnet}44\"]
  gateway: \"{subnet}1\"
  multusName: [{NETWORK}]
",
            family.to_string().to_lowercase()
        )
        .replace("::0/", "::/");
    }
    yaml
}

/// Connects the router by a wire that carries only the VLAN, since the VPC does not know VLANs and drops unknown
/// frames. The router's neighbour entries are permanent.
fn make(lab: &Lab) -> Result<()> {
    let (router, node) = (&lab.vpc.router, lab.vpc.node(NODE));
    let mac = [0x02, 0, 0, 0, 0x72, 0];
    let end = |netns, name, last| VethEnd {
        netns,
        name,
        mac: [&mac[..5], &[last]].concat().try_into().unwrap_or(mac),
    };
    let ends = [end(router, "p-trunk", 1), end(node, TRUNK, 2)];
    router
        .netlink()?
        .add_veth(&ends[0], &ends[1], lab.vpc.plan.mtu)?;
    for (end, name, last) in [(&ends[0], "vlan5", "1"), (&ends[1], NIC, "10")] {
        let add = format!("link add link {} name {name} type vlan id 5", end.name);
        ip(end.netns, &add.split(' ').collect::<Vec<_>>())?;
        let netlink = end.netns.netlink()?;
        netlink.set_up(end.name)?;
        netlink.set_up(name)?;
        for family in Family::BOTH {
            let address = format!("{}{last}/{}", subnet(family), length(family));
            netlink.add_address(name, address.parse()?)?;
        }
    }
    let netlink = router.netlink()?;
    for family in Family::BOTH {
        let all = (40..45).map(|last| format!("{}{last}", subnet(family)).parse());
        let all = all.collect::<Result<Vec<IpAddr>, _>>()?;
        netlink.add_neighbours("vlan5", all, ends[1].mac)?;
    }
    Ok(())
}

#[test]
fn pods_of_a_vlan_reach_far_backends_of_services_and_are_reached_by_its_node_port() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    make(&lab)?;
    lab.start_agents_with(&manifests())?;
    let pod = Pod::create(&lab.agent(NODE).plugin(), NODE, NIC, NETWORK, "p")?;
    let (far, node) = (lab.vpc.node("worker1").clone(), lab.vpc.node(NODE).clone());
    let _servers = [
        Server::on_any(&far, PORT)?,
        Server::on_any(&pod.netns, PORT)?,
    ];
    let mut services = Vec::new();
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let service = |name: &str, address, node: &str| Service {
                name: format!("{name}-{protocol}-{family}"),
                protocol,
                cluster: cluster(family).parse().expect("an address"),
                node_port: None,
                masquerade: false,
                policy: ExternalTrafficPolicy::Local,
                backends: vec![Backend {
                    address,
                    node: node.into(),
                }],
            };
            let far = (lab.vpc.nic("worker1", "ens5").primary(family), PORT).into();
            services.push(service("far", far, "worker1"));
            let near = service("near", pod.socket(family, PORT), NODE);
            services.push(Service {
                cluster: (cluster(family).replace("90", "91")).parse()?,
                node_port: Some(NODE_PORT),
                ..near
            });
        }
    }
    proxy::install(&node, NODE, &Settings::default(), &services)?;
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let own = pod.address(family);
            let answer = Client::new(&pod.netns, protocol).ask(cluster(family).parse()?)?;
            ensure!(
                answer.seen_as.ip() == own,
                "{protocol} {family}: the backend saw {}",
                answer.seen_as
            );
            let by: IpAddr = format!("{}10", subnet(family)).parse()?;
            Client::new(&far, protocol).ask((by, NODE_PORT).into())?;
        }
    }
    pod.delete()
}
