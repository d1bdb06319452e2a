//! Removes a plan from the kernel.

use std::io;

use ebbtide_types::timing;

use crate::{
    datapath::Datapath,
    netlink::{
        self, Batch,
        direct::Direct,
        model::{Action, MAIN_TABLE, Rule},
        netns::Evidence,
    },
    node,
};

use super::{Error, PodNet};

/// Removes Ebbtide's objects in `net` that exist in the kernel. A foreign link of the same name stays, and a warning is
/// logged. Afterwards no interface has the pod's addresses any more.
///
/// # Errors
/// If one of Ebbtide's objects could not be removed, or the namespace could not be inspected: then the addresses must
/// not be assigned again.
pub async fn remove(net: &PodNet, datapath: &Datapath) -> Result<(), Error> {
    remove_from_network(net).await?;
    forget(net, datapath)
}

/// As [`remove`], without the programs' maps: where there is no datapath any more.
///
/// # Errors
/// As [`remove`].
pub async fn remove_from_network(net: &PodNet) -> Result<(), Error> {
    // The kernel answers a removal after RCU grace periods, and a socket's next request after that. So each removal has
    // a socket and a thread of its own, and all in flight wait together.
    let pod = match net.namespace()? {
        Evidence::Gone => None,
        Evidence::Present(netns) => {
            let net = net.clone();
            Some(netns.inside(move || in_pod(&net)))
        }
    };
    let host = {
        let net = net.clone();
        tokio::task::spawn_blocking(move || in_host(&net))
    };
    let (in_pod, in_host) = futures::join!(
        async {
            match pod {
                Some(pod) => timing::step("remove from the pod", pod).await,
                None => Ok(()),
            }
        },
        timing::step("remove from the host", host)
    );
    let panicked = |e| netlink::Error::new("remove from the host", io::Error::other(e));
    in_pod.and(in_host.map_err(panicked)?)
}

/// As [`remove`], if no link was created: links of these names are foreign.
///
/// # Errors
/// If a map is unusable.
pub fn forget(net: &PodNet, datapath: &Datapath) -> Result<(), Error> {
    Ok(datapath.unregister(&net.ips(), net.number())?)
}

fn in_pod(net: &PodNet) -> Result<(), Error> {
    let mut pod = Direct::open(format!("in {}", net.netns.display()))?;
    let mut batch = Batch::default();
    let (to_main, own): (Vec<&Rule>, Vec<&Rule>) = {
        let rules = net.in_pod.rules.iter();
        rules.partition(|rule| rule.action == Action::Table(MAIN_TABLE))
    };
    for rule in own {
        batch.delete_rule(rule);
    }
    if let Some(ipvlan) = &net.ipvlan
        && let Some(link) = pod.links(&[&ipvlan.name])?.get(&ipvlan.name)
    {
        if link.kind.as_deref() == Some("ipvlan") {
            batch.delete_link(&link.name, link.ifindex);
        } else {
            tracing::warn!(link = %link.name, netns = %net.netns.display(), "left alone: not ours");
        }
    }
    if net.ipvlan.is_none()
        && let Some(link) = pod.links(&[&net.interface])?.get(&net.interface)
    {
        // Another plugin's link stays, and what is on the veth is removed with it.
        for route in net.in_pod.routes.iter().filter(|r| r.link == net.interface) {
            batch.delete_route(route, link.ifindex);
        }
        let neighbours = net.in_pod.neighbours.iter();
        for neighbour in neighbours.filter(|n| n.link == net.interface) {
            batch.delete_neighbour(neighbour, link.ifindex);
        }
    }
    pod.run(batch)?;
    // A rule for the main table keeps another interface's packets from Ebbtide's tables: it is removed with the last of
    // these.
    if !to_main.is_empty() && !pod.has_owned_tables()? {
        let mut batch = Batch::default();
        for rule in to_main {
            batch.delete_rule(rule);
        }
        pod.run(batch)?;
    }
    Ok(())
}

fn in_host(net: &PodNet) -> Result<(), Error> {
    let Some(veth) = net.host_veth() else {
        return Ok(());
    };
    let mut host = Direct::open("in the host")?;
    let found = host.links(&[&veth.host_name])?;
    let Some(link) = found.get(&veth.host_name) else {
        return Ok(());
    };
    if net.shared_veth.is_some() {
        return remove_from_shared_veth(net, link.ifindex, &mut host);
    }
    if !node::is_pod_veth(link) {
        tracing::warn!(link = %link.name, "left alone: not ours, though it has our name");
        return Ok(());
    }
    // Its routes and neighbours are removed with it.
    let mut batch = Batch::default();
    batch.delete_link(&link.name, link.ifindex);
    Ok(host.run(batch)?)
}

/// Removes this interface's objects on another one's pair, which stays.
fn remove_from_shared_veth(net: &PodNet, host_end: u32, host: &mut Direct) -> Result<(), Error> {
    let mut batch = Batch::default();
    for route in &net.in_host.routes {
        batch.delete_route(route, host_end);
    }
    for neighbour in &net.in_host.neighbours {
        batch.delete_neighbour(neighbour, host_end);
    }
    Ok(host.run(batch)?)
}
