//! Programs a plan into the kernel.
//!
//! One new thread does all of it and ends: it visits the pod's namespace to open a socket there, creates the links and
//! configures the host, then visits the pod again and configures it. No step waits for another thread. Each link is
//! requested and created by itself ([`links`]); then each half is one system call besides the settings.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ebbtide_types::{
    Mac,
    timing::{self, Laps},
};
use nix::errno::Errno;

use crate::{
    datapath::{Datapath, Programs, SendOptions},
    netlink::{
        self, Batch, Netlink,
        direct::Direct,
        link::Link,
        model::NamespacePlan,
        netns::{Evidence, Netns, Visits},
        sysctl,
    },
};

use super::{Error, PodNet, links, responder::enable_responder};

/// Whether the pod's links must be new, or may exist already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// None exists: a link of the same name is foreign, and an error.
    New,
    /// As [`New`](Self::New), and the NIC has no other child of Ebbtide's: foreign ones may have another mode.
    First,
    /// An earlier attempt, or an earlier agent, may have created them: only missing ones are created.
    Ensure,
}

/// Applies `net`, and with it `nic`, the host's routing for its master. Every object but a link is created or replaced,
/// so applying is idempotent.
///
/// # Errors
/// If the kernel refuses a request. What was created until then stays: [`remove`](super::remove()) it. If no link was,
/// the error is [`Error::NothingMade`], and [`forget`](super::forget) suffices.
pub async fn apply(
    net: &PodNet,
    nic: &NamespacePlan,
    host: &Netlink,
    datapath: &Datapath,
    links: Links,
) -> Result<(), Error> {
    let made = Arc::new(AtomicBool::new(false));
    let applied = attempt(net, nic, host, datapath, links, &made).await;
    applied.map_err(|error| match made.load(Ordering::Acquire) {
        true => error,
        false => Error::NothingMade(Box::new(error)),
    })
}

async fn attempt(
    net: &PodNet,
    nic: &NamespacePlan,
    host: &Netlink,
    datapath: &Datapath,
    links: Links,
    made: &Arc<AtomicBool>,
) -> Result<(), Error> {
    let Evidence::Present(netns) = net.namespace()? else {
        return Err(Error::NamespaceGone(net.netns.clone()));
    };
    if links == Links::Ensure {
        // The pod may be running: a guard without its addresses would drop what it sends.
        datapath.register(&net.ips(), net.number(), net.is_l3())?;
        write_veth_first(net, &netns, datapath)?;
    }
    // Before the programs that look for it.
    if let Some(bandwidth) = net.bandwidth() {
        datapath.limits.set(net.number(), &bandwidth)?;
    }
    let work = Work {
        net: net.clone(),
        nic: nic.clone(),
        links,
        programs: datapath.programs(),
        made: Arc::clone(made),
        laps: Laps::start(),
    };
    let done = netns.visit(|visits| work.run(visits));
    // In parallel; whatever its result, the thread has ended before anything is undone.
    let registered = match links {
        Links::Ensure => Ok(()),
        Links::New | Links::First => timing::at_once("register the pod", || {
            datapath.register(&net.ips(), net.number(), net.is_l3())
        }),
    };
    let made = done.await?;
    let (master, veth) = (made.master, made.veth);
    timing::adopt(made.laps);
    registered?;
    let owned: Vec<_> = net
        .addresses
        .iter()
        .map(|a| (a.address.addr(), a.gateway.is_some()))
        .collect();
    let (nic, mac) = master.unzip();
    datapath.host.register_pod(&owned, net.registered(), nic)?;
    datapath.set_send_options(&net.ips(), sending(net, veth, mac.flatten()))?;
    enable_responder(net, host, datapath).await?;
    Ok(made.configured?)
}

