//! Reads what other plugins, and programs in the pod, have in its namespace: facts for planning an interface beside
//! theirs.

use std::{net::IpAddr, path::Path};

use ebbtide_types::Family;

use super::{Error, PodNet, Sandbox, model::VETH};
use crate::{
    netlink::{
        direct::Direct,
        link::Link,
        netns::{Evidence, Netns},
    },
    node::{ALIAS, is_link_local},
};

/// Other plugins' default routes and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignInterfaces {
    /// Families with a foreign default route.
    pub defaults: Vec<Family>,
    /// Addresses on foreign links, if there is such a route; without link-local ones.
    pub addresses: Vec<IpAddr>,
    /// What may route replies.
    pub routing: ForeignRouting,
}

/// What may route a pod's replies elsewhere than Ebbtide's routes do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForeignRouting {
    /// Whether foreign rules route by marks.
    pub by_mark: bool,
    /// Whether there is anything: such a rule or any other, a foreign link that is up, a foreign default route.
    pub any: bool,
}

impl ForeignRouting {
    /// Reads it from the pod of `net`.
    ///
    /// # Errors
    /// If the pod's namespace no longer exists, or the kernel does not answer.
    pub async fn read(net: &PodNet) -> Result<Self, Error> {
        let own = vec![net.interface.clone()];
        let look = move |pod: &mut Direct| {
            let mut has_default = false;
            for family in Family::BOTH {
                has_default |= pod.has_foreign_default(family)?;
            }
            Self::inside(pod, &own, has_default)
        };
        inspect(net.namespace()?, &net.netns, look).await
    }

    fn inside(pod: &mut Direct, own: &[String], has_default: bool) -> Result<Self, Error> {
        let rules = pod.foreign_rules()?;
        let links = pod.all_links()?;
        Ok(Self {
            by_mark: rules.by_mark,
            any: rules.any || has_default || links.iter().any(|link| is_foreign(link, own)),
        })
    }
}

/// Whether packets may leave by a link that is not Ebbtide's. `own`: the names of some that are.
fn is_foreign(link: &Link, own: &[String]) -> bool {
    let is_ours = link.name == VETH || own.contains(&link.name) || has_alias(link);
    link.up && !link.loopback && !is_ours
}

/// Whether the link's alias says that it is Ebbtide's, as for all that Ebbtide has set up.
#[must_use]
pub fn has_alias(link: &Link) -> bool {
    let alias = link.alias.as_deref();
    alias.is_some_and(|alias| alias.starts_with(ALIAS))
}

impl ForeignInterfaces {
    /// Reads them from the pod. `own` are the names of Ebbtide's interfaces there.
    ///
    /// # Errors
    /// If the pod's namespace no longer exists, or the kernel does not answer.
    pub async fn read(sandbox: &Sandbox, own: Vec<String>) -> Result<Self, Error> {
        let netns = Netns::inspect(&sandbox.netns, Some(sandbox.netns_inode))?;
        inspect(netns, &sandbox.netns, move |pod| Self::inside(pod, &own)).await
    }

    fn inside(pod: &mut Direct, own: &[String]) -> Result<Self, Error> {
        let mut others = Self::default();
        for family in Family::BOTH {
            if pod.has_foreign_default(family)? {
                others.defaults.push(family);
            }
        }
        others.routing = ForeignRouting::inside(pod, own, !others.defaults.is_empty())?;
        if others.defaults.is_empty() {
            return Ok(others);
        }
        let names: Vec<&str> = own.iter().map(String::as_str).chain(["lo", VETH]).collect();
        let own = pod.links(&names)?;
        let is_own = |index| own.values().any(|link| link.ifindex == index);
        let addresses = pod.addresses()?;
        let addresses = addresses.iter().filter(|found| !is_own(found.ifindex));
        others.addresses = addresses
            .map(|found| found.address.addr())
            // Link-local addresses need no rules.
            .filter(|address| !is_link_local(address))
            .collect();
        Ok(others)
    }
}

async fn inspect<T: Send + 'static>(
    evidence: Evidence,
    path: &Path,
    look: impl FnOnce(&mut Direct) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let Evidence::Present(netns) = evidence else {
        return Err(Error::NamespaceGone(path.to_owned()));
    };
    let place = format!("in {}", path.display());
    netns.inside(move || look(&mut Direct::open(place)?)).await
}
