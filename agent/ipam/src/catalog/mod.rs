//! The declared address pools and networks, as an immutable snapshot.
//!
//! [`manifest`] holds the documents as users write them (Spiderpool's kinds). [`Pool`] and [`Network`]
//! are their validated forms, so the rest of the agent never validates anything again. [`files`] makes a
//! [`Catalog`] from a directory and watches it; the crate `ebbtide_kube` makes one from the API server.

mod address;
mod admit;
mod chain;
mod changes;
mod coordinator;
mod derived;
mod documents;
pub mod files;
mod invalid;
mod keep;
mod labels;
pub mod manifest;
mod network;
mod notes;
mod pool;
mod pool_names;
mod problem;
mod publish;
mod published;
mod reserved;

use std::path::Path;

use ebbtide_types::{DEFAULT_NAMESPACE, NameError, Namespaces, NetworkRef, ObjectName};
use ipnet::IpNet;
use serde::Serialize;

pub use address::{AddressSet, AddressSetError, host_address, prefix};
pub use changes::Changes;
pub use coordinator::Coordinator;
pub use derived::{DerivedNic, DerivedNote};
pub use invalid::Invalid;
pub use labels::Labels;
pub use network::{Addresses, Network};
pub use pool::{Affinities, Pool, PoolSource, Route};
pub use problem::{Consequence, Problem};
pub use publish::publish;
pub use published::{DERIVED, OF_NODE, published_for};
pub use reserved::Reserved;

/// All valid declared objects, and the problems of the rest.
///
/// An immutable snapshot. Pools and networks are in the order of their files (sorted by name) and
/// of the documents in them.
///
/// # Examples
///
/// ```
/// use std::path::Path;
///
/// use ebbtide_ipam::catalog::Catalog;
///
/// let pools = "
/// apiVersion: spiderpool.spidernet.io/v2beta1
/// kind: SpiderIPPool
/// metadata: {name: ens5-v4}
/// spec: {default: true, subnet: 10.0.0.0/24, ips: [10.0.0.5-10.0.0.9]}
/// ---
/// apiVersion: spiderpool.spidernet.io/v2beta1
/// kind: SpiderIPPool
/// metadata: {name: broken}
/// spec: {subnet: 10.0.1.0/24, ips: [10.9.9.9]}
/// ";
/// let catalog = Catalog::from_texts([(Path::new("pools.yaml"), pools)]);
/// // One bad object spoils no other.
/// assert_eq!(catalog.pools().len(), 1);
/// assert_eq!(catalog.problems().len(), 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    pools: Vec<Pool>,
    networks: Vec<Network>,
    reserved: Vec<Reserved>,
    service_cidrs: Vec<IpNet>,
    problems: Vec<Problem>,
    namespaces: Namespaces,
    /// What is to be said where a NIC's metadata gives no address.
    notes: Vec<DerivedNote>,
    /// The declared pools that have the name of a derived one, each with the NIC whose pool it is instead.
    instead: Vec<(String, String)>,
}

/// An error in looking up a network by name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// No network has this name; the message lists the existing ones.
    #[error("network {reference:?} is not declared{} ({}); declare a SpiderMultusConfig of that name or correct the name", places(.looked_in), known_list(.known))]
    Unknown {
        /// The requested name.
        reference: String,
        /// The namespaces in which a name without one was looked up, if it is such a name.
        looked_in: Vec<String>,
        /// The existing networks.
        known: Vec<ObjectName>,
    },
    /// A name without a namespace matches networks of several namespaces, none of them `default`.
    #[error("network {reference:?} could be {}; name it as \"namespace/name\"", join(.candidates))]
    Ambiguous {
        /// The requested name.
        reference: String,
        /// The networks that match.
        candidates: Vec<ObjectName>,
    },
    /// The text is not a valid name.
    #[error("network: {0}")]
    Malformed(#[from] NameError),
}

