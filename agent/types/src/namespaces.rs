//! Resolves network names without a namespace, and decides which networks a pod may name.

use crate::{DEFAULT_NAMESPACE, NetworkRef, ObjectName};

/// The namespace of the administrator's networks in Spiderpool's guides.
const SYSTEM: &str = "kube-system";

/// The namespaces in which a network without a namespace in its name is looked up.
///
/// # Examples
///
/// ```
/// use ebbtide_types::{Namespaces, NetworkRef};
///
/// let namespaces = Namespaces::of_agent("ebbtide-system");
/// let bare: NetworkRef = "ipvlan-ens5".parse()?;
/// let meant: Vec<String> = namespaces.meant(&bare).iter().map(ToString::to_string).collect();
/// assert_eq!(meant, ["ebbtide-system/ipvlan-ens5", "kube-system/ipvlan-ens5"]);
/// # Ok::<(), ebbtide_types::NameError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Namespaces {
    /// All of them: the manifests are files of the node's administrator, and nothing is installed into a namespace.
    #[default]
    All,
    /// These alone, of which the first with such a network wins. They are the administrator's: a network of the same
    /// name in a user's namespace is never meant.
    These(Vec<String>),
}

impl Namespaces {
    /// Returns the agent's own namespace, then `kube-system`.
    #[must_use]
    pub fn of_agent(own: &str) -> Self {
        let mut all = vec![own.to_owned()];
        if own != SYSTEM {
            all.push(SYSTEM.to_owned());
        }
        Self::These(all)
    }

    /// Whether a network of this namespace is the administrator's.
    #[must_use]
    pub fn hold(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(all) => all.iter().any(|one| one == namespace),
        }
    }

    /// Returns their names, in order; none if they are all.
    #[must_use]
    pub fn names(&self) -> &[String] {
        match self {
            Self::All => &[],
            Self::These(all) => all,
        }
    }

    /// Returns the names that a reference may mean, in order; none for a bare name where all namespaces are meant.
    #[must_use]
    pub fn meant(&self, reference: &NetworkRef) -> Vec<ObjectName> {
        let full = |namespace: &String| ObjectName {
            namespace: namespace.clone(),
            name: reference.name.clone(),
        };
        match &reference.namespace {
            Some(namespace) => vec![full(namespace)],
            None => self.names().iter().map(full).collect(),
        }
    }

    /// Returns the namespaces whose networks every pod may name where namespaces are isolated: those that the
    /// administrator lists, or without a list these, and `default` as with Multus.
    #[must_use]
    pub fn open_to_all(&self, listed: &[String]) -> Vec<String> {
        if !listed.is_empty() {
            return listed.to_vec();
        }
        let mut all = self.names().to_vec();
        if !all.iter().any(|name| name == DEFAULT_NAMESPACE) {
            all.push(DEFAULT_NAMESPACE.to_owned());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_s_own_namespace_goes_before_the_cluster_s() {
        for (own, all) in [
            ("ebbtide-system", &["ebbtide-system", "kube-system"][..]),
            ("kube-system", &["kube-system"]),
        ] {
            let namespaces = Namespaces::of_agent(own);
            assert_eq!(namespaces.names(), all);
            assert!(namespaces.hold(own) && namespaces.hold("kube-system"));
            assert!(!namespaces.hold("default") && !namespaces.hold("team-a"));
        }
        assert!(Namespaces::All.hold("team-a"));
    }

    #[test]
    fn isolated_pods_may_name_what_is_listed_or_the_administrator_s() {
        let namespaces = Namespaces::of_agent("ebbtide-system");
        let listed = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            namespaces.open_to_all(&names).join(" ")
        };
        assert_eq!(listed(&[]), "ebbtide-system kube-system default");
        assert_eq!(listed(&["shared"]), "shared");
        assert_eq!(Namespaces::All.open_to_all(&[]), ["default"]);
    }
}
