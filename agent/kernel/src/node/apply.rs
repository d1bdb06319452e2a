//! Programs the host's side into the kernel, and removes it.

use std::collections::{BTreeSet, HashMap};

use ebbtide_types::Family;
use tracing::warn;

use super::{HostPlan, NodeFacts, REDIRECT_DEVICE, put_before_local};
use crate::{
    datapath::{self, Datapath},
    netlink::{
        self, Batch, Netlink,
        link::Link,
        model::{Action, Direction, Filter, Rule},
        sysctl,
    },
};

/// An error while programming the host's side into the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a link, route, rule or program.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A map or program is unusable.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
}

/// Applies the plan: first tables and rules, then maps, then the programs that read them. In the end it removes
/// Ebbtide's rules, routes and programs that are not in the plan, except the rules in `pods`. Every object is created
/// or replaced, so applying is idempotent.
///
/// A refused setting, route or rule concerns one NIC or family. So the rest is applied nevertheless, and the refusals
/// are returned: none, if everything succeeded.
///
/// # Errors
/// If the kernel does not answer, or refuses maps or programs.
pub async fn apply(
    host_plan: &HostPlan,
    redirect_device: Option<u32>,
    facts: &NodeFacts,
    pods: &Pods,
    host: &Netlink,
    datapath: &Datapath,
) -> Result<Vec<netlink::Error>, Error> {
    let HostPlan { nics, plan } = host_plan;
    let settings = sysctl::Settings::default();
    let set = plan.sysctls.iter().map(|sysctl| settings.write(sysctl));
    let mut refused: Vec<netlink::Error> = set.filter_map(Result::err).collect();
    let indices: HashMap<&str, u32> = facts
        .nics
        .iter()
        .map(|nic| (nic.name.as_str(), nic.ifindex))
        .chain(redirect_device.map(|index| (REDIRECT_DEVICE, index)))
        .collect();
    let mut batch = Batch::default();
    for route in &plan.routes {
        if let Some(index) = indices.get(route.link.as_str()) {
            batch.add_route(route, *index);
        }
    }
    for rule in in_order(&plan.rules) {
        batch.add_rule(rule);
    }
    // The rules and tables that marks select exist before any packet is marked.
    refused.extend(batch.run_all(host).await);
    datapath.host.set(nics, redirect_device)?;
    let mut batch = Batch::default();
    let programs = datapath.programs();
    let hooks = host.tc_hooks().await?;
    for filter in &plan.filters {
        if let Some(index) = indices.get(filter.link.as_str()) {
            let attached = datapath.attach_in_host(&mut batch, &hooks, &programs, filter, *index);
            if let Err(e) = attached {
                warn!("{e}; `ebbtidectl doctor` says what can be done");
            }
        }
    }
    refused.extend(batch.run_all(host).await);
    prune(host_plan, pods, host, datapath).await?;
    // Also of a family that needs none any more: an earlier agent may have ended in between.
    let families = Family::BOTH.into_iter().filter(|family| facts.has(*family));
    put_before_local(host, families).await?;
    Ok(refused)
}

/// Sorts rules so that none matches too much in between: the target of exceptions is added before them, and they before
/// the rules that they are exceptions from. The reverse is the order of removal.
pub(super) fn in_order(rules: &[Rule]) -> Vec<&Rule> {
    let mut rules: Vec<&Rule> = rules.iter().collect();
    rules.sort_by_key(|rule| (rule.action != Action::Nop, rule.priority));
    rules
}

/// Ebbtide's objects in the host that belong to pods, and stay.
#[derive(Debug, Default)]
pub struct Pods {
    /// The tables with the routes to the pods: to all, and to those whose address the node takes for its own.
    pub tables: [u32; 2],
    /// Rules in the pods' records.
    pub rules: BTreeSet<Rule>,
}

/// Removes objects of an earlier plan (maybe of an earlier agent) that this one does not have.
async fn prune(
    host_plan: &HostPlan,
    pods: &Pods,
    host: &Netlink,
    datapath: &Datapath,
) -> Result<(), Error> {
    let HostPlan { nics, plan } = host_plan;
    let links = host.links().await?;
    let ours = host.owned(&links).await?;
    let mut batch = Batch::default();
    for rule in in_order(&ours.rules).into_iter().rev() {
        if !plan.rules.contains(rule) && !pods.rules.contains(rule) {
            batch.delete_rule(rule);
        }
    }
    for route in &ours.routes {
        if !pods.tables.contains(&route.table) && !plan.routes.contains(route) {
            let mut links = links.iter();
            if let Some(link) = links.find(|link| link.name == route.link) {
                batch.delete_route(route, link.ifindex);
            }
        }
    }
    let hooks = host.tc_hooks().await?;
    let is_nic = |link: &Link| nics.iter().any(|nic| nic.ifindex == link.ifindex);
    let may_have_filters =
        |link: &&Link| hooks.are_at(link.ifindex) && !is_nic(link) && !super::is_pod_veth(link);
    for link in links.iter().filter(may_have_filters) {
        for direction in [Direction::Ingress, Direction::Egress] {
            for filter in host.filters_at(link.ifindex, direction).await? {
                // Somebody else's may have the same priority and handle.
                let program = filter.program_in_our_place();
                if let Some(program) = program.filter(|name| datapath::is_own_program(name)) {
                    let filter = Filter {
                        link: link.name.clone(),
                        direction,
                        program: program.to_owned(),
                        only_from: None,
                    };
                    batch.delete_filter(&filter, link.ifindex);
                }
            }
        }
    }
    for failure in batch.run_all(host).await {
        warn!("{failure}; it stays, and is tried again within 30 s");
    }
    let all: Vec<u32> = nics.iter().map(|nic| nic.ifindex).collect();
    Ok(datapath.retain_nics(&all)?)
}

/// Removes all of Ebbtide's objects from the host's NICs, when no pod needs them any more.
///
/// The node's own settings stay, since others may rely on them by now: that it forwards.
///
/// # Errors
/// If the kernel refuses a request.
pub async fn remove(pods: &Pods, host: &Netlink, datapath: &Datapath) -> Result<(), Error> {
    prune(&HostPlan::default(), pods, host, datapath).await?;
    put_before_local(host, Family::BOTH.into_iter()).await?;
    datapath.host.set(&[], None)?;
    if let Some(link) = host.link(REDIRECT_DEVICE).await? {
        let mut batch = Batch::default();
        batch.delete_link(REDIRECT_DEVICE, link.ifindex);
        batch.run(host).await?;
    }
    Ok(())
}
