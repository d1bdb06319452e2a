//! Builds the VPC of a [`Plan`]: a router, an edge, a world, and the nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;

use crate::{
    assigned::{Assigned, Late},
    delivery::Delivery,
    edge::{self, Edge, VPC_SIDE, WORLD_SIDE},
    netlink::{Netlink, VethEnd},
    netns::Netns,
    plan::{
        EDGE_ROUTER_MAC, EDGE_WORLD_MAC, Family, MadeOf, Nic, Node, Plan, ROUTER_EDGE_MAC,
        WORLD_MAC,
    },
    strict::{Strict, Violation},
};

/// The router's port towards the edge.
pub const EDGE_PORT: &str = "p-edge";
/// The world's only interface.
const UPLINK: &str = "uplink";
/// The world is an ordinary Ethernet.
const WORLD_MTU: u32 = 1500;

/// The VPC: the network as built, with its strictness.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use ebbtide_vpc::{ping::ping, plan::{Family, Plan}, vpc::Vpc};
///
/// // The network alone, without agents.
/// let vpc = Vpc::build(Plan::default())?;
/// let gateway = vpc.nic("master", "ens5").subnet(Family::V4).gateway;
/// ping(vpc.node("master"), None, gateway, Duration::from_secs(2))?;
///
/// // What no cloud would carry is dropped, and counted.
/// assert_eq!(vpc.dropped_at("master", "ens5")?, 0);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct Vpc {
    /// The plan that it was built from.
    pub plan: Plan,
    /// The programs on the router's ports. Dropped first: they are detached inside [`Vpc::router`].
    strict: Strict,
    /// The router.
    pub router: Netns,
    /// The edge: NAT gateway, internet gateway and load balancer.
    pub edge: Edge,
    /// The world outside: a web server and a client.
    pub world: Netns,
    nodes: BTreeMap<String, Netns>,
    assigned: Arc<Assigned>,
}

impl Vpc {
    /// Builds the VPC of a plan.
    ///
    /// # Errors
    /// If a step fails; the error names it, and what was built is removed.
    pub fn build(plan: Plan) -> Result<Self> {
        let router = Netns::new("vpc")?;
        router.sysctls(ROUTER_SYSCTLS)?;
        let edge = Netns::new("edge")?;
        edge.sysctls(EDGE_SYSCTLS)?;
        let world = Netns::new("world")?;
        world.sysctls(QUIET_IPV6)?;

        let netlink = router.netlink()?;
        connect_edge(&plan, &netlink, &router, &edge)?;
        connect_world(&edge, &world)?;
        let mut nodes = BTreeMap::new();
        for node in &plan.nodes {
            let step = || format!("connecting {} to the VPC", node.name);
            match node.made_of {
                MadeOf::Namespace => {
                    let netns = connect_node(&plan, &netlink, &router, node).with_context(step)?;
                    nodes.insert(node.name.clone(), netns);
                }
                MadeOf::Machine => {
                    connect_machine(&plan, &netlink, &router, node).with_context(step)?;
                }
            }
        }
        Ok(Self {
            strict: Strict::attach(&router, &netlink, plan.nics())?,
            edge: Edge::new(edge)?,
            assigned: Arc::new(Assigned::of(&plan)),
            plan,
            router,
            world,
            nodes,
        })
    }

    /// Returns a node's namespace.
    ///
    /// # Panics
    /// If the plan has no such node, or the node is not a namespace, which is a mistake in the test.
    #[must_use]
    pub fn node(&self, name: &str) -> &Netns {
        match self.nodes.get(name) {
            Some(netns) => netns,
            None => panic!("the plan has no node {name} that is a namespace"),
        }
    }

    /// Returns a node's NIC.
    ///
    /// # Panics
    /// If the plan has no NIC of these names, which is a mistake in the test.
    #[must_use]
    pub fn nic(&self, node: &str, nic: &str) -> &Nic {
        match self.plan.node(node).and_then(|node| node.nic(nic)) {
            Some(nic) => nic,
            None => panic!("the plan has no NIC {node}/{nic}"),
        }
    }

