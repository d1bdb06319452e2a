//! Puts the host's part into the kernel, and takes it away.

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

/// Why the host's part could not be put into the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Links, routes, rules, programs.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Maps.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
}

/// No packet is longer: kernels before 5.12 drop what is redirected to a link whose MTU it exceeds
/// (`is_skb_forwardable` in `__bpf_rx_skb`, net/core/filter.c).
const REDIRECT_DEVICE_MTU: u32 = 65535;

/// The index of the link [`REDIRECT_DEVICE`], if it is there and as it should be.
pub async fn find_redirect_device(host: &Netlink) -> Option<u32> {
    let link = host.link(REDIRECT_DEVICE).await.ok().flatten()?;
    (link.up && link.mac == Some(Mac(HOST_MAC))).then_some(link.ifindex)
}

/// Makes the link [`REDIRECT_DEVICE`] and gives its index; `None`, with a word in the log, where the kernel
/// has no such links.
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
    // All of the world's addresses come in here. Where `all` filters, the mark and its rule satisfy it.
    // Forwarding may be off by `default`, which a new link gets.
    let mut settings = vec![
        setting("net/ipv4/conf/STEER/rp_filter", "0"),
        setting("net/ipv4/conf/STEER/forwarding", "1"),
    ];
    if sysctl::root().join("net/ipv6").exists() {
        // No link-local address, no router solicitations into nowhere (`IN6_ADDR_GEN_MODE_NONE`).
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

/// Applies the plan: first the tables and rules, then the maps, then the programs that look into them; in the
/// end it takes away what of ours is not in it: rules, but for those that `pods` have, routes and programs. Every
/// object is put there or replaced, so applying twice is applying once.
///
/// A setting, route or rule that the kernel refuses concerns one NIC or family. So the rest is applied all the same, and
/// the refusals are what this gives: none, if all is well.
///
/// # Errors
/// When the kernel does not answer, or refuses maps or programs.
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
    // Before a packet is marked there are the rules and tables that the marks lead to.
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

/// Rules in an order in which nothing is taken meanwhile that is not to be: where exceptions lead to is there before they
/// are, and they before what they are from. Backwards it is the order to take them away.
fn in_order(rules: &[Rule]) -> Vec<&Rule> {
    let mut rules: Vec<&Rule> = rules.iter().collect();
    rules.sort_by_key(|rule| (rule.action != Action::Nop, rule.priority));
    rules
}

/// What of ours in the host belongs to pods, and stays.
#[derive(Debug, Default)]
pub struct Pods {
    /// The table with the routes to them.
    pub table: u32,
    /// Rules that their records have.
    pub rules: BTreeSet<Rule>,
}

/// Takes away what an earlier plan (maybe an earlier agent's) had and this one has not.
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

/// Takes everything of ours away from the host's NICs: there is no pod that needs it.
///
/// What the node itself was told stays, as somebody else may rely on it by now: that it forwards.
///
/// # Errors
/// The first refusal of the kernel.
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
