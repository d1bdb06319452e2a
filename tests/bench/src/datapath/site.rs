//! A client, a node and a pod with one way of marking. Sites differ in the marking only.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use ebbtide_kernel::{
    netlink::{
        Batch,
        direct::Direct,
        model::{Action, Filter, MAIN_TABLE, NamespacePlan, Route, Rule, Selector},
        netns::Netns as Namespace,
    },
    podnet::PodNet,
};
use ebbtide_layout::DEFAULT_MARK;
use ebbtide_types::Family;
use ebbtide_vpc::{
    iptables, nic_programs,
    proxy::{self, Backend, ExternalTrafficPolicy, Service},
    traffic::Protocol,
};

use super::load::Way;
use crate::{
    contender::Pod,
    floor::Floor,
    testbed::{CLIENT, NODE, NODE_PORT_CLIENT, Slave, Testbed},
};

/// What makes a reply leave by the veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marking {
    /// Nothing: everything uses the NIC. The bound for direct traffic.
    Direct,
    /// Nothing: everything uses the veth. The bound for traffic by the veth.
    Symmetric,
    /// CONNMARK by iptables-legacy.
    Legacy,
    /// CONNMARK by iptables-nft.
    Nft,
    /// A rule for marked replies, as pods beside other plugins' interfaces have it, without programs: what it costs unmarked
    /// packets.
    Rule,
    /// The rule, and for each of Ebbtide's programs one that does nothing: what the kernel needs to call them.
    Empty,
    /// Ebbtide's programs in the pod.
    Pod,
    /// Ebbtide's programs in the pod and on the host.
    Whole,
    /// As `Whole`, with `exemptFromMasquerade`: what the pod sends by its interface takes the host-stack bypass.
    Exempt,
}

impl Marking {
    /// All markings.
    pub const ALL: [Self; 9] = [
        Self::Direct,
        Self::Symmetric,
        Self::Legacy,
        Self::Nft,
        Self::Rule,
        Self::Empty,
        Self::Pod,
        Self::Whole,
        Self::Exempt,
    ];

    /// Returns its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "unmarked, by the NIC",
            Self::Symmetric => "unmarked, by the veth",
            Self::Legacy => "iptables-legacy CONNMARK",
            Self::Nft => "iptables-nft CONNMARK",
            Self::Rule => "a rule for marked replies alone",
            Self::Empty => "the rule, and programs that do nothing",
            Self::Pod => "ebbtide, in the pod alone",
            Self::Whole => "ebbtide",
            Self::Exempt => "ebbtide, exempt",
        }
    }

    /// Whether replies to requests by the veth leave by the veth.
    #[must_use]
    pub fn serves_node_port(self) -> bool {
        !matches!(self, Self::Direct | Self::Rule | Self::Empty)
    }

    /// Whether replies to requests by the NIC leave by the NIC.
    #[must_use]
    pub fn serves_direct(self) -> bool {
        self != Self::Symmetric
    }

    /// Replaces the marking in Ebbtide's plan by this one.
    fn instead(self, net: &mut PodNet) {
        match self {
            Self::Whole => {}
            Self::Exempt => net.host_bypass = true,
            Self::Pod => net.in_host.filters.clear(),
            Self::Direct
            | Self::Symmetric
            | Self::Legacy
            | Self::Nft
            | Self::Rule
            | Self::Empty => {
                net.in_host.filters.clear();
                self.without_programs(&mut net.in_pod);
            }
        }
    }

    fn without_programs(self, plan: &mut NamespacePlan) {
        plan.filters.clear();
        plan.sysctls
            .retain(|setting| !setting.path.contains("fwmark"));
        let by_veth = default_by_veth(plan);
        match self {
            Self::Legacy | Self::Nft => {
                let any = u32::MAX;
                plan.rules
                    .push(reply_rule(Selector::Mark { mark: 1, mask: any }));
                plan.routes.extend(by_veth);
            }
            Self::Rule | Self::Empty => {
                let (mark, mask) = (DEFAULT_MARK, DEFAULT_MARK);
                plan.rules
                    .push(reply_rule(Selector::LocalMark { mark, mask }));
                plan.routes.extend(by_veth);
            }
            Self::Symmetric => {
                // It replaces the pod's default route.
                let everything = Family::V4.everything();
                plan.routes.retain(|route| route.destination != everything);
                plan.routes.extend(by_veth.map(|route| Route {
                    table: MAIN_TABLE,
                    ..route
                }));
            }
            _ => {}
        }
    }
}

/// The table for marked replies.
const REPLIES: u32 = 7700;

fn reply_rule(selector: Selector) -> Rule {
    Rule {
        family: Family::V4,
        priority: 1000,
        selector,
        action: Action::Table(REPLIES),
    }
}

/// Returns a default route by the veth in the table for marked replies, with the next hop of the pod's routes to the node.
fn default_by_veth(plan: &NamespacePlan) -> Option<Route> {
    let mut routes = plan.routes.iter();
    let to_node = routes.find(|route| route.link == VETH && route.via.is_some())?;
    Some(Route {
        destination: Family::V4.everything(),
        table: REPLIES,
        ..to_node.clone()
    })
}

/// The rules that Spiderpool's coordinator plugin installs in a pod.
const CONNMARK: &str = "\
*mangle
-A PREROUTING -i veth0 -m conntrack --ctstate NEW -j MARK --set-xmark 0x1
-A PREROUTING -m mark --mark 0x1 -j CONNMARK --save-mark
-A OUTPUT -j CONNMARK --restore-mark
COMMIT
";