    /// Assigns an address or a prefix to a NIC, as a cloud's API does: from now on the VPC delivers it to the NIC and
    /// accepts it from there, and the NIC's metadata tell it. The plan stays as it was.
    ///
    /// # Errors
    /// If an address of it is somebody's already, or the kernel refuses.
    ///
    /// # Panics
    /// If the plan has no such NIC, which is a mistake in the test.
    pub fn assign(&self, node: &str, nic: &str, block: impl Into<IpNet>) -> Result<()> {
        let (nic, block) = (self.nic(node, nic), block.into().trunc());
        let mut change = self.assigned.change();
        if let Some(other) = change.overlapping(block) {
            bail!(
                "{block} overlaps {} of {}/{}",
                other.block,
                other.node,
                other.nic
            );
        }
        ensure!(
            !self.is_taken(block),
            "{block} has a node's or a gateway's address"
        );
        self.strict.allow(nic, block)?;
        self.delivery().begin(nic, block)?;
        change.add(nic, block);
        Ok(())
    }

    /// Withdraws exactly what was assigned to a NIC, by the plan or by [`Vpc::assign`]: the VPC delivers it to nobody,
    /// and drops it at the NIC as anybody's else.
    ///
    /// # Errors
    /// If the NIC does not have it, or the kernel refuses.
    ///
    /// # Panics
    /// As [`Vpc::assign`].
    pub fn unassign(&self, node: &str, nic: &str, block: impl Into<IpNet>) -> Result<()> {
        let (nic, block) = (self.nic(node, nic), block.into().trunc());
        let mut change = self.assigned.change();
        ensure!(
            change.has(nic, block),
            "{}/{} does not have {block}",
            nic.node,
            nic.name
        );
        self.strict.forbid(nic, block)?;
        self.delivery().end(nic, block)?;
        change.end(nic, block);
        Ok(())
    }

    /// Takes an address or a prefix from the NIC that has it, and assigns it to this one.
    ///
    /// # Errors
    /// If nobody has it, or as [`Vpc::assign`].
    ///
    /// # Panics
    /// As [`Vpc::assign`].
    pub fn reassign(&self, node: &str, nic: &str, block: impl Into<IpNet>) -> Result<()> {
        let block = block.into().trunc();
        let holder = self.assigned.change().overlapping(block).cloned();
        let holder = holder.with_context(|| format!("nobody has {block}"))?;
        self.unassign(&holder.node, &holder.nic, block)?;
        self.assign(node, nic, block)
    }

    /// Returns what is assigned to a NIC now, besides its primary addresses.
    ///
    /// # Panics
    /// As [`Vpc::assign`].
    #[must_use]
    pub fn assigned(&self, node: &str, nic: &str) -> Vec<IpNet> {
        let nic = self.nic(node, nic);
        self.assigned.told(nic, Instant::now(), Late::default())
    }

    /// Returns the record of the assignments, for who tells of them.
    pub(crate) fn record(&self) -> &Arc<Assigned> {
        &self.assigned
    }

    fn delivery(&self) -> Delivery<'_> {
        Delivery {
            plan: &self.plan,
            router: &self.router,
            edge: self.edge.netns(),
        }
    }

    fn is_taken(&self, block: IpNet) -> bool {
        let mut all = self.plan.nics().flat_map(|nic| {
            Family::BOTH.into_iter().flat_map(|family| -> [IpAddr; 2] {
                [nic.primary(family), nic.subnet(family).gateway]
            })
        });
        all.any(|address| block.contains(&address))
    }

    /// Returns what the VPC dropped so far because no cloud would carry it.
    ///
    /// # Errors
    /// If the counters cannot be read.
    pub fn violations(&self) -> Result<Vec<Violation>> {
        self.strict.violations()
    }

    /// Returns how many frames the VPC dropped so far at one NIC.
    ///
    /// # Errors
    /// If the counters cannot be read.
    pub fn dropped_at(&self, node: &str, nic: &str) -> Result<u64> {
        Ok(self
            .violations()?
            .iter()
            .filter(|violation| violation.node == node && violation.nic == nic)
            .map(|violation| violation.count)
            .sum())
    }

    /// Fails if the VPC dropped anything.
    ///
    /// # Errors
    /// If anything was dropped; the error lists it.
    pub fn assert_no_violations(&self) -> Result<()> {
        let violations = self.violations()?;
        if !violations.is_empty() {
            let list: Vec<String> = violations.iter().map(ToString::to_string).collect();
            bail!("a VPC would drop: {}", list.join("; "));
        }
        Ok(())
    }
}

