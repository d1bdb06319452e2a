//! `ebbtidectl datapath`: each program, whether it is attached, and its counters.

use std::collections::HashSet;

use ebbtide_kernel::{
    datapath::{self, HOST_PROGRAMS, PROGRAMS},
    netlink::{
        Netlink,
        link::Veth,
        model::{Direction, Filter, NamespacePlan},
        netns::Evidence,
        state::NamespaceState,
    },
    podnet::PodNet,
};
use ebbtide_layout::{Counters, Hook, HostHook, Limit, Spoofed};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;

/// A line of `ebbtidectl datapath`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookLine {
    /// The pod; empty for the node's own.
    pub pod: String,
    /// The interface in the pod, or the node's NIC. The host's ends of the veths are counted together, by the NIC that
    /// their traffic came in on.
    pub interface: String,
    /// `ingress` or `egress`.
    pub hook: String,
    /// The program.
    pub program: String,
    /// Whether it is attached; `None` if that cannot be told.
    pub attached: Option<bool>,
    /// How it is attached: `tcx` (a link) or `tc` (a filter); empty if it is not, or that cannot be told.
    pub by: String,
    /// Packets it saw; `nic_ingress` counts of TCP only those that open a connection.
    pub seen: u64,
    /// Packets marked as having come in by the veth.
    pub marked: u64,
    /// Flows that were remembered (or, on the NIC's ingress, forgotten).
    pub learned: u64,
    /// Packets redirected to the interface that their flow came in on.
    pub redirected: u64,
    /// Packets passed without change.
    pub passed: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// Those of them that were for a cloud's metadata service.
    #[serde(default)]
    pub to_metadata: u64,
    /// Packets routed to this NIC although it is the wrong one: a cloud drops them. They were redirected to the right
    /// one, unless its gateway is not known.
    pub wrong_nic: u64,
    /// Those of them that left by the wrong NIC for want of that gateway.
    #[serde(default)]
    pub wrong_nic_passed: u64,
}

impl HookLine {
    /// Makes a line from counters alone.
    fn counting(counted: &Counters) -> Self {
        Self {
            seen: counted.seen,
            marked: counted.marked,
            learned: counted.learned,
            redirected: counted.redirected,
            passed: counted.passed,
            dropped: counted.dropped,
            ..Self::default()
        }
    }

    /// Says whose the counts are: a program's of a pod, which is there or not if that is known.
    fn at(self, net: &PodNet, filter: &Filter, attached: Option<&HashSet<Filter>>) -> Self {
        let there = attached.map(|found| found.contains(filter));
        Self {
            pod: net.pod.clone(),
            interface: filter.link.clone(),
            hook: filter.direction.to_string(),
            program: filter.program.clone(),
            attached: there,
            by: by(there, false),
            ..self
        }
    }
}

pub(super) async fn datapath(agent: &Agent) -> Result<Vec<HookLine>, String> {
    let mut lines = Vec::new();
    for (_, net) in agent.interfaces() {
        let counters = agent
            .datapath
            .counters(&net.ips())
            .map_err(|e| e.to_string())?;
        // Counted for the pod as a whole, so reported once.
        let (spoofed, to_metadata) = match &net.shared_veth {
            None => dropped(agent, &net).map_err(|e| e.to_string())?,
            Some(_) => Default::default(),
        };
        let attached = attached(&net).await;
        for filter in &net.in_pod.filters {
            let Some(program) = PROGRAMS.iter().find(|p| p.name == filter.program) else {
                continue;
            };
            let mut counted = counters[program.hook as usize];
            let mut by_nic = 0;
            if program.hook == Hook::NicEgress {
                by_nic = to_metadata.by_nic;
                counted.dropped += spoofed.by_nic + by_nic;
            }
            let line = HookLine {
                to_metadata: by_nic,
                ..HookLine::counting(&counted)
            };
            lines.push(line.at(&net, filter, attached.as_ref()));
        }
        lines.extend(limits(agent, &net, attached.as_ref())?);
        let by_veth = spoofed.by_veth + to_metadata.by_veth;
        if let Some(veth) = net.veth.as_ref().filter(|_| by_veth != 0) {
            lines.push(HookLine {
                to_metadata: to_metadata.by_veth,
                ..dropped_from(&net, veth, by_veth)
            });
        }
    }
    lines.extend(nics(agent).await?);
    Ok(lines)
}

