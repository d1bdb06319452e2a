//! Puts a plan into the kernel.

use std::collections::HashMap;

use crate::{
    datapath::Datapath,
    netlink::{
        Batch, Netlink,
        link::Link,
        model::NamespacePlan,
        netns::{Evidence, Netns},
        sysctl,
    },
};

use super::{Error, PodNet, answer::answer};

/// Whether the pod's links are to be made, or may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Nothing is there: a link of the same name is somebody else's, and an error.
    New,
    /// An earlier attempt, or an earlier agent, may have made them: only what is missing is made.
    Ensure,
}

/// Applies `net`, and with it `nic`, the host's routing for its master. Every object but a link is
/// put there or replaced, so applying twice is applying once.
///
/// # Errors
/// The first refusal of the kernel. What was made until then stays: [`remove`](super::remove) it.
pub async fn apply(
    net: &PodNet,
    nic: &NamespacePlan,
    host: &Netlink,
    datapath: &Datapath,
    links: Links,
) -> Result<(), Error> {
    let Evidence::Present(netns) = net.namespace()? else {
        return Err(Error::NamespaceGone(net.netns.clone()));
    };
    let wanted = match links {
        Links::New => Wanted {
            ipvlan: net.ipvlan.is_some(),
            veth: net.veth.is_some(),
        },
        Links::Ensure => wanted(net, host, &netns).await?,
    };
    make_links(net, host, &netns, wanted).await?;
    datapath.register(&net.ips())?;
    let pod = enter(net, netns).await?;
    let (in_pod, in_host) = futures::join!(
        configure_pod(net, &pod, datapath),
        configure_host(net, nic, host, datapath)
    );
    in_pod.and(in_host)
}

#[derive(Clone, Copy)]
struct Wanted {
    ipvlan: bool,
    veth: bool,
}

/// What is missing of the links. A veth end without the other has lost its pair's namespace and
/// goes with it, so looking at the pod's side is enough.
async fn wanted(net: &PodNet, host: &Netlink, netns: &Netns) -> Result<Wanted, Error> {
    let pod = open_inside(netns)?;
    let ipvlan = match &net.ipvlan {
        Some(ipvlan) => pod.link(&ipvlan.name).await?.is_none(),
        None => false,
    };
    let veth = match &net.veth {
        Some(veth) => {
            pod.link(&veth.pod_name).await?.is_none() && host.link(&veth.host_name).await?.is_none()
        }
        None => false,
    };
    Ok(Wanted { ipvlan, veth })
}

async fn make_links(
    net: &PodNet,
    host: &Netlink,
    netns: &Netns,
    wanted: Wanted,
) -> Result<(), Error> {
    let mut batch = Batch::default();
    if let Some(ipvlan) = net.ipvlan.as_ref().filter(|_| wanted.ipvlan) {
        let master = present(host, &ipvlan.master).await?.ifindex;
        batch.add_ipvlan(ipvlan, master, netns.raw_fd());
    }
    if let Some(veth) = net.veth.as_ref().filter(|_| wanted.veth) {
        batch.add_veth(veth, netns.raw_fd());
    }
    Ok(batch.run(host).await?)
}

fn open_inside(netns: &Netns) -> Result<Netlink, crate::netlink::Error> {
    let place = format!("in {}", netns.path().display());
    netns.run(|| Netlink::open(place))?
}

/// Makes the pod's settings and opens a netlink socket there, on one thread that ends.
async fn enter(net: &PodNet, netns: Netns) -> Result<Netlink, Error> {
    let settings = net.in_pod.sysctls.clone();
    let entered = tokio::task::spawn_blocking(move || {
        let place = format!("in {}", netns.path().display());
        netns.run(|| {
            settings.iter().try_for_each(sysctl::write)?;
            Netlink::open(place)
        })?
    });
    Ok(entered
        .await
        .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?)
}