/// Settings without duplicate address detection and solicitations: addresses can be used at once, and the wires are
/// silent until somebody sends.
const QUIET_IPV6: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

/// The router's settings. It answers ARP and ND for its gateway addresses only (`arp_ignore`), and drops nothing
/// silently (no `rp_filter`): strictness is counted, see [`Strict`].
const ROUTER_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/default/arp_ignore", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

const EDGE_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// Returns a node's settings: it forwards, and filters reverse paths if the plan says so.
#[must_use]
pub fn node_sysctls(plan: &Plan) -> Vec<(&'static str, &'static str)> {
    let rp_filter = if plan.strict_rp_filter { "1" } else { "0" };
    let own = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", rp_filter),
    ];
    QUIET_IPV6.iter().copied().chain(own).collect()
}

/// Keeps the router from asking who has an address behind a port: as in a cloud, it knows each address, or the address
/// does not exist.
fn ask_nobody(router: &Netns, port: &str) -> Result<()> {
    let paths = ["ipv4", "ipv6"].map(|family| {
        ["mcast_solicit", "ucast_solicit"]
            .map(|setting| format!("net/{family}/neigh/{port}/{setting}"))
    });
    let settings: Vec<(&str, &str)> = paths
        .iter()
        .flatten()
        .map(|path| (path.as_str(), "0"))
        .collect();
    router.sysctls(&settings)
}

fn connect_edge(plan: &Plan, netlink: &Netlink, router: &Netns, edge: &Netns) -> Result<()> {
    netlink.add_veth(
        &VethEnd {
            netns: router,
            name: EDGE_PORT,
            mac: ROUTER_EDGE_MAC,
        },
        &VethEnd {
            netns: edge,
            name: VPC_SIDE,
            mac: EDGE_ROUTER_MAC,
        },
        plan.mtu,
    )?;
    let far = edge.netlink()?;
    far.set_up(VPC_SIDE)?;
    for family in Family::BOTH {
        let link = Plan::edge_link(family);
        netlink.add_address(EDGE_PORT, link.router)?;
        netlink.add_neighbours(EDGE_PORT, [link.edge.addr()], EDGE_ROUTER_MAC)?;
        netlink.add_route(everything(family), link.edge.addr())?;
        far.add_address(VPC_SIDE, link.edge)?;
        far.add_neighbours(VPC_SIDE, [link.router.addr()], ROUTER_EDGE_MAC)?;
        let subnets: BTreeSet<IpNet> = plan
            .nics()
            .map(|nic| nic.subnet(family).primary.trunc())
            .collect();
        for subnet in subnets {
            far.add_route(subnet, link.router.addr())?;
        }
    }
    Ok(())
}

fn connect_world(edge: &Netns, world: &Netns) -> Result<()> {
    let near = edge.netlink()?;
    near.add_veth(
        &VethEnd {
            netns: edge,
            name: WORLD_SIDE,
            mac: EDGE_WORLD_MAC,
        },
        &VethEnd {
            netns: world,
            name: UPLINK,
            mac: WORLD_MAC,
        },
        WORLD_MTU,
    )?;
    for (address, prefix) in edge::world_addresses() {
        near.add_address(WORLD_SIDE, IpNet::new(address, prefix)?)?;
    }
    let far = world.netlink()?;
    far.set_up(UPLINK)?;
    for family in Family::BOTH {
        for address in [Plan::web_server(family), Plan::client(family)] {
            let address = IpNet::new(address, Plan::world_prefix(family))?;
            far.add_address(UPLINK, address)?;
        }
    }
    // The world has no route to the VPC's IPv4 addresses, so only translated packets are answered.
    far.add_route(everything(Family::V6), Plan::EDGE_V6)
}

