//! Plans a pod's interface from facts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebbtide_layout::{HOST_MAC, Hook, POD_MAC};
use ebbtide_types::{
    Family, IpvlanMode, Mac,
    digest::fnv,
    settings::{LocalRule, Settings},
};
use ipnet::IpNet;

use super::{
    existing::{self, Tables, families},
    limit, metadata,
    model::{Existing, IPV6_MIN_MTU, NetworkSpec, PlanError, PodAddress, PodNet, Sandbox, VETH},
    responder,
    source::{source_to_held, source_to_pod},
};
use crate::{
    datapath::{PROGRAMS, Program},
    netlink::{
        link::{Ipvlan, LONGEST_ALIAS, Veth},
        model::{
            Action, Address, Filter, MAIN_TABLE, NamespacePlan, Neighbour, Route, Rule, Selector,
            Sysctl, host_net,
        },
    },
    node::{ALIAS, NodeFacts, is_nic_as_master, veth_filters},
};

/// The host as the pod's next hop. No node has these addresses: the neighbour entry is permanent, so the pod needs no
/// address of the node to reach it, and a change of the node's address changes nothing here.
const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// See [`NEXT_HOP_V4`].
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The next hop of marked packets on the interface itself, whose egress program redirects them to the veth. Nobody has
/// these addresses either. They differ from [`NEXT_HOP_V4`] and [`NEXT_HOP_V6`]: on a NIC's link somebody may have
/// those, as routers have fe80::1, and Calico's pods have 169.254.1.1 as their gateway.
const MARKED_NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 235, 1);
/// See [`MARKED_NEXT_HOP_V4`]. It is derived from [`HOST_MAC`].
const MARKED_NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x00eb, 0xb0ff, 0xfe00, 1);

/// `IN6_ADDR_GEN_MODE_NONE` (include/uapi/linux/if_link.h): no link-local address. It would only cause traffic that
/// clouds drop.
const NO_ADDRESSES: &str = "1";

/// Name of the host's end: `veth`, which network managers leave alone by default, and a digest, so that a repeated
/// request finds the same one. 11 hex digits are 44 bits: among 1000 interfaces of a node two collide with a
/// probability of 3 in 10^8, and the kernel then refuses the second.
fn host_end(container_id: &str, interface: &str) -> String {
    let digest = fnv(container_id.bytes().chain([b'/']).chain(interface.bytes()));
    format!("veth{:011x}", digest >> 20)
}

/// Returns the alias of a link, which names its owner. A name too long for the kernel is cut at its end, and marked so.
fn alias(pod: &str, interface: &str) -> String {
    const CUT: &str = "...";
    let whole = format!("{ALIAS}{pod} {interface}");
    if whole.len() <= LONGEST_ALIAS {
        return whole;
    }
    let around = ALIAS.len() + CUT.len() + 1 + interface.len();
    let front = pod.floor_char_boundary(LONGEST_ALIAS.saturating_sub(around));
    format!("{ALIAS}{}{CUT} {interface}", &pod[..front])
}

