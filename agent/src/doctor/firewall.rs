//! Foreign firewall rules that drop or masquerade pods' packets.

mod programs;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_kernel::netfilter::{Hook, Packet, Protocol};
use ebbtide_types::{Family, IpvlanMode};
use programs::{Rules, Unseen};

use super::{Finding, Severity};
use crate::{agent::Agent, host_root::HostRoot};
pub use programs::may_have_nft;

/// An address of a pod, and the interfaces that its packets pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pod {
    address: IpAddr,
    nic: String,
    /// Whether netfilter sees what it sends by the NIC.
    is_seen: bool,
    /// The host's end of its veth.
    veth: Option<String>,
}

/// Reports what the rules do to these pods.
fn judge(rules: &Rules, pods: &BTreeSet<Pod>) -> Vec<Finding> {
    let mut findings = judge_sent(rules, pods);
    findings.extend(judge_blocks(rules, pods));
    findings
}

/// Reports what the rules do to packets that pods send by their NIC.
fn judge_sent(rules: &Rules, pods: &BTreeSet<Pod>) -> Vec<Finding> {
    // One finding for each rule, however many pods it catches: whether all, how many, and the remedy.
    let mut masquerades: BTreeMap<String, (bool, usize, String)> = BTreeMap::new();
    let mut drops = masquerades.clone();
    for (family, rules) in &rules.sets {
        for pod in of_family(pods, *family).filter(|pod| pod.is_seen) {
            let packet = |state| Packet::sent(pod.address, &pod.nic, state);
            let found = [
                (rules.masquerades(&packet("NEW")), &mut masquerades),
                (rules.drops(&packet("INVALID")), &mut drops),
            ];
            for (caught, all) in found {
                for one in caught {
                    let rule = format!("{family}, {}", one.rule);
                    let entry = all.entry(rule).or_insert((true, 0, one.remedy));
                    entry.0 &= one.all;
                    entry.1 += 1;
                }
            }
        }
    }
    let finding = |(rule, (all, addresses, remedy)): (String, (bool, usize, String)), harm| {
        let would = if all { "would" } else { "may" };
        Finding {
            severity: if all {
                Severity::Serious
            } else {
                Severity::Warning
            },
            what: format!(
                "a firewall rule of others {would} {harm} {addresses} pod address(es) on ipvlan \
                 l3: {rule}"
            ),
            hint: format!(
                "{remedy}, with PODS the pools' subnets; or set `exemptFromMasquerade: true` in the \
                 agent's configuration; or use mode l2, whose packets netfilter does not see \
                 (docs/modes.md)"
            ),
        }
    };
    let translate = "give another source address to";
    let masquerades = masquerades.into_iter().map(|one| finding(one, translate));
    let drops = drops.into_iter().map(|one| {
        let drop = "drop replies of TCP servers, half seen by conntrack, from";
        finding(one, drop)
    });
    masquerades.chain(drops).collect()
}

fn of_family(pods: &BTreeSet<Pod>, family: Family) -> impl Iterator<Item = &Pod> {
    let pods = pods.iter();
    pods.filter(move |pod| Family::of(pod.address) == family)
}

/// The service that every node has.
const KUBELET: &str = "the kubelet (TCP 10250)";

/// The services of their node that pods use.
const OF_NODE: [(&str, Protocol, u16); 3] = [
    (KUBELET, Protocol::Tcp, 10250),
    ("node-local DNS (UDP 53)", Protocol::Udp, 53),
    (
        "the API server, if it runs there (TCP 6443)",
        Protocol::Tcp,
        6443,
    ),
];

/// Returns the new connections through a pod's veth, each with its purpose.
fn requests(pod: &Pod) -> Vec<(&'static str, Packet<'_>)> {
    let Some(veth) = &pod.veth else {
        return Vec::new();
    };
    let (address, nic) = (pod.address, &pod.nic);
    let sent_on = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|of| {
        [
            ("to", Packet::to_pod(address, nic, veth, of)),
            ("from", Packet::from_pod(address, veth, nic, of)),
        ]
    });
    let of_node = OF_NODE
        .map(|(what, protocol, port)| (what, Packet::to_node(address, veth, protocol, port)));
    sent_on.chain(of_node).collect()
}

