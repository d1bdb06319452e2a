//! Programs the host's side into the kernel, and removes it.

use std::collections::{BTreeSet, HashMap};

use ebbtide_layout::HOST_MAC;
use ebbtide_types::Mac;
use tracing::warn;

use super::{HostPlan, NodeFacts, host::REDIRECT_DEVICE};
use crate::{
    datapath::{self, Datapath},
    netlink::{
        self, Batch, Netlink,
        link::Link,
        model::{Action, Rule, Sysctl},
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

/// MTU of the redirect device, which no packet exceeds: kernels before 5.12 drop what is redirected to a link with a
/// smaller MTU (`is_skb_forwardable` in `__bpf_rx_skb`, net/core/filter.c).
const REDIRECT_DEVICE_MTU: u32 = 65535;

/// Returns the index of the link [`REDIRECT_DEVICE`], if it exists in the desired state.
pub async fn find_redirect_device(host: &Netlink) -> Option<u32> {
    let link = host.link(REDIRECT_DEVICE).await.ok().flatten()?;
    (link.up && link.mac == Some(Mac(HOST_MAC))).then_some(link.ifindex)
}

/// Creates the link [`REDIRECT_DEVICE`] and returns its index. Returns `None`, and logs a warning, if the kernel has no
/// such links.
pub async fn redirect_device(host: &Netlink) -> Option<u32> {
    match make_redirect_device(host).await {
        Ok(index) => index,
        Err(e) => {
            warn!(
                "pods will reach Services only where the proxy masquerades (is the kernel module \
                 `dummy` there?): {e}"
            );
            None
        }
    }
}

async fn make_redirect_device(host: &Netlink) -> Result<Option<u32>, netlink::Error> {
    if host.link(REDIRECT_DEVICE).await?.is_none() {
        let mut batch = Batch::default();
        batch.add_dummy(REDIRECT_DEVICE, Mac(HOST_MAC));
        batch.run(host).await?;
    }
    let setting = |path: &str, value: &str| Sysctl {
        path: path.replace("STEER", REDIRECT_DEVICE),
        value: value.to_owned(),
    };
    // Packets with any source come in here. Where `all` filters, the mark and its rule satisfy it. Forwarding may be
    // off in `default`, which a new link inherits.
    let mut settings = vec![
        setting("net/ipv4/conf/STEER/rp_filter", "0"),
        setting("net/ipv4/conf/STEER/forwarding", "1"),
    ];
    if sysctl::root().join("net/ipv6").exists() {
        // No link-local address, no router solicitations (`IN6_ADDR_GEN_MODE_NONE`).
        settings.push(setting("net/ipv6/conf/STEER/addr_gen_mode", "1"));
    }
    sysctl::write_all(&settings)?;
    let Some(link) = host.link(REDIRECT_DEVICE).await? else {
        return Ok(None);
    };
    let mut batch = Batch::default();
    batch.repair(&link, REDIRECT_DEVICE_MTU, Some(Mac(HOST_MAC)));
    batch.set_up(REDIRECT_DEVICE, link.ifindex, Some("ebbtide"));
    batch.run(host).await?;
    Ok(Some(link.ifindex))
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
    Ok(refused)
}

/// Sorts rules so that none matches too much in between: the target of exceptions is added before them, and they before
/// the rules that they are exceptions from. The reverse is the order of removal.
fn in_order(rules: &[Rule]) -> Vec<&Rule> {
    let mut rules: Vec<&Rule> = rules.iter().collect();
    rules.sort_by_key(|rule| (rule.action != Action::Nop, rule.priority));
    rules
}

/// Ebbtide's objects in the host that belong to pods, and stay.
#[derive(Debug, Default)]
pub struct Pods {
    /// The table with the routes to the pods.
    pub table: u32,
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
    let ours = host.ours(&links).await?;
    let mut batch = Batch::default();
    for rule in in_order(&ours.rules).into_iter().rev() {
        if !plan.rules.contains(rule) && !pods.rules.contains(rule) {
            batch.delete_rule(rule);
        }
    }
    for route in &ours.routes {
        if route.table != pods.table && !plan.routes.contains(route) {
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
        datapath.detach_from_nic(&mut batch, &link.name, link.ifindex);
    }
    for failure in batch.run_all(host).await {
        warn!("{failure}; it stays until the next look");
    }
    let all: Vec<u32> = nics.iter().map(|nic| nic.ifindex).collect();
    Ok(datapath.keep_nics(&all)?)
}

/// Removes all of Ebbtide's objects from the host's NICs, when no pod needs them any more.
///
/// The node's own settings stay, since others may rely on them by now: that it forwards.
///
/// # Errors
/// If the kernel refuses a request.
pub async fn take_away(pods: &Pods, host: &Netlink, datapath: &Datapath) -> Result<(), Error> {
    prune(&HostPlan::default(), pods, host, datapath).await?;
    datapath.host.set(&[], None)?;
    if let Some(link) = host.link(REDIRECT_DEVICE).await? {
        let mut batch = Batch::default();
        batch.delete_link(REDIRECT_DEVICE, link.ifindex);
        batch.run(host).await?;
    }
    Ok(())
}