/// Writes the index of a running pod's end of the pair, if the programs do not know it, as with maps of a new layout:
/// programs that replace older ones redirect replies by it, and the routes lead to them as soon as they are applied.
fn write_veth_first(net: &PodNet, netns: &Netns, datapath: &Datapath) -> Result<(), Error> {
    let Some(pair) = net.host_veth() else {
        return Ok(());
    };
    if datapath.knows_veth(&net.ips()) {
        return Ok(());
    }
    let name = pair.pod_name.as_str();
    let place = format!("in {}", net.netns.display());
    let links = netns.run(|| Direct::open(place)?.links(&[name]))??;
    let veth = links.get(name).map(|link| link.ifindex);
    Ok(datapath.set_send_options(&net.ips(), sending(net, veth, None))?)
}

/// `veth`: the index of the pod's end of the pair; `mac`: the master's.
fn sending(net: &PodNet, veth: Option<u32>, mac: Option<Mac>) -> SendOptions {
    SendOptions {
        mac: mac.filter(|_| net.sends_frames()),
        veth,
        host_bypass: net.host_bypass,
        follows_tcp: !net.accepts_marks(),
        metadata: net.metadata,
    }
}

/// What the thread needs for applying a plan.
struct Work {
    net: PodNet,
    nic: NamespacePlan,
    links: Links,
    programs: Programs,
    /// Whether all links exist, created now or before.
    made: Arc<AtomicBool>,
    laps: Laps,
}

/// What the thread found and made.
struct Made {
    /// The master, if there is one.
    master: Option<Master>,
    /// The index of the pod's end of the pair.
    veth: Option<u32>,
    laps: Laps,
    /// The first of the pod's objects that the kernel refused. All others are there, and the programs need to know the
    /// pod all the same: a foreign default route, for instance, is never replaced.
    configured: Result<(), netlink::Error>,
}

/// The index and the link-layer address of a master.
type Master = (u32, Option<Mac>);

/// Links in a plan that exist, by name.
pub(super) type Found = HashMap<String, Link>;

impl Work {
    fn run(mut self, visits: &Visits<'_>) -> Result<Made, Error> {
        let mut host = Direct::open("in the host")?;
        let place = format!("in {}", self.net.netns.display());
        let mut pod = visits.inside(|| Direct::open(place))?;
        let (master, there) = self.in_host(visits.netns(), &mut pod, &mut host)?;
        let (veth, configured) = visits.inside(|| self.in_pod(&mut pod, there))?;
        Ok(Made {
            master,
            veth,
            laps: self.laps,
            configured,
        })
    }

    /// Returns the master's data; and the pod's links, if all existed.
    fn in_host(
        &mut self,
        netns: &Netns,
        pod: &mut Direct,
        netlink: &mut Direct,
    ) -> Result<(Option<Master>, Option<Found>), Error> {
        let net = &self.net;
        let pairs = net.host_veth().map(|veth| veth.host_name.as_str());
        let own = net.ipvlan.as_ref().map(|ipvlan| ipvlan.name.as_str());
        let names: Vec<&str> = net.master().into_iter().chain(pairs).chain(own).collect();
        let mut found = netlink.links(&names)?;
        let master = match net.master() {
            Some(name) => {
                let link = present(&found, name, netlink)?;
                Some((link.ifindex, link.mac))
            }
            None => None,
        };
        let there = links::make(net, self.links, netns, pod, (netlink, &mut found))?;
        self.made.store(true, Ordering::Release);
        self.laps.lap("make the links");
        let mut batch = Batch::default();
        if let Some(veth) = &net.veth {
            sysctl::Settings::of_the_host().write_all(&net.in_host.sysctls)?;
            let link = present(&found, &veth.host_name, netlink)?;
            batch.repair(link, veth.mtu, Some(veth.host_mac));
            batch.bring_up(link, &net.alias);
        }
        if let Some(veth) = &net.shared_veth {
            present(&found, &veth.host_name, netlink)?;
        }
        add_objects(&mut batch, &self.nic, &found, &self.programs);
        add_objects(&mut batch, &net.in_host, &found, &self.programs);
        run_batch(netlink, batch, self.links)?;
        self.laps.lap("configure the host");
        Ok((master, there))
    }

