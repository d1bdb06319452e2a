//! Reads what other plugins have in a pod's namespace: facts for planning an interface beside theirs.

use std::{net::IpAddr, path::Path};

use ebbtide_types::Family;

use super::{Error, PodNet, Sandbox, model::VETH};
use crate::{
    netlink::{
        direct::Direct,
        netns::{Evidence, Netns},
    },
    node::is_link_local,
};

/// Other plugins' default routes and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignInterfaces {
    /// Families with a foreign default route.
    pub defaults: Vec<Family>,
    /// Addresses on foreign links, if there is such a route; without link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Whether foreign rules route by marks; only determined if there is such a route.
    pub marks: bool,
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
        if others.defaults.is_empty() {
            return Ok(others);
        }
        others.marks = pod.has_foreign_rules_by_mark()?;
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

/// Whether foreign rules in the pod of `net` route by marks.
///
/// # Errors
/// If the pod's namespace no longer exists, or the kernel does not answer.
pub async fn has_foreign_marks(net: &PodNet) -> Result<bool, Error> {
    let look = |pod: &mut Direct| Ok(pod.has_foreign_rules_by_mark()?);
    inspect(net.namespace()?, &net.netns, look).await
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