/// The pod's end of its pair.
const VETH: &str = "veth0";

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;

/// A client, a node and a pod.
#[derive(Debug)]
pub struct Site {
    /// The marking.
    pub marking: Marking,
    testbed: Testbed,
    pod: Pod,
    address: IpAddr,
    _programs: Floor,
    _nothing: Option<OwnedFd>,
}

impl Site {
    /// Builds a site, with kube-proxy's rules for so many `services`.
    ///
    /// # Errors
    /// If a step fails; the error names it. The kernel may lack what a marking needs.
    pub fn build(marking: Marking, slave: Slave, services: usize) -> Result<Self> {
        let testbed = Testbed::build()?;
        let maker = Floor::new(&testbed.node, slave)?;
        maker.prepare(matches!(marking, Marking::Whole | Marking::Exempt))?;
        let pod = Pod::new()?;
        let mut net = maker.plan(&pod)?;
        let filters = net.in_pod.filters.clone();
        marking.instead(&mut net);
        maker.apply(&net)?;
        let nothing = match marking {
            Marking::Empty => Some(do_nothing(&filters, &net.netns)?),
            _ => None,
        };
        let address = *net.ips().first().context("the plan has no address")?;
        match marking {
            Marking::Legacy => {
                iptables::restore_with("iptables-legacy-restore", &pod.netns, CONNMARK)?;
            }
            Marking::Nft => iptables::restore_with("iptables-nft-restore", &pod.netns, CONNMARK)?,
            _ => {}
        }
        testbed.node.sysctls(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        pod.netns.sysctls(&[("net/ipv4/conf/all/rp_filter", "0")])?;
        iptables::restore(
            &testbed.node,
            ebbtide_vpc::family::Family::V4,
            &dnat(address),
        )?;
        if services > 0 {
            let services: Vec<Service> = (0..services).map(service).collect::<Result<_>>()?;
            proxy::install(
                &testbed.node,
                "node",
                &proxy::Settings::default(),
                &services,
            )?;
        }
        // A VPC knows where a pod is, and an ipvlan child in l3 mode answers no ARP requests.
        let mac = match slave {
            Slave::Ipvlan => testbed.node.netlink()?.mac(crate::testbed::NIC)?,
            Slave::Macvlan => pod.netns.netlink()?.mac("eth0")?,
        };
        let wire = testbed.wire.netlink()?;
        wire.add_neighbours("wire", [address], mac)?;
        Ok(Self {
            marking,
            testbed,
            pod,
            address,
            _programs: maker,
            _nothing: nothing,
        })
    }

    /// Returns the path from the client to the pod's own address, by the NIC.
    ///
    /// # Errors
    /// If an address of this file cannot be parsed.
    pub fn direct(&self) -> Result<Way> {
        self.way(CLIENT, (self.address, PORT).into())
    }

    /// Returns the path from the client to a NodePort, which the node's Service proxy forwards to the pod by the veth.
    ///
    /// # Errors
    /// If an address of this file cannot be parsed.
    pub fn node_port(&self) -> Result<Way> {
        let node: IpAddr = NODE.parse()?;
        self.way(NODE_PORT_CLIENT, (node, NODE_PORT).into())
    }

    fn way(&self, client: &str, to: std::net::SocketAddr) -> Result<Way> {
        Ok(Way {
            client: self.testbed.wire.clone(),
            from: client.parse()?,
            server: self.pod.netns.clone(),
            listen: (self.address, PORT).into(),
            to,
        })
    }
}

/// Attaches a program that does nothing in the place of these filters.
fn do_nothing(filters: &[Filter], netns: &Path) -> Result<OwnedFd> {
    let program = nic_programs::accept().context("loading a program that does nothing")?;
    Namespace::open(netns)?.run(|| {
        let mut pod = Direct::open("in the pod")?;
        let names: Vec<&str> = filters.iter().map(|filter| filter.link.as_str()).collect();
        let links = pod.links(&names)?;
        let mut batch = Batch::default();
        for filter in filters {
            let link = links.get(&filter.link).context("a link is gone")?;
            batch.add_filter(filter, link.ifindex, program.as_raw_fd());
        }
        anyhow::Ok(pod.run(batch)?)
    })??;
    Ok(program)
}

/// Returns a Service that no packet of the benchmark is for, with a backend elsewhere.
fn service(number: usize) -> Result<Service> {
    let number = u16::try_from(number).context("so many Services have no addresses here")?;
    let [high, low] = number.to_be_bytes();
    Ok(Service {
        name: number.to_string(),
        protocol: Protocol::Tcp,
        cluster: ([10, 96, high, low], 443).into(),
        node_port: Some(31_000 + number % 1000),
        policy: ExternalTrafficPolicy::Cluster,
        masquerade: false,
        backends: vec![Backend {
            address: ([10, 78, high, low], PORT).into(),
            node: "another".to_owned(),
        }],
    })
}

fn dnat(pod: IpAddr) -> String {
    let rule = |protocol| {
        format!(
            "-A PREROUTING -d {NODE} -p {protocol} -m {protocol} --dport {NODE_PORT} \
             -j DNAT --to-destination {pod}:{PORT}\n"
        )
    };
    format!("*nat\n{}{}COMMIT\n", rule("tcp"), rule("udp"))
}
