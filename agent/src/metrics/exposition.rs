//! The text of a snapshot. The order is that of the code, so that a diff of two scrapes can be read.

mod format;
mod node;
mod out;
mod programs;

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};

pub use format::Format;
use out::{Labels, Out, flag};

use super::snapshot::Snapshot;

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let version: Labels<'_> = vec![("version", self.version.as_str())];
        let kind = MetricType::Info;
        let mut build =
            out.0
                .encode_descriptor("ebbtide_build", "The release; always 1.", None, kind)?;
        build.encode_info(&version)?;
        if let Some(leads) = self.leads {
            out.gauge(
                "ebbtide_controller_leader",
                "Whether this controller is the elected one, which writes the cluster-wide objects.",
                flag(leads),
            )?;
        }
        if let Some(node) = &self.node {
            node::of_node(&mut out, node)?;
        }
        let calls = self.api_calls.iter();
        let calls: Vec<_> = calls
            .map(|(verb, answer, n)| (*verb, answer.to_string(), *n))
            .collect();
        out.counters(
            "ebbtide_kube_requests",
            "Requests to the API server by verb (WATCH: a watch was begun) and status code; error: there was no answer.",
            calls.iter().map(|(verb, code, n)| (vec![("verb", *verb), ("code", code)], *n)),
        )?;
        of_process(&mut out, self)
    }
}

fn of_process(out: &mut Out<'_>, snapshot: &Snapshot) -> fmt::Result {
    let process = &snapshot.process;
    let kind = MetricType::Counter;
    let mut cpu = out.0.encode_descriptor(
        "process_cpu",
        "Total user and system CPU time spent in seconds.",
        Some(&Unit::Seconds),
        kind,
    )?;
    let none: Labels<'_> = Vec::new();
    ConstCounter::new(process.cpu_seconds).encode(cpu.encode_family(&none)?)?;
    out.gauges_in(
        "process_resident_memory",
        "Resident memory size in bytes.",
        Some(Unit::Bytes),
        [(Vec::new(), process.resident_bytes as f64)],
    )?;
    out.gauge(
        "process_open_fds",
        "Number of open file descriptors.",
        process.open_fds as f64,
    )?;
    out.gauge(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        process.max_fds as f64,
    )?;
    out.seconds(
        "process_start_time",
        "Start time of the process since unix epoch in seconds.",
        process.start_seconds,
    )
}