fn connect_node(plan: &Plan, netlink: &Netlink, router: &Netns, node: &Node) -> Result<Netns> {
    let netns = Netns::new(&node.name)?;
    netns.sysctls(&node_sysctls(plan))?;
    let far = netns.netlink()?;
    for nic in &node.nics {
        netlink.add_veth(
            &VethEnd {
                netns: router,
                name: &nic.port(),
                mac: nic.port_mac(),
            },
            &VethEnd {
                netns: &netns,
                name: &nic.name,
                mac: nic.mac,
            },
            plan.mtu,
        )?;
        far.set_up(&nic.name)?;
        set_port(plan, netlink, router, nic)?;
        for family in Family::BOTH {
            // Secondary addresses are for pods: the node's interface has none of them.
            far.add_address(&nic.name, nic.subnet(family).primary)?;
        }
    }
    if let Some(first) = node.nics.first() {
        for family in Family::BOTH {
            far.add_route(everything(family), first.subnet(family).gateway)?;
        }
    }
    Ok(netns)
}

/// Builds the VPC's ends of the NICs of a machine that is started later.
fn connect_machine(plan: &Plan, netlink: &Netlink, router: &Netns, node: &Node) -> Result<()> {
    for nic in &node.nics {
        let port = nic.port();
        // rtnetlink makes no tap devices (drivers/net/tun.c: "needs to be created through /dev/net/tun").
        ip(router, &["tuntap", "add", "dev", &port, "mode", "tap"])?;
        // No packet of many segments: a machine in user-mode Linux reads a frame of the MTU and drops what is longer, though
        // its device does not say so (arch/um/drivers/vector_kern.c, `get_req_size`).
        ip(router, &["link", "set", "dev", &port, "gso_max_segs", "1"])?;
        netlink.set_mac(&port, nic.port_mac())?;
        netlink.set_up(&port)?;
        set_port(plan, netlink, router, nic)?;
    }
    Ok(())
}

pub(crate) fn ip(netns: &Netns, arguments: &[&str]) -> Result<()> {
    let ran = netns.command("ip").args(arguments).output();
    let ran = ran.context("starting ip(8)")?;
    if !ran.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    Ok(())
}

/// Configures the router's port for a NIC: the gateway's addresses, and the neighbours behind it.
fn set_port(plan: &Plan, netlink: &Netlink, router: &Netns, nic: &Nic) -> Result<()> {
    let port = nic.port();
    if !plan.asks {
        ask_nobody(router, &port)?;
    }
    for family in Family::BOTH {
        let subnet = nic.subnet(family);
        let gateway = IpNet::new(subnet.gateway, subnet.primary.prefix_len())?;
        netlink.add_address(&port, gateway)?;
        if !plan.asks {
            netlink.add_neighbours(&port, subnet.addresses(), nic.mac)?;
        }
    }
    share_subnets(plan, netlink, router, nic)
}

/// Configures the router for a subnet that several nodes share. They are not on one wire: the router knows the port of
/// each address, and at the other ports it answers for existing addresses with its own MAC, as clouds do.
fn share_subnets(plan: &Plan, netlink: &Netlink, router: &Netns, nic: &Nic) -> Result<()> {
    let port = nic.port();
    let mut others = plan.neighbours(nic).peekable();
    if others.peek().is_none() {
        return Ok(());
    }
    for address in nic.addresses() {
        netlink.add_on_link_route(address.into(), &port)?;
    }
    router.sysctls(&[
        (&format!("net/ipv6/conf/{port}/proxy_ndp"), "1"),
        // Answers at once: both wait for up to 0.8 s otherwise, so that the owner may answer first.
        (&format!("net/ipv4/neigh/{port}/proxy_delay"), "0"),
        (&format!("net/ipv6/neigh/{port}/proxy_delay"), "0"),
    ])?;
    netlink.answer_for(&port, others.flat_map(Nic::addresses))
}

fn everything(family: Family) -> IpNet {
    IpNet::new_assert(family.any(), 0)
}
