//! Puts the host's part into the kernel.

use std::collections::HashMap;

use ebbtide_layout::HOST_MAC;
use tracing::warn;

use super::{HostPlan, NodeFacts, host::STEER};
use crate::{
    datapath::{self, Datapath},
    netlink::{
        self, Batch, Netlink,
        model::{Mac, Sysctl},
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
const STEER_MTU: u32 = 65535;

/// Makes the link [`STEER`] and gives its index; `None`, with a word in the log, where the kernel
/// has no such links.
pub async fn steer(host: &Netlink) -> Option<u32> {
    match make_steer(host).await {
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

async fn make_steer(host: &Netlink) -> Result<Option<u32>, netlink::Error> {
    if host.link(STEER).await?.is_none() {
        let mut batch = Batch::default();
        batch.add_dummy(STEER, Mac(HOST_MAC));
        batch.run(host).await?;
    }
    let setting = |path: &str, value: &str| Sysctl {
        path: path.replace("STEER", STEER),
        value: value.to_owned(),
    };
    sysctl::write_all(&[
        // No link-local address, no router solicitations into nowhere (`IN6_ADDR_GEN_MODE_NONE`).
        setting("net/ipv6/conf/STEER/addr_gen_mode", "1"),
        // All of the world's addresses come in here. Where `all` is strict, the mark and its rule
        // satisfy the filter.
        setting("net/ipv4/conf/STEER/rp_filter", "0"),
    ])?;
    let Some(link) = host.link(STEER).await? else {
        return Ok(None);
    };
    let mut batch = Batch::default();
    batch.put_right(&link, STEER_MTU, Some(Mac(HOST_MAC)));
    batch.set_up(STEER, link.ifindex, Some("ebbtide"));
    batch.run(host).await?;
    Ok(Some(link.ifindex))
}

/// Applies the plan: first the maps, then the programs that look into them. Every object is put
/// there or replaced, so applying twice is applying once.
///
/// # Errors
/// The first refusal of the kernel.
pub async fn apply(
    host_plan: &HostPlan,
    steer: Option<u32>,
    facts: &NodeFacts,
    host: &Netlink,
    datapath: &Datapath,
) -> Result<(), Error> {
    let HostPlan { nics, plan } = host_plan;
    datapath.host.set(nics, steer)?;
    sysctl::write_all(&plan.sysctls)?;
    let indices: HashMap<&str, u32> = facts
        .nics
        .iter()
        .map(|nic| (nic.name.as_str(), nic.ifindex))
        .chain(steer.map(|index| (STEER, index)))
        .collect();
    let mut batch = Batch::default();
    for route in &plan.routes {
        if let Some(index) = indices.get(route.link.as_str()) {
            batch.add_route(route, *index);
        }
    }
    for rule in &plan.rules {
        batch.add_rule(rule);
    }
    // Before a packet is marked there are the tables that the marks lead to.
    batch.run(host).await?;
    let mut batch = Batch::default();
    let programs = datapath.programs();
    for filter in &plan.filters {
        if let Some(index) = indices.get(filter.link.as_str()) {
            datapath.attach_in_host(&mut batch, &programs, filter, *index);
        }
    }
    batch.run(host).await?;
    let all: Vec<u32> = facts.nics.iter().map(|nic| nic.ifindex).collect();
    Ok(datapath.keep_nics(&all)?)
}
