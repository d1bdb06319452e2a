//! The text of a snapshot. The order is that of the code, so that a diff of two scrapes can be read.

use std::fmt;

use ebbtide_kernel::datapath::{HOST_PROGRAMS, PROGRAMS};
use ebbtide_layout::{Counters, MAX_BUCKETS, Spoofed};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, prometheus_text, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::snapshot::{CloudState, InterfaceKind, NodeState, PoolState, QueueState, Snapshot};

/// A format of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Returns the one that a client accepts: OpenMetrics if it names it, since the other one is for all.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let mut kinds = accept.split(',');
        match kinds.any(|kind| kind.trim().starts_with("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Returns its media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    pub(super) fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut written = String::new();
        match self {
            Self::Prometheus => prometheus_text::encode(&mut written, registry)?,
            Self::OpenMetrics => text::encode(&mut written, registry)?,
        }
        Ok(written)
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes metrics one after the other.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauges<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'s>, f64)>,
    ) -> fmt::Result {
        self.gauges_in(name, help, None, samples)
    }

    fn gauges_in<'s>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (Labels<'s>, f64)>,
    ) -> fmt::Result {
        let kind = MetricType::Gauge;
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, [(Vec::new(), value)])
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let unit = Some(Unit::Seconds);
        self.gauges_in(name, help, unit, [(Vec::new(), value)])
    }

    /// The name of a counter is without `_total`, which the text has.
    fn counters<'s>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'s>, u64)>,
    ) -> fmt::Result {
        let kind = MetricType::Counter;
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

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
            of_node(&mut out, node)?;
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

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn of_node(out: &mut Out<'_>, node: &NodeState) -> fmt::Result {
    out.gauge(
        "ebbtide_ready",
        "Whether the agent answers the CNI plugin.",
        flag(node.is_ready),
    )?;
    out.gauge(
        "ebbtide_installed",
        "Whether plugin and network configuration are on the host as they should be.",
        flag(node.is_installed),
    )?;
    of_pools(out, &node.pools)?;
    let kinds = [InterfaceKind::Ipvlan, InterfaceKind::Chained];
    let count = |kind| {
        let found = node.interfaces.iter().find(|(known, _)| *known == kind);
        found.map_or(0, |(_, count)| *count)
    };
    out.gauges(
        "ebbtide_interfaces",
        "Pods' interfaces, by who made them: the agent (ipvlan), or another plugin (chained).",
        kinds.map(|kind| (vec![("kind", kind.name())], count(kind) as f64)),
    )?;
    out.gauge(
        "ebbtide_interfaces_not_reconciled",
        "Interfaces that ran before the agent and are not compared with their plan yet.",
        node.not_reconciled as f64,
    )?;
    out.gauge(
        "ebbtide_addresses_on_node",
        "Pods' addresses that the node takes for its own, as something assigned them to a link.",
        node.addresses_on_node as f64,
    )?;
    let problems = &node.problems;
    out.gauges(
        "ebbtide_declared_problems",
        "Declared objects that are not used as written: not at all, without a field, without some addresses.",
        [
            ("left_out", problems.left_out),
            ("field_ignored", problems.field_ignored),
            ("narrowed", problems.narrowed),
        ]
        .map(|(consequence, count)| (vec![("consequence", consequence)], count as f64)),
    )?;
    out.gauge(
        "ebbtide_networks_in_other_mode",
        "Networks that want another ipvlan mode than their NIC has: their pods fail.",
        problems.other_mode as f64,
    )?;
    of_queue(out, &node.queue)?;
    of_programs(out, node)?;
    if let Some(flows) = &node.flows {
        out.gauge(
            "ebbtide_flows",
            "Flows of pods that the programs remember.",
            flows.flows as f64,
        )?;
        out.gauge(
            "ebbtide_flow_table_buckets",
            "Buckets of the table of flows that are in use.",
            flows.buckets as f64,
        )?;
        out.gauge(
            "ebbtide_flow_table_max_buckets",
            "Buckets that the table of flows may have.",
            f64::from(MAX_BUCKETS),
        )?;
    }
    match &node.cloud {
        Some(cloud) => of_cloud(out, cloud),
        None => Ok(()),
    }
}

fn of_pools(out: &mut Out<'_>, pools: &[PoolState]) -> fmt::Result {
    let labels = |pool: &'_ PoolState| {
        // Borrowed anew for each sample.
        (pool.name.clone(), pool.family.clone())
    };
    let named: Vec<_> = pools.iter().map(labels).collect();
    let all = || pools.iter().zip(&named);
    out.gauges(
        "ebbtide_pool_addresses",
        "Addresses of the pools that serve this node, by state.",
        all().flat_map(|(pool, (name, family))| {
            [
                ("free", pool.free),
                ("used", pool.used),
                ("cooldown", pool.cooldown),
                ("withheld", pool.withheld),
            ]
            .map(|(state, count)| {
                let labels = vec![
                    ("pool", name.as_str()),
                    ("family", family),
                    ("state", state),
                ];
                (labels, count as f64)
            })
        }),
    )?;
    out.gauges(
        "ebbtide_pool_capacity",
        "Addresses that a pool may hand out, whatever their state.",
        all().map(|(pool, (name, family))| {
            let labels = vec![("pool", name.as_str()), ("family", family.as_str())];
            (labels, pool.capacity as f64)
        }),
    )?;
    out.gauges(
        "ebbtide_pool_disabled",
        "Whether a pool hands out no new addresses, as declared.",
        all().map(|(pool, (name, family))| {
            let labels = vec![("pool", name.as_str()), ("family", family.as_str())];
            (labels, flag(pool.is_disabled))
        }),
    )
}

