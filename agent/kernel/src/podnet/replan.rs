//! Plans an existing interface again, for a node that has changed.

use std::{collections::HashMap, net::IpAddr};

use ebbtide_types::{Family, settings::Settings};

use super::{Error, Existing, PlanError, PodAddress, PodNet, Sandbox, plan};
use crate::{
    netlink::{
        Batch, Netlink,
        model::{MAIN_TABLE, NamespacePlan},
        netns::Evidence,
    },
    node::NodeFacts,
};

/// Plans `net` again for the current node: its addresses (for the pod's routes to them), the MTU of the NIC, and the
/// gateways, which `gateway` returns. Addresses, names and tables stay.
///
/// # Errors
/// If the node cannot carry it any more.
pub fn replan(
    net: &PodNet,
    node: &NodeFacts,
    gateway: impl Fn(&PodAddress) -> Option<IpAddr>,
    settings: &Settings,
) -> Result<PodNet, PlanError> {
    let Some(spec) = &net.spec else {
        return Ok(net.clone());
    };
    let own = net.reply_families();
    let mut families = Family::BOTH.to_vec();
    families.retain(|family| net.shared_veth.is_some() && !own.contains(family));
    let existing = Existing {
        veth: net.shared_veth.clone(),
        tables: Vec::new(),
        others_defaults: net.others_defaults.clone(),
        in_main: net.in_main(),
        families,
        own_table: Some(net.table.unwrap_or(MAIN_TABLE)),
        marks: !net.accepts_marks(),
        foreign: spec.reply_rule == Some(true),
        bandwidth: None,
    };
    let sandbox = Sandbox {
        container_id: net.container_id.clone(),
        interface: net.interface.clone(),
        netns: net.netns.clone(),
        netns_inode: net.netns_inode,
        pid_namespace: net.pid_namespace,
        pod: net.pod.clone(),
    };
    let addresses: Vec<PodAddress> = net
        .addresses
        .iter()
        .map(|own| PodAddress {
            gateway: gateway(own),
            ..own.clone()
        })
        .collect();
    Ok(PodNet {
        delegate: net.delegate.clone(),
        ..plan(&sandbox, &existing, spec, &addresses, node, settings)?
    })
}

/// Returns `new` with only those objects in the pod that `old` does not have, and the programs and queues: to apply a change where
/// something else may be refused, as beside a foreign default route.
#[must_use]
pub fn difference(old: &PodNet, new: &PodNet) -> PodNet {
    let mut difference = new.clone();
    let (in_pod, old) = (&mut difference.in_pod, &old.in_pod);
    in_pod
        .sysctls
        .retain(|object| !old.sysctls.contains(object));
    in_pod
        .addresses
        .retain(|object| !old.addresses.contains(object));
    in_pod
        .neighbours
        .retain(|object| !old.neighbours.contains(object));
    in_pod.routes.retain(|object| !old.routes.contains(object));
    in_pod.rules.retain(|object| !old.rules.contains(object));
    difference
}

/// Removes the objects of `old` that `new` does not have, after `new` was applied.
///
/// # Errors
/// If the kernel refuses a request.
pub async fn prune(old: &PodNet, new: &PodNet, host: &Netlink) -> Result<(), Error> {
    let in_pod = surplus(&old.in_pod, &new.in_pod);
    let in_host = surplus(&old.in_host, &new.in_host);
    if in_pod != NamespacePlan::default()
        && let Evidence::Present(netns) = new.namespace()?
    {
        let place = format!("in {}", netns.path().display());
        let pod = netns.run(|| Netlink::open(place))??;
        delete(&in_pod, &pod).await?;
    }
    if in_host != NamespacePlan::default() {
        delete(&in_host, host).await?;
    }
    Ok(())
}

/// The routes, rules, neighbours, programs and queues of `old` that `new` does not replace.
pub(super) fn surplus(old: &NamespacePlan, new: &NamespacePlan) -> NamespacePlan {
    let mut surplus = NamespacePlan {
        routes: old.routes.clone(),
        rules: old.rules.clone(),
        neighbours: old.neighbours.clone(),
        filters: old.filters.clone(),
        queues: old.queues.clone(),
        ..NamespacePlan::default()
    };
    // A route to the same destination has been replaced.
    surplus.routes.retain(|route| {
        let mut same = new.routes.iter();
        !same.any(|n| n.destination == route.destination && n.table == route.table)
    });
    surplus.rules.retain(|rule| !new.rules.contains(rule));
    surplus.neighbours.retain(|neighbour| {
        let mut same = new.neighbours.iter();
        !same.any(|n| n.address == neighbour.address && n.link == neighbour.link)
    });
    // An attached program is replaced by the new one at its hook.
    surplus.filters.retain(|filter| {
        let mut same = new.filters.iter();
        !same.any(|n| {
            (&n.link, n.direction, n.is_limit())
                == (&filter.link, filter.direction, filter.is_limit())
        })
    });
    surplus.queues.retain(|queue| !new.queues.contains(queue));
    surplus
}

async fn delete(plan: &NamespacePlan, netlink: &Netlink) -> Result<(), Error> {
    let links = netlink.links().await?;
    let indices: HashMap<&str, u32> = links
        .iter()
        .map(|link| (link.name.as_str(), link.ifindex))
        .collect();
    let mut batch = Batch::default();
    for route in &plan.routes {
        if let Some(index) = indices.get(route.link.as_str()) {
            batch.delete_route(route, *index);
        }
    }
    for neighbour in &plan.neighbours {
        if let Some(index) = indices.get(neighbour.link.as_str()) {
            batch.delete_neighbour(neighbour, *index);
        }
    }
    for rule in &plan.rules {
        batch.delete_rule(rule);
    }
    for filter in &plan.filters {
        if let Some(index) = indices.get(filter.link.as_str()) {
            batch.delete_filter(filter, *index);
        }
    }
    for queue in &plan.queues {
        if let Some(index) = indices.get(queue.link.as_str()) {
            batch.delete_queue(queue, *index);
        }
    }
    Ok(batch.run(netlink).await?)
}