/// Returns the lines of the programs that limit a pod's bandwidth. All interfaces of the pod share what was counted, so it
/// is in the lines of its first one.
fn limits(
    agent: &Agent,
    net: &PodNet,
    attached: Option<&HashSet<Filter>>,
) -> Result<Vec<HookLine>, String> {
    if net.bandwidth().is_none() {
        return Ok(Vec::new());
    }
    let limits = agent.datapath.limits.of(net.number());
    let limits = limits.map_err(|e| e.to_string())?.unwrap_or_default();
    let filters = net.in_pod.filters.iter().filter(|filter| filter.is_limit());
    let line = |filter: &Filter| {
        let counted = match filter.direction {
            Direction::Egress => limits.egress,
            Direction::Ingress => limits.ingress,
        };
        let is_first = net.shared_veth.is_none() && filter.link == net.interface;
        let Limit {
            passed, dropped, ..
        } = if is_first { counted } else { Limit::default() };
        let line = HookLine {
            seen: passed + dropped,
            passed,
            dropped,
            ..HookLine::default()
        };
        line.at(net, filter, attached)
    };
    Ok(filters.map(line).collect())
}

/// Returns what was dropped of a pod: with foreign addresses, and to a metadata service.
fn dropped(agent: &Agent, net: &PodNet) -> Result<(Spoofed, Spoofed), datapath::Error> {
    let pod = net.number();
    Ok((
        agent.datapath.spoofed(pod)?,
        agent.datapath.to_metadata(pod)?,
    ))
}

/// Makes a line for the host's end of a pod's veth where packets of its own were dropped. Everything else
/// there is counted by NIC.
fn dropped_from(net: &PodNet, veth: &Veth, dropped: u64) -> HookLine {
    let program = HOST_PROGRAMS[HostHook::VethIngress as usize];
    HookLine {
        pod: net.pod.clone(),
        interface: veth.host_name.clone(),
        hook: program.direction.to_string(),
        program: program.name.to_owned(),
        seen: dropped,
        dropped,
        ..HookLine::default()
    }
}

fn by(attached: Option<bool>, by_link: bool) -> String {
    match attached {
        Some(true) if by_link => "tcx",
        Some(true) => "tc",
        _ => "",
    }
    .to_owned()
}

/// Returns the lines of the node's own hooks.
async fn nics(agent: &Agent) -> Result<Vec<HookLine>, String> {
    let Some(host) = agent.nics() else {
        return Ok(Vec::new());
    };
    let mut filters = host.plan.filters.clone();
    for (_, net) in agent.interfaces() {
        filters.extend(net.in_host.filters.iter().cloned());
    }
    let wanted = NamespacePlan {
        filters,
        ..NamespacePlan::default()
    };
    let state = agent
        .datapath
        .state_of_host(&agent.host, &wanted, &[])
        .await;
    let state = state.ok();
    // On the NIC, or on every veth; `None` if it belongs nowhere, or that cannot be told.
    let attached = |program: &str, nic: &str| {
        let found = &state.as_ref()?.found.filters;
        let on_nic = |filter: &&Filter| filter.link == nic || !program.starts_with("host_nic");
        let mut places = wanted
            .filters
            .iter()
            .filter(|filter| filter.program == program)
            .filter(on_nic)
            .peekable();
        places.peek()?;
        Some(places.all(|filter| found.contains(filter)))
    };
    let mut lines = Vec::new();
    for nic in &host.nics {
        let counters = agent
            .datapath
            .host
            .counters(nic)
            .map_err(|e| e.to_string())?;
        for program in HOST_PROGRAMS {
            let counted = counters.hooks[program.hook as usize];
            let on_egress = program.hook == HostHook::NicEgress;
            let there = attached(program.name, &nic.name);
            let mut at_nic = wanted.filters.iter();
            let at_nic =
                at_nic.find(|filter| filter.link == nic.name && filter.program == program.name);
            let by_link =
                at_nic.is_some_and(|filter| agent.datapath.is_by_link(filter, nic.ifindex));
            lines.push(HookLine {
                pod: String::new(),
                interface: nic.name.clone(),
                hook: program.direction.to_string(),
                program: program.name.to_owned(),
                attached: there,
                by: by(there, by_link),
                wrong_nic: if on_egress {
                    counters.wrong_nic + counters.wrong_nic_passed
                } else {
                    0
                },
                wrong_nic_passed: if on_egress {
                    counters.wrong_nic_passed
                } else {
                    0
                },
                ..HookLine::counting(&counted)
            });
        }
    }
    Ok(lines)
}

/// Returns the programs that are attached in the pod; `None` if it cannot be inspected.
async fn attached(net: &PodNet) -> Option<HashSet<Filter>> {
    let Evidence::Present(netns) = net.namespace().ok()? else {
        return None;
    };
    let place = format!("in {}", net.netns.display());
    let netlink = netns.run(|| Netlink::open(place)).ok()?.ok()?;
    let state = NamespaceState::read(&netlink, &net.in_pod).await.ok()?;
    Some(state.found.filters.into_iter().collect())
}
