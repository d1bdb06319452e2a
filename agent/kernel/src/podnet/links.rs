//! Creates a pod's links: all of them or none, and none in place of a foreign one.

use nix::errno::Errno;

use crate::netlink::{
    self, Batch,
    direct::Direct,
    link::{Ipvlan, Link, Veth},
    netns::Netns,
    siblings::siblings,
};

use super::{
    Error, PodNet,
    apply::{Found, Links, present},
    ours::{described, is_child_of},
};

/// Creates the links of `net` that do not exist. `found` holds the relevant links of the host, and gets the host's end
/// of a new pair. Returns the relevant links of the pod, if there was nothing to create.
///
/// # Errors
/// If one cannot be created. Then none exists: those created before are removed again.
pub(super) fn make(
    net: &PodNet,
    links: Links,
    netns: &Netns,
    pod: &mut Direct,
    (host, found): (&mut Direct, &mut Found),
) -> Result<Option<Found>, Error> {
    let there = inside(net, pod)?;
    let master = match net.master() {
        Some(name) => Some(present(found, name, host)?.ifindex),
        None => None,
    };
    let missing = Missing::of(net, links, &there, found);
    if let Some((link, place)) = in_the_way(net, &missing, &there, master, pod.place())
        .or_else(|| in_the_host(&missing, found, host.place()))
    {
        return Err(Error::LinkTaken {
            name: link.name.clone(),
            place: place.to_owned(),
            what: described(link, net, master),
        });
    }
    if let (Some(ipvlan), Some(master)) = (missing.ipvlan, master) {
        if links != Links::New {
            refuse_another_mode(ipvlan, master, host)?;
        }
        let namesake = found.contains_key(&ipvlan.name);
        let mut batch = Batch::default();
        batch.add_ipvlan(ipvlan, master, netns.raw_fd(), namesake);
        if let Err(refused) = host.run(batch) {
            return Err(explained(refused, Some(master), host));
        }
    }
    if let Some(veth) = missing.veth {
        let mut batch = Batch::default();
        batch.add_veth(veth, netns.raw_fd());
        if let Err(refused) = host.run(batch) {
            if let Some(ipvlan) = missing.ipvlan {
                delete_wrong_child(ipvlan, pod)?;
            }
            return Err(refused.into());
        }
        found.extend(host.links(&[&veth.host_name])?);
    }
    let made_none = missing.ipvlan.is_none() && missing.veth.is_none();
    Ok(made_none.then_some(there))
}

/// The links to be created.
struct Missing<'n> {
    ipvlan: Option<&'n Ipvlan>,
    veth: Option<&'n Veth>,
}

impl<'n> Missing<'n> {
    fn of(net: &'n PodNet, links: Links, there: &Found, in_host: &Found) -> Self {
        let is_new = links != Links::Ensure;
        let lacks = |name: &String| is_new || !there.contains_key(name);
        // A veth end without the other has lost its pair's namespace and is removed with it.
        let lacks_both = |veth: &&Veth| {
            is_new || lacks(&veth.pod_name) && !in_host.contains_key(&veth.host_name)
        };
        Self {
            ipvlan: net.ipvlan.as_ref().filter(|ipvlan| lacks(&ipvlan.name)),
            veth: net.veth.as_ref().filter(lacks_both),
        }
    }
}

/// The relevant links of the pod that exist.
pub(super) fn inside(net: &PodNet, pod: &mut Direct) -> Result<Found, Error> {
    let pair = net.host_veth().map(|veth| veth.pod_name.as_str());
    let names = ["lo", net.interface.as_str()].into_iter().chain(pair);
    Ok(pod.links(&names.collect::<Vec<_>>())?)
}

/// A foreign link in the pod that has the name of one of Ebbtide's.
fn in_the_way<'l, 'p>(
    net: &PodNet,
    missing: &Missing<'_>,
    there: &'l Found,
    master: Option<u32>,
    place: &'p str,
) -> Option<(&'l Link, &'p str)> {
    let child = net.ipvlan.as_ref().and_then(|own| there.get(&own.name));
    let child = match missing.ipvlan {
        Some(_) => child,
        None => child.filter(|link| !is_child_of(link, master)),
    };
    let end = net.veth.as_ref().and_then(|own| there.get(&own.pod_name));
    let end = match missing.veth {
        Some(_) => end,
        None => end.filter(|link| link.kind.as_deref() != Some("veth")),
    };
    child.or(end).map(|link| (link, place))
}

/// A link in the host that has the name of the pair to be created.
fn in_the_host<'l, 'p>(
    missing: &Missing<'_>,
    found: &'l Found,
    place: &'p str,
) -> Option<(&'l Link, &'p str)> {
    let end = missing.veth.and_then(|own| found.get(&own.host_name));
    end.map(|link| (link, place))
}

/// Refuses to create Ebbtide's first child if foreign ones have another mode, which would change to the new one.
fn refuse_another_mode(ipvlan: &Ipvlan, master: u32, host: &mut Direct) -> Result<(), Error> {
    let mut others = siblings(host, master)?;
    others.retain(|sibling| sibling.mode != ipvlan.mode);
    let Some(first) = others.first() else {
        return Ok(());
    };
    let named: Vec<String> = others.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match others.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Error::ModeConflict {
        master: ipvlan.master.clone(),
        mode: ipvlan.mode,
        theirs: first.mode,
        siblings: named.join(", ") + &more,
    })
}

/// Number of foreign interfaces that are named.
const NAMED: usize = 3;

/// Removes the child that was just created.
fn delete_wrong_child(ipvlan: &Ipvlan, pod: &mut Direct) -> Result<(), Error> {
    let mut batch = Batch::default();
    for link in pod.links(&[&ipvlan.name])?.values() {
        batch.delete_link(&link.name, link.ifindex);
    }
    Ok(pod.run(batch)?)
}

/// Explains why no child could be created, if the kernel's answer alone does not.
fn explained(refused: netlink::Error, master: Option<u32>, netlink: &mut Direct) -> Error {
    if refused.errno() == Some(Errno::EOPNOTSUPP as i32) {
        return Error::NoIpvlan(refused);
    }
    let is_taken = refused.errno() == Some(Errno::EBUSY as i32);
    let holder = master
        .filter(|_| is_taken)
        .map(|master| netlink.holder_of(master));
    match holder {
        Some(Ok((holder, hint))) => Error::MasterTaken {
            source: refused,
            holder,
            hint,
        },
        _ => refused.into(),
    }
}