fn of_queue(out: &mut Out<'_>, queue: &QueueState) -> fmt::Result {
    out.gauge(
        "ebbtide_reconcile_queue_length",
        "Items (the node, containers) that are due to be compared with their plan, or are being compared.",
        queue.length as f64,
    )?;
    out.seconds(
        "ebbtide_reconcile_queue_oldest",
        "How long the item that is due for longest has waited.",
        queue.oldest.as_secs_f64(),
    )?;
    out.gauges(
        "ebbtide_reconcile_failing",
        "Items that are not as they should be, in spite of attempts: `ebbtidectl status` names them.",
        [
            (vec![("kind", "node")], flag(queue.node_fails)),
            (vec![("kind", "container")], queue.failing_containers as f64),
        ],
    )?;
    out.seconds(
        "ebbtide_reconcile_failing_oldest",
        "How long the item that fails for longest has failed.",
        queue.failing_for.as_secs_f64(),
    )?;
    let results = |kind: &'static str, counted: [u64; 3]| {
        let results = ["done", "busy", "failed"].into_iter().zip(counted);
        results.map(move |(result, count)| (vec![("kind", kind), ("result", result)], count))
    };
    out.counters(
        "ebbtide_reconciliations",
        "Comparisons with the plan, by result: as it should be, left for later as a command has it locked, failed.",
        results("node", queue.of_node).chain(results("container", queue.of_containers)),
    )
}

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

fn of_programs(out: &mut Out<'_>, node: &NodeState) -> fmt::Result {
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

fn of_cloud(out: &mut Out<'_>, cloud: &CloudState) -> fmt::Result {
    out.gauge(
        "ebbtide_cloud_wanted_nics",
        "NICs whose addresses networks want from the cloud's metadata.",
        cloud.wanted as f64,
    )?;
    if let Some(last_read) = cloud.last_read {
        out.seconds(
            "ebbtide_cloud_last_read_timestamp",
            "When the cloud's metadata was last read whole, since 1970.",
            last_read as f64,
        )?;
    }
    out.gauge(
        "ebbtide_cloud_read_failures",
        "How often on end the cloud's metadata could not be read; 0 after it could.",
        cloud.failures as f64,
    )?;
    out.gauges(
        "ebbtide_cloud_blocks",
        "Addresses and prefixes that the cloud assigned to NICs, by state: usable, waiting to be believed, held as they are not \
         told any more.",
        cloud.nics.iter().flat_map(|of| {
            [("usable", of.usable), ("waiting", of.waiting), ("held", of.held)].map(
                |(state, count)| {
                    (vec![("nic", of.nic.as_str()), ("state", state)], count as f64)
                },
            )
        }),
    )?;
    out.gauge(
        "ebbtide_cloud_withdrawn_addresses",
        "Pods' addresses that the cloud's metadata does not tell any more: these pods may not be reached.",
        cloud.withdrawn as f64,
    )
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
