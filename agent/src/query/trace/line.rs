//! Describes a program's decision in words.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use ebbtide_kernel::datapath;
use ebbtide_layout::{Address, TraceEvent, Traced, reply_bit};
use serde::{Deserialize, Serialize};

use super::{Agent, Place};
use crate::query::protocol_name;

/// Verdicts (include/uapi/linux/pkt_cls.h).
const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

/// A line of `ebbtidectl trace`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceLine {
    /// Seconds since the trace began.
    pub time: f64,
    /// The program.
    pub program: String,
    /// The interface, in the pod or in the host, as the program's name indicates.
    pub interface: String,
    /// `tcp`, `udp`, ... or its number.
    pub protocol: String,
    /// The packet's source; the port is an identifier for echoes.
    pub source: SocketAddr,
    /// Its destination.
    pub destination: SocketAddr,
    /// Length in bytes, with the Ethernet header.
    pub length: u32,
    /// `skb->mark` before.
    pub mark_before: u32,
    /// `skb->mark` after.
    pub mark_after: u32,
    /// `pass`, `redirect` or `drop`.
    pub verdict: String,
    /// The reason for the verdict.
    pub reason: String,
}

/// Translates a program's numbers into names.
pub(super) struct Names {
    start: u64,
    pod: HashMap<u32, String>,
    host: HashMap<u32, String>,
    /// NICs by their bits of the mark.
    nics: Vec<(u32, String)>,
    /// The bits of the mark in the host that Ebbtide uses.
    marks: u32,
    /// The addresses of this node's pods.
    pods: HashSet<IpAddr>,
}

impl Names {
    pub(super) fn new(agent: &Agent, start: u64, places: &[Place]) -> Self {
        let names = |place: Option<&Place>| -> HashMap<u32, String> {
            let filters = place.map_or(&[][..], |place| &place.filters);
            filters
                .iter()
                .map(|(filter, index)| (*index, filter.link.clone()))
                .collect()
        };
        let nics = agent.nics();
        let nics = nics.iter().flat_map(|plan| &plan.nics);
        Self {
            start,
            pod: names(places.first()),
            host: names(places.get(1)),
            nics: nics.map(|nic| (nic.mark, nic.name.clone())).collect(),
            marks: agent.settings.nic_marks,
            pods: agent
                .interfaces()
                .iter()
                .flat_map(|(_, net)| net.ips())
                .collect(),
        }
    }

    fn is_a_pods(&self, address: &Address) -> bool {
        self.pods.contains(&datapath::address(*address))
    }

    pub(super) fn line(&self, event: &TraceEvent) -> TraceLine {
        let program = Traced::ALL.get(usize::from(event.program)).copied();
        let in_pod = matches!(
            program,
            Some(Traced::VethIngress | Traced::NicEgress | Traced::NicIngress)
        );
        let links = if in_pod { &self.pod } else { &self.host };
        let end =
            |address, port| SocketAddr::new(datapath::address(address), u16::from_be_bytes(port));
        TraceLine {
            time: event.time.saturating_sub(self.start) as f64 / 1e9,
            program: program.map_or("?", Traced::name).to_owned(),
            interface: links
                .get(&event.ifindex)
                .cloned()
                .unwrap_or_else(|| format!("#{}", event.ifindex)),
            protocol: protocol_name(event.protocol),
            source: end(event.source, event.source_port),
            destination: end(event.destination, event.destination_port),
            length: event.length,
            mark_before: event.mark_before,
            mark_after: event.mark_after,
            verdict: match event.verdict {
                PASS => "pass".to_owned(),
                DROP => "drop".to_owned(),
                REDIRECT => "redirect".to_owned(),
                other => other.to_string(),
            },
            reason: program.map_or_else(String::new, |program| self.reason(program, event)),
        }
    }

