//! What an agent tells of its node.

use std::fmt;

use ebbtide_layout::MAX_BUCKETS;

use super::{
    out::{Labels, Out, flag},
    programs::of_programs,
};
use crate::metrics::snapshot::{CloudState, InterfaceKind, NodeState, PoolState, QueueState};

pub(super) fn of_node(out: &mut Out<'_>, node: &NodeState) -> fmt::Result {
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

fn of_pool(pool: &PoolState) -> Labels<'_> {
    vec![("pool", pool.name.as_str()), ("family", pool.family)]
}

fn of_pools(out: &mut Out<'_>, pools: &[PoolState]) -> fmt::Result {
    out.gauges(
        "ebbtide_pool_addresses",
        "Addresses of the pools that serve this node, by state.",
        pools.iter().flat_map(|pool| {
            let states = [
                ("free", pool.free),
                ("used", pool.used),
                ("cooldown", pool.cooldown),
                ("withheld", pool.withheld),
            ];
            states.map(|(state, count)| {
                let mut labels = of_pool(pool);
                labels.push(("state", state));
                (labels, count as f64)
            })
        }),
    )?;
    out.gauges(
        "ebbtide_pool_capacity",
        "Addresses that a pool may hand out, whatever their state.",
        pools
            .iter()
            .map(|pool| (of_pool(pool), pool.capacity as f64)),
    )?;
    out.gauges(
        "ebbtide_pool_disabled",
        "Whether a pool hands out no new addresses, as declared.",
        pools
            .iter()
            .map(|pool| (of_pool(pool), flag(pool.is_disabled))),
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
