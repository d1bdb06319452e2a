//! Finds all ipvlan children of a link, whoever made them. The mode is the link's: a new child sets it for all existing
//! ones (`ipvlan_link_new`, drivers/net/ipvlan/ipvlan_main.c), without a check.
//!
//! The kernel has no list of them either. A child that was created in another namespace, as plugins do, is not even
//! announced in the link's own. So each namespace is read by a socket inside of it: for a request from outside
//! (`IFLA_TARGET_NETNSID`) the kernel would assign IDs to namespaces that had none.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use ebbtide_types::IpvlanMode;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
};

use super::{
    Error,
    direct::Direct,
    link::{Link, all_links},
    namespaces,
    netns::Netns,
};

/// An ipvlan child of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sibling {
    /// Its name.
    pub name: String,
    /// Its mode, which is that of all children of the link.
    pub mode: IpvlanMode,
    /// The path of the namespace that it is in; `None` for the link's own.
    pub namespace: Option<PathBuf>,
}

impl fmt::Display for Sibling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.name)?;
        match &self.namespace {
            None => f.write_str("in the host"),
            Some(path) => write!(f, "in {}", namespaces::called(path)),
        }
    }
}

/// Finds the ipvlan children of `master`, a link of the node, in all namespaces that are accessible from here. `host`
/// is a socket in the node's namespace, wherever the calling thread is.
///
/// # Errors
/// If the kernel refuses to list the links of this namespace.
pub fn siblings(host: &mut Direct, master: u32) -> Result<Vec<Sibling>, Error> {
    // The namespace of the main thread, which enters no other.
    let own = Netns::open("/proc/self/ns/net")?;
    let here = children(host, master)?;
    let mut siblings: Vec<Sibling> = here
        .into_iter()
        .filter(|child| child.below_in.is_none())
        .map(|child| child.named(None))
        .collect();
    for netns in namespaces::others(own.inode()) {
        match netns.run(|| children_in(&netns, &own, master)) {
            Ok(Ok(found)) => siblings.extend(found),
            // The namespace was removed meanwhile, or is inaccessible.
            Ok(Err(e)) | Err(e) => tracing::debug!("look for ipvlan interfaces: {e}"),
        }
    }
    Ok(siblings)
}

struct Child {
    name: String,
    mode: IpvlanMode,
    /// The ID of the lower link's namespace, if it is another one.
    below_in: Option<i32>,
}

impl Child {
    fn named(self, namespace: Option<&Path>) -> Sibling {
        Sibling {
            name: self.name,
            mode: self.mode,
            namespace: namespace.map(Path::to_owned),
        }
    }
}

/// Lists the children of `master` in `netns`, on a thread inside of it.
fn children_in(netns: &Netns, of: &Netns, master: u32) -> Result<Vec<Sibling>, Error> {
    let place = format!("in {}", netns.path().display());
    let mut inside = Direct::open(place)?;
    let mut found = children(&mut inside, master)?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    // Another namespace may have a link of the same index.
    let number = number_of(&mut inside, of)?;
    found.retain(|child| child.below_in.is_some() && child.below_in == number);
    let named = |child: Child| child.named(Some(netns.path()));
    Ok(found.into_iter().map(named).collect())
}

/// Lists the ipvlan links above a link of this index, whichever namespace that is in.
fn children(netlink: &mut Direct, master: u32) -> Result<Vec<Child>, Error> {
    netlink.dump("list links", all_links(), |answer| match answer {
        RouteNetlinkMessage::NewLink(message) => child(message, master),
        _ => None,
    })
}

fn child(message: LinkMessage, master: u32) -> Option<Child> {
    let below_in = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkNetNsId(number) => Some(*number),
        _ => None,
    });
    let link = Link::parse(message);
    let is_child = link.kind.as_deref() == Some("ipvlan") && link.iflink == Some(master);
    Some(Child {
        mode: link.ipvlan_mode.filter(|_| is_child)?,
        name: link.name,
        below_in,
    })
}

/// Returns the ID of `netns` in the socket's namespace, if it has one.
fn number_of(netlink: &mut Direct, netns: &Netns) -> Result<Option<i32>, Error> {
    let descriptor = netns.raw_fd().cast_unsigned();
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(descriptor));
    let question = RouteNetlinkMessage::GetNsId(question);
    let answer = netlink.ask("get the ID of the host's network namespace", question)?;
    let RouteNetlinkMessage::NewNsId(message) = answer else {
        return Ok(None);
    };
    Ok(message.attributes.iter().find_map(|a| match a {
        NsidAttribute::Id(number) if *number >= 0 => Some(*number),
        _ => None,
    }))
}