/// The link, which must be there.
async fn present(netlink: &Netlink, name: &str) -> Result<Link, Error> {
    match netlink.link(name).await? {
        Some(link) => Ok(link),
        None => Err(Error::LinkGone {
            name: name.to_owned(),
            place: netlink.place().to_owned(),
        }),
    }
}

async fn configure_pod(net: &PodNet, pod: &Netlink, datapath: &Datapath) -> Result<(), Error> {
    let mut indices = HashMap::new();
    let mut batch = Batch::default();
    if let Some(loopback) = pod.link("lo").await?.filter(|link| !link.up) {
        batch.set_up(&loopback.name, loopback.ifindex, None);
    }
    if let Some(veth) = &net.veth {
        let link = present(pod, &veth.pod_name).await?;
        batch.put_right(&link, veth.mtu, Some(veth.pod_mac));
        batch.set_up(&veth.pod_name, link.ifindex, Some(&net.alias));
        indices.insert(link.name, link.ifindex);
    }
    let link = present(pod, &net.interface).await?;
    if let Some(ipvlan) = &net.ipvlan {
        batch.put_right(&link, ipvlan.mtu, None);
        batch.set_up(&link.name, link.ifindex, Some(&net.alias));
    }
    indices.insert(link.name, link.ifindex);
    if let Some(veth) = &net.shared_veth {
        let link = present(pod, &veth.pod_name).await?;
        indices.insert(link.name, link.ifindex);
    }
    add_objects(&mut batch, &net.in_pod, &indices, Some(datapath));
    Ok(batch.run(pod).await?)
}

async fn configure_host(
    net: &PodNet,
    nic: &NamespacePlan,
    host: &Netlink,
    datapath: &Datapath,
) -> Result<(), Error> {
    let mut indices = HashMap::new();
    let mut batch = Batch::default();
    let mut master = None;
    if let Some(ipvlan) = &net.ipvlan {
        let link = present(host, &ipvlan.master).await?;
        master = Some(link.ifindex);
        indices.insert(link.name, link.ifindex);
    }
    let owned: Vec<_> = net
        .addresses
        .iter()
        .map(|a| (a.address.addr(), a.gateway.is_some()))
        .collect();
    datapath.host.own_pod(&owned, master)?;
    answer(net, host, datapath).await?;
    if let Some(veth) = &net.veth {
        for setting in &net.in_host.sysctls {
            sysctl::write(setting)?;
        }
        let link = present(host, &veth.host_name).await?;
        batch.put_right(&link, veth.mtu, Some(veth.host_mac));
        batch.set_up(&veth.host_name, link.ifindex, Some(&net.alias));
        indices.insert(link.name, link.ifindex);
    }
    if let Some(veth) = &net.shared_veth {
        let link = present(host, &veth.host_name).await?;
        indices.insert(link.name, link.ifindex);
    }
    add_objects(&mut batch, nic, &indices, None);
    add_objects(&mut batch, &net.in_host, &indices, Some(datapath));
    Ok(batch.run(host).await?)
}

/// Objects of links that `indices` does not have are left out: there are none in a plan whose
/// links were just made.
fn add_objects(
    batch: &mut Batch,
    plan: &NamespacePlan,
    indices: &HashMap<String, u32>,
    datapath: Option<&Datapath>,
) {
    for object in &plan.addresses {
        if let Some(index) = indices.get(&object.link) {
            batch.add_address(object, *index);
        }
    }
    for object in &plan.neighbours {
        if let Some(index) = indices.get(&object.link) {
            batch.add_neighbour(object, *index);
        }
    }
    for object in &plan.routes {
        if let Some(index) = indices.get(&object.link) {
            batch.add_route(object, *index);
        }
    }
    for object in &plan.rules {
        batch.add_rule(object);
    }
    for object in &plan.filters {
        let program = datapath.and_then(|d| d.program(&object.program));
        if let (Some(index), Some(program)) = (indices.get(&object.link), program) {
            batch.add_filter(object, *index, program);
        }
    }
}