/// Plans one interface of a pod.
///
/// # Errors
/// If the node cannot carry it; the message contains the reason and the remedy.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::{
///     node::{Nic, NodeFacts},
///     podnet::{Existing, NetworkSpec, PodAddress, Sandbox, plan},
/// };
/// use ebbtide_types::{Mac, settings::Settings};
///
/// # let node = NodeFacts {
/// #     nics: vec![Nic {
/// #         mac: Some(Mac([2, 0, 0, 0, 0, 5])),
/// #         mtu: 9001,
/// #         addresses: vec!["10.0.0.228/24".parse()?],
/// #         ..Nic::named("ens5", 2)
/// #     }],
/// #     ..NodeFacts::default()
/// # };
/// // `node` has one NIC, ens5.
/// let sandbox = Sandbox {
///     container_id: "4f1c".into(),
///     interface: "eth0".into(),
///     netns: "/run/netns/web".into(),
///     netns_inode: 4_026_532_008,
///     pid_namespace: None,
///     pod: "default/web".into(),
/// };
/// let network = NetworkSpec {
///     master: "ens5".into(),
///     ..NetworkSpec::named("default/ipvlan-ens5")
/// };
/// let address = PodAddress {
///     address: "10.0.0.5/24".parse()?,
///     pool: "ens5-v4".into(),
///     gateway: Some("10.0.0.1".parse()?),
///     routes: Vec::new(),
/// };
/// let settings = Settings::default();
/// let net = plan(&sandbox, &Existing::default(), &network, &[address], &node, &settings)?;
///
/// assert_eq!(net.mtu, 9001);
/// let default = net.in_pod.routes[0].to_string();
/// assert_eq!(default, "route default via 10.0.0.1 dev eth0 src 10.0.0.5");
/// // As `ebbtidectl explain` prints it.
/// assert!(net.to_string().contains("link eth0: ipvlan l3 on ens5, mtu 9001"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn plan(
    sandbox: &Sandbox,
    existing: &Existing,
    network: &NetworkSpec,
    addresses: &[PodAddress],
    node: &NodeFacts,
    settings: &Settings,
) -> Result<PodNet, PlanError> {
    let mtu = match network.made_before {
        Some(mtu) => mtu,
        None => mtu_on_master(network, node)?,
    };
    if sandbox.interface == VETH {
        return Err(PlanError::NameTaken);
    }
    let bandwidth = limit::agreed(existing.bandwidth, network.bandwidth)?;
    let mut families_of_ours = families(addresses).map(|(family, _)| family);
    if mtu < IPV6_MIN_MTU && families_of_ours.any(|family| family == Family::V6) {
        return Err(PlanError::MtuWithoutIpv6 {
            network: network.name.clone(),
            mtu,
            master: network.master.clone(),
        });
    }
    let veth = (network.veth && existing.veth.is_none()).then(|| Veth {
        host_name: host_end(&sandbox.container_id, &sandbox.interface),
        host_mac: Mac(HOST_MAC),
        pod_name: VETH.to_owned(),
        pod_mac: Mac(POD_MAC),
        mtu,
    });
    let shared_veth = existing.veth.clone().filter(|_| network.veth);
    let is_ours = network.made_before.is_none();
    let accept_marks = network.accept_marks && !existing.marks;
    let reply_rule = match existing.foreign {
        true => Some(true),
        false => network.reply_rule,
    };
    let others_defaults = existing::others_defaults(existing, addresses);
    let tables = existing::tables(sandbox, existing, network, &others_defaults, settings);
    let table = tables.own;
    let mut in_pod = NamespacePlan::default();
    let mut in_host = NamespacePlan::default();
    if is_ours {
        nic_in_pod(
            &sandbox.interface,
            mtu,
            addresses,
            &tables,
            settings,
            &mut in_pod,
        );
        let beside = existing::rules(addresses, existing, &tables, settings);
        in_pod.rules.extend(beside);
    }
    if let Some(veth) = &veth {
        in_pod.sysctls.extend(mark_settings(accept_marks));
        in_pod.sysctls.push(no_addresses(VETH));
        in_host.sysctls.push(no_addresses(&veth.host_name));
        // A new link inherits the value in `default`, where forwarding may have been turned off.
        let forwarding = format!("net/ipv4/conf/{}/forwarding", veth.host_name);
        in_host.sysctls.push(sysctl(forwarding, "1"));
    }
    if let Some(veth) = veth.as_ref().or(shared_veth.as_ref()) {
        // Another plugin's second interface has no table of Ebbtide's; the first one's routes serve it.
        if is_ours || table.is_none() {
            let behind_host = behind_host(network, node, settings);
            let table = table.unwrap_or(MAIN_TABLE);
            routes_to_host(addresses, &behind_host, table, &mut in_pod);
        }
        for (family, own) in families(addresses) {
            if !existing.families.contains(&family) {
                replies(family, own, &mut in_pod);
                let mut of_family = addresses
                    .iter()
                    .filter(|pod| Family::of(pod.address.addr()) == family);
                let has_gateway = of_family.any(|pod| pod.gateway.is_some());
                if !is_ours || !has_gateway || reply_rule != Some(false) {
                    reply_rule_by_mark(&sandbox.interface, family, own, settings, &mut in_pod);
                }
                in_host
                    .sysctls
                    .extend(family_settings(&veth.host_name, family));
            }
        }
        // What another plugin's interface sends is not guarded.
        let is_guarded = settings.spoof_guard && is_ours;
        let only_from = is_guarded.then(|| sandbox.number());
        // Elsewhere the NIC's program sees all that comes in. In l3s it comes to a pod without its interface.
        let is_followed = is_ours
            && network.mode != IpvlanMode::L3s
            && is_nic_as_master(&network.master, node, &settings.nics);
        in_pod.filters = programs(&sandbox.interface, veth, only_from, is_followed);
        if existing.veth.is_none() {
            let several_nics = node.may_have_several_nics(&settings.nics);
            in_host.filters = veth_filters(&veth.host_name, only_from, several_nics);
        }
        let master = &network.master;
        routes_to_pod(veth, addresses, master, node, settings, &mut in_host);
        if !is_ours {
            let loose = |link: &String| sysctl(format!("net/ipv4/conf/{link}/rp_filter"), "2");
            in_host
                .sysctls
                .extend(network.strict_links.iter().map(loose));
        }
    }
    // What another plugin's interface sends is that plugin's.
    let metadata = match is_ours {
        true => metadata::flags(
            network.metadata.unwrap_or(settings.metadata_for_pods),
            &in_pod.routes,
        ),
        false => 0,
    };
    if metadata != 0 && in_pod.filters.is_empty() {
        in_pod.filters.extend(egress_alone(&sandbox.interface));
    }
    if let Some(bandwidth) = bandwidth.filter(|_| is_ours) {
        let pair = veth.as_ref().map(|veth| veth.pod_name.as_str());
        let links = [sandbox.interface.as_str()].into_iter().chain(pair);
        limit::plan(&bandwidth, links, sandbox.number(), &mut in_pod);
    }
    Ok(PodNet {
        pod: sandbox.pod.clone(),
        container_id: sandbox.container_id.clone(),
        netns: sandbox.netns.clone(),
        netns_inode: sandbox.netns_inode,
        pid_namespace: sandbox.pid_namespace,
        network: network.name.clone(),
        spec: Some(NetworkSpec {
            accept_marks,
            reply_rule,
            bandwidth,
            ..network.clone()
        }),
        addresses: addresses.to_vec(),
        interface: sandbox.interface.clone(),
        mtu,
        ipvlan: is_ours.then(|| Ipvlan {
            name: sandbox.interface.clone(),
            master: network.master.clone(),
            mode: network.mode,
            mtu,
        }),
        delegate: None,
        host_bypass: settings.exempt_from_masquerade
            && is_ours
            && network.mode != IpvlanMode::L2
            && (veth.is_some() || shared_veth.is_some()),
        veth,
        shared_veth,
        table: table.filter(|_| is_ours),
        others_defaults,
        metadata,
        answered: is_ours && responder::node_responds(network.answer_neighbours, network.mode),
        alias: alias(&sandbox.pod, &sandbox.interface),
        in_pod,
        in_host,
    })
}