    fn reason(&self, program: Traced, event: &TraceEvent) -> String {
        const TCP: u8 = 6;
        let learned = event.learned != 0;
        let redirected = event.verdict == REDIRECT;
        let marked = event.mark_after != event.mark_before;
        let reply = reply_bit(self.marks);
        let bits = event.mark_after & self.marks;
        let nic = || self.nic(bits & !reply);
        match program {
            Traced::VethIngress if event.protocol == TCP => {
                "marked: the socket's replies go back by the veth".to_owned()
            }
            Traced::VethIngress if learned => {
                "marked and recorded: its replies go back by the veth".to_owned()
            }
            Traced::VethIngress => "marked".to_owned(),
            Traced::NicEgress if redirected && event.host_bypass != 0 => {
                "sent by the veth: by the host-stack bypass".to_owned()
            }
            Traced::NicEgress if redirected => {
                "it answers what came in by the veth: sent back there".to_owned()
            }
            Traced::NicEgress => "by the routing table".to_owned(),
            Traced::NicIngress if marked => {
                "its connection came in by the veth recently: its replies go by the host-stack bypass"
                    .to_owned()
            }
            Traced::NicIngress if learned => {
                "its flow comes in by the NIC now: its entry for the veth is removed".to_owned()
            }
            Traced::NicIngress => "its flow has no entry for the veth".to_owned(),
            Traced::HostNicIngress if redirected => {
                "a reply to what the host forwarded for the pod: to the host's stack".to_owned()
            }
            Traced::HostNicIngress if bits != 0 => {
                format!(
                    "for the node: marked with {}, which filters strictly",
                    nic()
                )
            }
            Traced::HostNicIngress if learned && event.protocol == TCP => {
                "for a pod: its connection came by the veth recently, so its replies go by the host-stack bypass in l3"
                    .to_owned()
            }
            Traced::HostNicIngress if learned => {
                "for a pod: its flow comes in by the NIC now: its entry for the veth is removed"
                    .to_owned()
            }
            Traced::HostNicIngress if self.is_a_pods(&event.destination) => {
                "for a pod: left to ipvlan".to_owned()
            }
            Traced::HostNicIngress => "for the node: passed on unchanged".to_owned(),
            Traced::HostNicEgress if redirected => {
                "its source is another NIC's: sent out by that one".to_owned()
            }
            Traced::HostNicEgress if learned => {
                "forwarded by the host: recorded for its replies".to_owned()
            }
            Traced::HostNicEgress => "the right NIC for its source".to_owned(),
            Traced::HostVethEgress if learned => {
                "a request that came in by a NIC: its number is in the frame".to_owned()
            }
            Traced::HostVethEgress => "not by a NIC, or by the only one".to_owned(),
            Traced::HostVethIngress if redirected => {
                "by the host-stack bypass, out by the pod's NIC".to_owned()
            }
            Traced::HostVethIngress if bits & !reply != 0 => {
                format!(
                    "a reply: its request came in by {}, so it leaves by it",
                    nic()
                )
            }
            Traced::HostVethIngress if marked => {
                "the pod's own: marked as forwarded by the host".to_owned()
            }
            Traced::HostVethIngress => "not an address of Ebbtide's pods".to_owned(),
        }
    }

    fn nic(&self, mark: u32) -> String {
        let nic = self.nics.iter().find(|(known, _)| *known == mark);
        nic.map_or_else(|| format!("mark {mark:#x}"), |(_, name)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_layout::{DEFAULT_NIC_MARKS, mapped};

    use super::*;

    #[test]
    fn a_decision_is_told_with_its_reason() {
        let names = Names {
            start: 1_000_000_000,
            pod: HashMap::from([(2, "veth0".to_owned()), (3, "eth0".to_owned())]),
            host: HashMap::from([(2, "ens5".to_owned())]),
            nics: vec![(2, "ens5".to_owned())],
            marks: DEFAULT_NIC_MARKS,
            pods: HashSet::from([[172, 31, 16, 4].into()]),
        };
        let event = |program: Traced, mark_after, verdict, learned| TraceEvent {
            time: 1_500_000_000,
            source: mapped([198, 51, 100, 50]),
            destination: mapped([172, 31, 16, 4]),
            source_port: 4000_u16.to_be_bytes(),
            destination_port: 53_u16.to_be_bytes(),
            ifindex: 2,
            mark_after,
            verdict,
            protocol: 17,
            program: program as u8,
            learned,
            ..TraceEvent::default()
        };
        for (program, mark, verdict, learned, interface, words) in [
            (Traced::VethIngress, 0x1000, PASS, 1, "veth0", "recorded"),
            (Traced::NicEgress, 0, REDIRECT, 0, "veth0", "sent back"),
            (Traced::NicEgress, 0, PASS, 0, "veth0", "routing table"),
            (Traced::NicIngress, 0x2000, PASS, 0, "veth0", "recently"),
            (
                Traced::HostVethIngress,
                0,
                REDIRECT,
                0,
                "ens5",
                "by the host-stack bypass",
            ),
            (
                Traced::HostNicIngress,
                2,
                PASS,
                0,
                "ens5",
                "marked with ens5",
            ),
            (
                Traced::HostVethIngress,
                0x42,
                PASS,
                0,
                "ens5",
                "came in by ens5",
            ),
            (Traced::HostNicIngress, 0, PASS, 0, "ens5", "for a pod"),
            (Traced::HostVethEgress, 0, PASS, 1, "ens5", "in the frame"),
            (Traced::HostVethEgress, 0, PASS, 0, "ens5", "the only one"),
            (
                Traced::HostNicEgress,
                0,
                REDIRECT,
                0,
                "ens5",
                "another NIC's",
            ),
        ] {
            let line = names.line(&event(program, mark, verdict, learned));
            assert!(line.reason.contains(words), "{line:?}");
            assert_eq!(line.interface, interface);
            assert_eq!((line.time, line.program.as_str()), (0.5, program.name()));
            assert_eq!(line.source.to_string(), "198.51.100.50:4000");
        }
    }
}
