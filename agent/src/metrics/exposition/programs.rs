//! What the eBPF programs counted.

use std::fmt;

use ebbtide_kernel::datapath::{HOST_PROGRAMS, PROGRAMS};
use ebbtide_layout::{Counters, Spoofed};

use super::out::{Labels, Out};
use crate::metrics::snapshot::NodeState;

/// What a program in pods or at a NIC counted.
struct Row<'a> {
    program: &'static str,
    nic: &'a str,
    counted: &'a Counters,
}

impl<'a> Row<'a> {
    fn labels(&self) -> Labels<'a> {
        vec![("program", self.program), ("nic", self.nic)]
    }
}

pub(super) fn of_programs(out: &mut Out<'_>, node: &NodeState) -> fmt::Result {
    let on_nics = node.nics.iter().flat_map(|on| {
        let programs = HOST_PROGRAMS.iter().zip(&on.programs);
        programs.map(|(program, counted)| Row {
            program: program.name,
            nic: &on.name,
            counted,
        })
    });
    let pods = node.pods.iter().flat_map(|pods| &pods.programs);
    let in_pods = pods.flat_map(|(nic, counted)| {
        let programs = PROGRAMS.iter().zip(counted);
        programs.map(move |(program, counted)| Row {
            program: program.name,
            nic,
            counted,
        })
    });
    let rows: Vec<Row<'_>> = on_nics.chain(in_pods).collect();
    out.counters(
        "ebbtide_program_packets",
        "Packets that the eBPF programs saw, by NIC. nic_ingress and host_nic_ingress count of TCP only what opens a connection.",
        rows.iter().map(|row| (row.labels(), row.counted.seen)),
    )?;
    out.counters(
        "ebbtide_program_results",
        "What the eBPF programs did with packets: passed, marked, redirected to the NIC of their flow, dropped.",
        rows.iter().flat_map(|row| {
            let counted = row.counted;
            [
                ("passed", counted.passed),
                ("marked", counted.marked),
                ("redirected", counted.redirected),
                ("dropped", counted.dropped),
            ]
            .map(|(result, count)| {
                let labels = vec![("program", row.program), ("nic", row.nic), ("result", result)];
                (labels, count)
            })
        }),
    )?;
    out.counters(
        "ebbtide_flows_learned",
        "Flows that the eBPF programs remembered anew (at a NIC's ingress: forgot).",
        rows.iter().map(|row| (row.labels(), row.counted.learned)),
    )?;
    out.counters(
        "ebbtide_wrong_nic_packets",
        "Packets with the address of another NIC that were routed to this one: redirected to theirs, or passed to be lost in \
         the cloud, as its gateway is not known.",
        node.nics.iter().flat_map(|on| {
            [("redirected", on.wrong_redirected), ("passed", on.wrong_passed)].map(
                |(result, count)| (vec![("nic", on.name.as_str()), ("result", result)], count),
            )
        }),
    )?;
    out.counters(
        "ebbtide_bandwidth_dropped_packets",
        "Packets of pods with a limit of their bandwidth that were above it, and dropped, out of pods and into them.",
        node.limited.iter().flat_map(|limited| {
            [("egress", limited.egress), ("ingress", limited.ingress)]
                .map(|(direction, count)| (vec![("direction", direction)], count))
        }),
    )?;
    let Some(pods) = &node.pods else {
        return Ok(());
    };
    let by = |dropped: Spoofed| {
        [("nic", dropped.by_nic), ("veth", dropped.by_veth)]
            .map(|(by, count)| (vec![("by", by)], count))
    };
    out.counters(
        "ebbtide_spoofed_packets",
        "Packets that pods sent with addresses that are not theirs, which were dropped, by the interface that they took.",
        by(pods.spoofed),
    )?;
    out.counters(
        "ebbtide_metadata_dropped_packets",
        "Packets of pods to the cloud's metadata service, which were dropped, by the interface that they took.",
        by(pods.to_metadata),
    )
}