    /// Returns the index of the pod's end of the pair, and whether all was configured. `there`: the pod's links, if
    /// already read.
    fn in_pod(
        &mut self,
        pod: &mut Direct,
        there: Option<Found>,
    ) -> Result<(Option<u32>, Result<(), netlink::Error>), Error> {
        let net = &self.net;
        sysctl::write_all(&net.in_pod.sysctls)?;
        self.laps.lap("settings in the pod");
        let found = match there {
            Some(there) => there,
            None => links::inside(net, pod)?,
        };
        add_queues(pod, &net.in_pod, &found)?;
        let mut batch = Batch::default();
        if let Some(loopback) = found.get("lo").filter(|link| !link.up) {
            batch.set_up(&loopback.name, loopback.ifindex, None);
        }
        if let Some(veth) = &net.veth {
            let link = present(&found, &veth.pod_name, pod)?;
            batch.repair(link, veth.mtu, Some(veth.pod_mac));
            batch.bring_up(link, &net.alias);
        }
        let link = present(&found, &net.interface, pod)?;
        if let Some(ipvlan) = &net.ipvlan {
            batch.repair(link, ipvlan.mtu, None);
            batch.bring_up(link, &net.alias);
        }
        if let Some(veth) = &net.shared_veth {
            present(&found, &veth.pod_name, pod)?;
        }
        add_objects(&mut batch, &net.in_pod, &found, &self.programs);
        let configured = run_batch(pod, batch, self.links);
        self.laps.lap("configure the pod");
        let veth = net.host_veth().and_then(|veth| found.get(&veth.pod_name));
        Ok((veth.map(|link| link.ifindex), configured))
    }
}

/// Gives the links their queueing disciplines. By themselves and first: what else is refused keeps a pod's limit from
/// nothing, and a kernel without `fq` is named before anything else is done in the pod.
fn add_queues(netlink: &mut Direct, plan: &NamespacePlan, links: &Found) -> Result<(), Error> {
    if plan.queues.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::default();
    for queue in &plan.queues {
        if let Some(link) = links.get(&queue.link) {
            batch.add_queue(queue, link.ifindex);
        }
    }
    netlink.run(batch).map_err(|e| match e.errno() {
        Some(errno) if errno == Errno::ENOENT as i32 => Error::NoFairQueue(e),
        _ => e.into(),
    })
}

/// Runs a batch. An interface that may exist already has most of its objects.
fn run_batch(netlink: &mut Direct, batch: Batch, links: Links) -> Result<(), netlink::Error> {
    match links {
        Links::Ensure => netlink.run_missing(batch),
        Links::New | Links::First => netlink.run(batch),
    }
}

/// Returns the link, which must exist.
pub(super) fn present<'f>(
    found: &'f Found,
    name: &str,
    netlink: &Direct,
) -> Result<&'f Link, Error> {
    found.get(name).ok_or_else(|| Error::LinkGone {
        name: name.to_owned(),
        place: netlink.place().to_owned(),
    })
}

/// Adds a plan's objects. Those of links that are not in `links` are skipped: a plan whose links were just created has
/// none.
fn add_objects(batch: &mut Batch, plan: &NamespacePlan, links: &Found, programs: &Programs) {
    let index = |name: &String| links.get(name).map(|link| link.ifindex);
    // Before the routes: what an older plan routes elsewhere is redirected already when its route changes.
    for object in &plan.filters {
        if let (Some(index), Some(program)) = (index(&object.link), programs.fd(&object.program)) {
            batch.add_filter(object, index, program);
        }
    }
    for object in &plan.addresses {
        if let Some(index) = index(&object.link) {
            batch.add_address(object, index);
        }
    }
    for object in &plan.neighbours {
        if let Some(index) = index(&object.link) {
            batch.add_neighbour(object, index);
        }
    }
    for object in &plan.routes {
        if let Some(index) = index(&object.link) {
            batch.add_route(object, index);
        }
    }
    for object in &plan.rules {
        batch.add_rule(object);
    }
}