/// A rule or policy that drops packets to or from pods' veths.
struct Block {
    /// Whether it does so for certain.
    is_certain: bool,
    pods: BTreeSet<IpAddr>,
    requests: Vec<&'static str>,
    remedy: String,
}

/// Reports what the rules do to packets to and from pods' veths.
fn judge_blocks(rules: &Rules, pods: &BTreeSet<Pod>) -> Vec<Finding> {
    // One finding for each rule, however many pods and requests it catches.
    let mut blocks: BTreeMap<(bool, String), Block> = BTreeMap::new();
    for (family, rules) in &rules.sets {
        for pod in of_family(pods, *family) {
            for (request, packet) in requests(pod) {
                let is_input = packet.hook() == Hook::Input;
                for one in rules.blocks(&packet) {
                    let rule = (is_input, format!("{family}, {}", one.rule));
                    let block = blocks.entry(rule).or_insert_with(|| Block {
                        is_certain: false,
                        pods: BTreeSet::new(),
                        requests: Vec::new(),
                        remedy: one.remedy,
                    });
                    block.is_certain |= one.all;
                    block.pods.insert(pod.address);
                    if !block.requests.contains(&request) {
                        block.requests.push(request);
                    }
                }
            }
        }
    }
    let findings = blocks.into_iter().map(|((is_input, rule), block)| {
        let would = if block.is_certain { "would" } else { "may" };
        let (pods, requests) = (block.pods.len(), &block.requests);
        let what = match is_input {
            true => format!(
                "drop what {pods} pod address(es) send to this node itself, which pods then cannot reach: {}",
                requests.join(", ")
            ),
            false => format!(
                "drop new connections {} {pods} pod address(es) that this node sends on: NodePorts and Services of \
                 pods time out",
                requests.join(" and ")
            ),
        };
        let is_serious = block.is_certain && (!is_input || requests.contains(&KUBELET));
        Finding {
            severity: match is_serious {
                true => Severity::Serious,
                false => Severity::Warning,
            },
            what: format!("a firewall rule of others {would} {what}: {rule}"),
            hint: format!(
                "{}, with PODS the pools' subnets, and keep it where the firewall keeps its rules",
                block.remedy
            ),
        }
    });
    findings.collect()
}

/// Reports firewall rules that catch what this node's pods send and receive.
pub(super) async fn firewall(agent: &Agent) -> Vec<Finding> {
    let interfaces = agent.interfaces();
    let pods = interfaces.iter().filter_map(|(_, net)| {
        let own = net.ipvlan.as_ref()?;
        let pod = move |address| Pod {
            address,
            nic: own.master.clone(),
            is_seen: own.mode != IpvlanMode::L2 && !net.host_bypass,
            veth: net.host_veth().map(|veth| veth.host_name.clone()),
        };
        Some(net.ips().into_iter().map(pod))
    });
    let pods: BTreeSet<Pod> = pods.flatten().collect();
    let pods: BTreeSet<Pod> = pods
        .into_iter()
        .filter(|pod| pod.is_seen || pod.veth.is_some())
        .collect();
    if pods.is_empty() {
        return Vec::new();
    }
    let rules = tokio::task::spawn_blocking(|| Rules::read(HostRoot::get())).await;
    let rules = rules.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    let mut findings = judge(&rules, &pods);
    findings.extend(rules.unseen.iter().map(unseen));
    findings
}

/// Reports rules that could not be read.
fn unseen(what: &Unseen) -> Finding {
    Finding {
        severity: Severity::Note,
        what: format!("others' firewall rules could not be looked at: {what}"),
        hint: "install the program on the node (an agent in a container needs `agent.hostRoot: true` in the chart, or \
                  --host-root), or look there yourself for MASQUERADE, which what pods send by their NIC must not meet \
                  (docs/modes.md), and for FORWARD and INPUT that drop what comes and goes by their veths"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests;
