//! What exists: address pools and networks, as an immutable snapshot.
//!
//! [`manifest`] holds the documents as people write them (Spiderpool's kinds); [`Pool`] and
//! [`Network`] are what is left once every rule has been checked, so the rest of the agent never
//! validates anything again. [`files`] makes a [`Catalog`] from a directory and follows its changes,
//! the crate `ebbtide_kube` makes one from the API server.

mod address;
mod admit;
mod chain;
mod changes;
mod coordinator;
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
mod reserved;

use std::path::Path;

use ebbtide_types::{DEFAULT_NAMESPACE, NameError, Namespaces, NetworkRef, ObjectName};
use ipnet::IpNet;
use serde::Serialize;

pub use address::{AddressSet, AddressSetError, host_address, prefix};
pub use changes::Changes;
pub use coordinator::Coordinator;
pub use invalid::Invalid;
pub use labels::Labels;
pub use network::Network;
pub use pool::{Affinities, Pool, Route};
pub use problem::{Consequence, Problem};
pub use publish::publish;
pub use reserved::Reserved;

/// Everything that was declared and is valid, and what was wrong with the rest.
///
/// A snapshot: nothing in it changes. Pools and networks are in the order of their files (sorted
/// by name) and of the documents in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    pools: Vec<Pool>,
    networks: Vec<Network>,
    reserved: Vec<Reserved>,
    service_cidrs: Vec<IpNet>,
    problems: Vec<Problem>,
    namespaces: Namespaces,
}

/// A network was asked for by a name that no network has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Nothing of that name; the message lists what there is.
    #[error("network {reference:?} is not declared{} ({}); declare a SpiderMultusConfig of that name or correct the name", places(.looked_in), known_list(.known))]
    Unknown {
        /// What was asked for.
        reference: String,
        /// The namespaces that a name without one is looked for in, if it is such a name.
        looked_in: Vec<String>,
        /// The networks there are.
        known: Vec<ObjectName>,
    },
    /// A name without a namespace fits networks of several namespaces, none of them `default`.
    #[error("network {reference:?} could be {}; name it as \"namespace/name\"", join(.candidates))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// The networks it fits.
        candidates: Vec<ObjectName>,
    },
    /// The text is not a name at all.
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

/// Where a name without a namespace was looked for.
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
    /// Reads manifests from texts: pairs of the name to report (a file's path) and its content.
    ///
    /// Pure and total: what cannot be used becomes a [`Problem`], everything else is used. Of two
    /// objects that exclude one another the earlier in this order stays.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Self {
        let mut builder = documents::Builder::default();
        for (file, text) in texts {
            builder.add(file, text);
        }
        builder.finish()
    }

    /// Takes objects as the API server has them. As [`Catalog::from_texts`] in everything else.
    pub fn from_objects<'a, T: Serialize + 'a>(objects: impl IntoIterator<Item = &'a T>) -> Self {
        let mut builder = documents::Builder::default();
        for object in objects {
            builder.add_object(object);
        }
        builder.finish()
    }

    /// The pools and reservations of this one with the networks of another: neither is read anew when the other changes.
    #[must_use]
    pub fn with_networks_of(&self, networks: &Self) -> Self {
        Self {
            networks: networks.networks.clone(),
            service_cidrs: networks.service_cidrs.clone(),
            problems: [self.problems.as_slice(), &networks.problems].concat(),
            ..self.clone()
        }
    }

    /// The valid pools.
    #[must_use]
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The valid networks.
    #[must_use]
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// The valid reservations. They are taken out of the pools' ranges already.
    #[must_use]
    pub fn reserved(&self) -> &[Reserved] {
        &self.reserved
    }

    /// The networks of the cluster's Services, as far as they were found.
    #[must_use]
    pub fn service_cidrs(&self) -> &[IpNet] {
        &self.service_cidrs
    }

    /// What was left out or could not be read, which fields have no effect, and why.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// As it is where names without a namespace mean these namespaces' networks.
    #[must_use]
    pub fn named_in(mut self, namespaces: Namespaces) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// What names without a namespace mean.
    #[must_use]
    pub const fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The network that a person means by `"namespace/name"` or `"name"`.
    ///
    /// Without a namespace, it is the one of the first of the catalog's [`Namespaces`] that has such a network, and
    /// never another namespace's. Where all namespaces are meant, since the manifests are files, it is `default/name`
    /// if that exists, as an object without a namespace is in `default`; else the only network of that name.
    ///
    /// # Errors
    /// [`NetworkError`], listing the networks there are.
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

    /// The network of exactly this name.
    #[must_use]
    pub fn network_exact(&self, name: &ObjectName) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == *name)
    }

    /// The catalog as a node has it that may hand out only some addresses of some pools: those that
    /// `leased` returns for them.
    pub fn limit(&mut self, leased: impl Fn(&Pool) -> Option<AddressSet>) {
        for pool in &mut self.pools {
            if let Some(leased) = leased(pool) {
                *pool = pool.limited_to(&leased);
            }
        }
    }

    /// What is different in `newer`.
    #[must_use]
    pub fn changes_to(&self, newer: &Self) -> Changes {
        Changes::between(self, newer)
    }
}

#[cfg(test)]
mod tests;