fn join(names: &[ObjectName]) -> String {
    names
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Lists the namespaces in which a name without one was looked up.
fn places(looked_in: &[String]) -> String {
    match looked_in {
        [] => String::new(),
        some => format!(
            " in namespace {}, where a name without a namespace is looked for; one of another namespace is named as \
             \"namespace/name\"",
            some.join(" or ")
        ),
    }
}

fn known_list(names: &[ObjectName]) -> String {
    if names.is_empty() {
        "no network is declared".into()
    } else {
        format!("there are: {}", join(names))
    }
}

impl Catalog {
    /// Parses manifests from texts: pairs of the name to report (a file's path) and its content.
    ///
    /// Pure and total: an unusable object becomes a [`Problem`], everything else is used. Of two
    /// conflicting objects the earlier in this order stays.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Self {
        let mut builder = documents::Builder::default();
        for (file, text) in texts {
            builder.add(file, text);
        }
        builder.finish()
    }

    /// Builds a catalog from objects of the API server. Otherwise as [`Catalog::from_texts`].
    pub fn from_objects<'a, T: Serialize + 'a>(objects: impl IntoIterator<Item = &'a T>) -> Self {
        let mut builder = documents::Builder::default();
        for object in objects {
            builder.add_object(object);
        }
        builder.finish()
    }

    /// Combines the pools and SpiderReservedIPs of this catalog with the networks of another:
    /// neither is parsed again when the other changes.
    #[must_use]
    pub fn with_networks_of(&self, networks: &Self) -> Self {
        Self {
            networks: networks.networks.clone(),
            service_cidrs: networks.service_cidrs.clone(),
            problems: [self.problems.as_slice(), &networks.problems].concat(),
            ..self.clone()
        }
    }

    /// Returns the valid pools.
    #[must_use]
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Returns the valid networks.
    #[must_use]
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// Returns the valid SpiderReservedIPs, which are already excluded from the pools' ranges.
    #[must_use]
    pub fn reserved(&self) -> &[Reserved] {
        &self.reserved
    }

    /// Returns the networks of the cluster's Services, as far as they were found.
    #[must_use]
    pub fn service_cidrs(&self) -> &[IpNet] {
        &self.service_cidrs
    }

    /// Returns the objects that were left out or could not be read, and the fields without effect, with reasons.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// Returns the catalog with these namespaces for names without one.
    #[must_use]
    pub fn named_in(mut self, namespaces: Namespaces) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// Returns the namespaces in which names without one are looked up.
    #[must_use]
    pub const fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Looks up the network `"namespace/name"` or `"name"`.
    ///
    /// A name without a namespace means the first of the catalog's [`Namespaces`] that has such a network, and never
    /// another namespace's. If these are all namespaces, since the manifests are files, it means `default/name` if
    /// that exists, as an object without a namespace is in `default`; else the only network of that name.
    ///
    /// # Errors
    /// [`NetworkError`] if the name is unknown, ambiguous or malformed; it lists the existing networks.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::path::Path;
    ///
    /// use ebbtide_ipam::catalog::Catalog;
    ///
    /// let network = "
    /// apiVersion: spiderpool.spidernet.io/v2beta1
    /// kind: SpiderMultusConfig
    /// metadata: {name: ipvlan-ens5, namespace: kube-system}
    /// spec: {cniType: ipvlan, ipvlan: {master: [ens5]}}
    /// ";
    /// let catalog = Catalog::from_texts([(Path::new("networks.yaml"), network)]);
    /// assert_eq!(catalog.network("ipvlan-ens5")?.master, "ens5");
    /// let error = catalog.network("ipvlan-ens6").expect_err("no such network").to_string();
    /// assert!(error.contains("there are: kube-system/ipvlan-ens5"), "{error}");
    /// # Ok::<(), ebbtide_ipam::catalog::NetworkError>(())
    /// ```
    pub fn network(&self, reference: &str) -> Result<&Network, NetworkError> {
        let wanted: NetworkRef = reference.parse()?;
        let unknown = || NetworkError::Unknown {
            reference: reference.to_owned(),
            looked_in: match wanted.namespace {
                Some(_) => Vec::new(),
                None => self.namespaces.names().to_vec(),
            },
            known: self
                .networks
                .iter()
                .map(|network| network.name.clone())
                .collect(),
        };
        let meant = self.namespaces.meant(&wanted);
        if !meant.is_empty() {
            let mut found = meant.iter().filter_map(|name| self.network_exact(name));
            return found.next().ok_or_else(unknown);
        }
        let matching: Vec<&Network> = self
            .networks
            .iter()
            .filter(|network| wanted.matches(&network.name, &self.namespaces))
            .collect();
        match matching.as_slice() {
            [] => Err(unknown()),
            [only] => Ok(only),
            several => several
                .iter()
                .find(|network| network.name.namespace == DEFAULT_NAMESPACE)
                .copied()
                .ok_or_else(|| NetworkError::Ambiguous {
                    reference: reference.to_owned(),
                    candidates: several.iter().map(|network| network.name.clone()).collect(),
                }),
        }
    }

    /// Returns the network of exactly this name.
    #[must_use]
    pub fn network_exact(&self, name: &ObjectName) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == *name)
    }

    /// Restricts pools to the addresses that this node may hand out: those that `leased` returns for a pool.
    pub fn limit(&mut self, leased: impl Fn(&Pool) -> Option<AddressSet>) {
        for pool in &mut self.pools {
            if let Some(leased) = leased(pool) {
                *pool = pool.limited_to(&leased);
            }
        }
    }

    /// Returns the differences to `newer`.
    #[must_use]
    pub fn changes_to(&self, newer: &Self) -> Changes {
        Changes::between(self, newer)
    }
}

#[cfg(test)]
mod tests;