/// Returns the MTU of an interface, which the network's master must support.
fn mtu_on_master(network: &NetworkSpec, node: &NodeFacts) -> Result<u32, PlanError> {
    let master = node
        .nic(&network.master)
        .ok_or_else(|| PlanError::NoMaster {
            master: network.master.clone(),
            network: network.name.clone(),
            present: node
                .nics
                .iter()
                .map(|n| n.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    if let Some(kind @ ("ipvlan" | "macvlan")) = master.kind.as_deref() {
        return Err(PlanError::MasterIsChild {
            master: network.master.clone(),
            network: network.name.clone(),
            kind: kind.to_owned(),
        });
    }
    if !master.up {
        return Err(PlanError::MasterDown {
            master: network.master.clone(),
            network: network.name.clone(),
        });
    }
    let mtu = network.mtu.unwrap_or(master.mtu);
    if mtu > master.mtu {
        return Err(PlanError::Mtu {
            network: network.name.clone(),
            mtu,
            master: network.master.clone(),
            master_mtu: master.mtu,
        });
    }
    Ok(mtu)
}

fn sysctl(path: String, value: &str) -> Sysctl {
    Sysctl {
        path,
        value: value.to_owned(),
    }
}

/// Prevents automatic addresses on a link.
fn no_addresses(link: &str) -> Sysctl {
    sysctl(format!("net/ipv6/conf/{link}/addr_gen_mode"), NO_ADDRESSES)
}

/// The settings that a link needs for a family.
fn family_settings(link: &str, family: Family) -> Vec<Sysctl> {
    match family {
        Family::V4 => Vec::new(),
        Family::V6 => vec![
            sysctl(format!("net/ipv6/conf/{link}/disable_ipv6"), "0"),
            sysctl(format!("net/ipv6/conf/{link}/accept_ra"), "0"),
        ],
    }
}

/// The settings for marks in the pod. The accepted socket inherits the mark of its SYN; RST and ICMP replies carry the
/// mark of what they answer (Documentation/networking/ip-sysctl.rst).
///
/// Packets with far sources come in by the veth, and the routes to these lead to the interface. Loose filtering accepts
/// them. The larger of `all` and this applies, and 2 (loose) is larger than 1.
///
/// The kernel gives the accepted socket the whole mark, not Ebbtide's bit alone. If a transparent proxy sets a mark of
/// its own, replies would follow that proxy's rule back into the pod; and a source that is looked up by that mark is
/// taken for the pod's own, and dropped.
fn mark_settings(accept: bool) -> [Sysctl; 4] {
    let accept = if accept { "1" } else { "0" };
    [
        sysctl(format!("net/ipv4/conf/{VETH}/rp_filter"), "2"),
        sysctl("net/ipv4/tcp_fwmark_accept".into(), accept),
        sysctl("net/ipv4/fwmark_reflect".into(), "1"),
        sysctl(format!("net/ipv4/conf/{VETH}/src_valid_mark"), accept),
    ]
}

/// Plans the ipvlan interface: its addresses, and the default route by the pool's gateway.
///
/// The gateway is a next hop on the link although l3 children resolve no neighbours: with a device route the kernel
/// would keep a neighbour entry for every destination a pod ever talks to.
fn nic_in_pod(
    interface: &str,
    mtu: u32,
    addresses: &[PodAddress],
    tables: &Tables,
    settings: &Settings,
    plan: &mut NamespacePlan,
) {
    let own_table = tables.own;
    plan.sysctls.push(no_addresses(interface));
    for (family, _) in families(addresses) {
        plan.sysctls.extend(family_settings(interface, family));
        if family == Family::V6 {
            // When the master's MTU changes, the kernel changes its children's without notifying IPv6
            // (`ipvlan_adjust_mtu`, drivers/net/ipvlan/ipvlan_main.c).
            let path = format!("net/ipv6/conf/{interface}/mtu");
            plan.sysctls.push(sysctl(path, &mtu.to_string()));
        }
    }
    if own_table.is_some() {
        // Requests that come in here are answered by a rule with the source; strict rp_filter would look up the main
        // table and not find this interface. The larger of `all` and this applies, and 2 (loose) is larger than 1
        // (Documentation/networking/ip-sysctl.rst).
        plan.sysctls
            .push(sysctl(format!("net/ipv4/conf/{interface}/rp_filter"), "2"));
    }
    for pod in addresses {
        let own = pod.address.addr();
        plan.addresses.push(Address {
            link: interface.to_owned(),
            address: pod.address,
            // In the main table, its subnet's route would match packets from another interface's address.
            no_prefix_route: own_table.is_some(),
        });
        let route = |destination, via, table| Route {
            link: interface.to_owned(),
            destination,
            via,
            source: Some(own),
            table,
        };
        let table = own_table.unwrap_or(MAIN_TABLE);
        if let Some(gateway) = pod.gateway {
            let everything = Family::of(own).everything();
            plan.routes.push(route(everything, Some(gateway), table));
        }
        for (destination, via) in &pod.routes {
            plan.routes.push(route(*destination, Some(*via), table));
        }
        if own_table.is_some() {
            plan.routes.push(route(pod.address.trunc(), None, table));
            plan.rules.push(Rule {
                family: Family::of(own),
                priority: settings.rule_priority + 1,
                selector: Selector::From(own),
                action: Action::Table(table),
            });
        }
        if let Some(subnets) = tables.subnets {
            for (destination, via) in &pod.routes {
                plan.routes.push(route(*destination, Some(*via), subnets));
            }
            plan.routes.push(route(pod.address.trunc(), None, subnets));
        }
    }
}

/// All networks that the pod reaches through the node.
fn behind_host(network: &NetworkSpec, node: &NodeFacts, settings: &Settings) -> Vec<IpNet> {
    let mut all: Vec<IpNet> = Vec::new();
    let nodes = node.addresses(&settings.nics).into_iter().map(host_net);
    let configured = settings
        .service_cidrs
        .iter()
        .chain(&settings.via_host_cidrs);
    for net in nodes.chain(configured.chain(&network.via_host).copied()) {
        if !all.contains(&net) {
            all.push(net);
        }
    }
    all
}

fn next_hop(family: Family) -> IpAddr {
    match family {
        Family::V4 => NEXT_HOP_V4.into(),
        Family::V6 => NEXT_HOP_V6.into(),
    }
}

/// Plans the routes to the node, from this interface's addresses.
fn routes_to_host(
    addresses: &[PodAddress],
    behind_host: &[IpNet],
    table: u32,
    plan: &mut NamespacePlan,
) {
    for (family, own) in families(addresses) {
        let own_family = behind_host
            .iter()
            .filter(|net| Family::of_net(net) == family);
        plan.routes.extend(own_family.map(|destination| Route {
            link: VETH.to_owned(),
            destination: *destination,
            via: Some(next_hop(family)),
            source: Some(own),
            table,
        }));
    }
}

/// Plans what the replies of a family need at the veth. The routes lead them to an interface of Ebbtide's, whose egress
/// program redirects them by their mark.
fn replies(family: Family, own: IpAddr, plan: &mut NamespacePlan) {
    plan.sysctls.extend(family_settings(VETH, family));
    if family == Family::V6 {
        plan.sysctls
            .push(sysctl("net/ipv6/fwmark_reflect".into(), "1"));
    }
    // The pod's own address once more. Without one, a REDIRECT of what comes in has no address to redirect to and drops
    // it (`nf_nat_redirect_ipv4`, net/netfilter/nf_nat_redirect.c), as service meshes do, and even loose reverse path
    // filtering drops packets without a mark.
    plan.addresses.push(Address {
        link: VETH.to_owned(),
        address: host_net(own),
        no_prefix_route: false,
    });
    plan.neighbours.push(Neighbour {
        link: VETH.to_owned(),
        address: next_hop(family),
        mac: Mac(HOST_MAC),
    });
}

/// Plans the rule that routes marked packets to the interface, whatever else is in the pod.
///
/// It is planned only where it is needed: as soon as there is any rule in a namespace, the kernel walks them all for
/// each packet, and validates each source by a lookup of its own (`fib_lookup`, include/net/ip_fib.h;
/// `fib_validate_source`, net/ipv4/fib_frontend.c).
fn reply_rule_by_mark(
    interface: &str,
    family: Family,
    own: IpAddr,
    settings: &Settings,
    plan: &mut NamespacePlan,
) {
    let next_hop = match family {
        Family::V4 => MARKED_NEXT_HOP_V4.into(),
        Family::V6 => MARKED_NEXT_HOP_V6.into(),
    };
    plan.neighbours.push(Neighbour {
        link: interface.to_owned(),
        address: next_hop,
        mac: Mac(HOST_MAC),
    });
    plan.routes.push(Route {
        link: interface.to_owned(),
        destination: family.everything(),
        via: Some(next_hop),
        source: Some(own),
        table: settings.reply_table,
    });
    plan.rules.push(Rule {
        family,
        priority: settings.rule_priority,
        selector: Selector::LocalMark {
            mark: settings.mark,
            mask: settings.mark,
        },
        action: Action::Table(settings.reply_table),
    });
}

/// Ebbtide's programs: on the veth with the interface that it came with, and on the interface itself, where `only_from`
/// guards what it sends. `is_followed`: what comes in by the interface is seen by the NIC's program
/// ([`PodNet::registered`]).
fn programs(
    interface: &str,
    veth: &Veth,
    only_from: Option<u16>,
    is_followed: bool,
) -> Vec<Filter> {
    let filter = |program: &Program| Filter {
        link: match program.hook {
            Hook::VethIngress => veth.pod_name.clone(),
            Hook::NicEgress | Hook::NicIngress => interface.to_owned(),
        },
        direction: program.direction,
        program: program.name.to_owned(),
        only_from: only_from.filter(|_| program.hook == Hook::NicEgress),
    };
    let wanted = PROGRAMS.iter();
    wanted
        .filter(|program| !(is_followed && program.hook == Hook::NicIngress))
        .map(filter)
        .collect()
}

/// The program of an interface without a pair, where it must not send everything. It guards nothing there.
fn egress_alone(interface: &str) -> Option<Filter> {
    let mut all = PROGRAMS.iter();
    let program = all.find(|program| program.hook == Hook::NicEgress)?;
    Some(Filter {
        link: interface.to_owned(),
        direction: program.direction,
        program: program.name.to_owned(),
        only_from: None,
    })
}

/// Plans the routes to the pod, in the host. Where the node takes the address for its own, there is one more, for the
/// rule in front of the table `local` (`node::local_rule`).
fn routes_to_pod(
    veth: &Veth,
    addresses: &[PodAddress],
    master: &str,
    node: &NodeFacts,
    settings: &Settings,
    plan: &mut NamespacePlan,
) {
    for pod in addresses {
        let own = pod.address.addr();
        plan.neighbours.push(Neighbour {
            link: veth.host_name.clone(),
            address: own,
            mac: veth.pod_mac,
        });
        let route = |table, source| Route {
            link: veth.host_name.clone(),
            destination: host_net(own),
            via: None,
            source,
            table,
        };
        let source = source_to_pod(own, master, node);
        plan.routes.push(route(settings.host_table, source));
        if settings.local_rule == LocalRule::Auto && node.takes(own) {
            let source = source_to_held(own, master, node);
            plan.routes.push(route(settings.held_table(), source));
        }
    }
}
