//! Takes a plan out of the kernel.

use crate::{
    datapath::Datapath,
    netlink::{
        Batch, Netlink,
        model::{MAIN_TABLE, Rule},
        netns::Evidence,
    },
    node, timing,
};

use super::{Error, PodNet};

/// Removes what `net` put into the kernel, as far as it is there and ours; a link of the same name
/// that is somebody else's stays, and the log says so. When this returns, no interface has the
/// pod's addresses any more.
///
/// # Errors
/// When something of ours could not be removed, or the namespace could not be looked at: then the
/// addresses must not be given to anybody else.
pub async fn remove(net: &PodNet, host: &Netlink, datapath: &Datapath) -> Result<(), Error> {
    let pod = match net.namespace()? {
        Evidence::Gone => None,
        Evidence::Present(netns) => {
            let place = format!("in {}", netns.path().display());
            Some(netns.run(|| Netlink::open(place))??)
        }
    };
    // The two ends wait for their own RCU grace periods; together they wait once.
    let (in_pod, in_host) = futures::join!(
        async {
            match &pod {
                Some(pod) => timing::step("remove from the pod", in_pod(net, pod)).await,
                None => Ok(()),
            }
        },
        timing::step("remove from the host", in_host(net, host))
    );
    in_pod.and(in_host)?;
    datapath.unregister(&net.ips(), net.number())?;
    Ok(())
}

async fn in_pod(net: &PodNet, pod: &Netlink) -> Result<(), Error> {
    let mut batch = Batch::default();
    // A rule that leads to the main table is of use to the pod's other interfaces, and harms nobody.
    let own = |rule: &&Rule| rule.table != MAIN_TABLE;
    for rule in net.in_pod.rules.iter().filter(own) {
        batch.delete_rule(rule);
    }
    if let Some(ipvlan) = &net.ipvlan
        && let Some(link) = pod.link(&ipvlan.name).await?
    {
        if link.kind.as_deref() == Some("ipvlan") {
            batch.delete_link(&link.name, link.ifindex);
        } else {
            tracing::warn!(link = %link.name, netns = %net.netns.display(), "left alone: not ours");
        }
    }
    Ok(batch.run(pod).await?)
}

async fn in_host(net: &PodNet, host: &Netlink) -> Result<(), Error> {
    if let Some(veth) = &net.shared_veth {
        return beside(net, &veth.host_name, host).await;
    }
    let Some(veth) = &net.veth else {
        return Ok(());
    };
    let Some(link) = host.link(&veth.host_name).await? else {
        return Ok(());
    };
    if !node::is_pod_veth(&link) {
        tracing::warn!(link = %link.name, "left alone: not ours, though it has our name");
        return Ok(());
    }
    // Its routes and neighbours go with it.
    let mut batch = Batch::default();
    batch.delete_link(&link.name, link.ifindex);
    Ok(batch.run(host).await?)
}

/// What this interface has on another one's pair, which stays.
async fn beside(net: &PodNet, host_end: &str, host: &Netlink) -> Result<(), Error> {
    let Some(link) = host.link(host_end).await? else {
        return Ok(());
    };
    let mut batch = Batch::default();
    for route in &net.in_host.routes {
        batch.delete_route(route, link.ifindex);
    }
    for neighbour in &net.in_host.neighbours {
        batch.delete_neighbour(neighbour, link.ifindex);
    }
    Ok(batch.run(host).await?)
}
