//! The ipvlan mode of each NIC. All children of a NIC share its mode, so the administrator decides it, and not the pod
//! that comes first.

use ebbtide_ipam::catalog::Catalog;
use ebbtide_kube::{Cluster, attachment};
use ebbtide_types::{IpvlanMode, Namespaces, ObjectName};

use super::Agent;

/// The mode of a NIC's children, and what decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicMode {
    /// The mode.
    pub mode: IpvlanMode,
    /// What decides it, as a sentence's subject and verb.
    pub says: String,
}

/// A network, and the mode that it requests for its NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wants {
    kind: &'static str,
    name: ObjectName,
    master: String,
    mode: IpvlanMode,
}

impl Agent {
    /// Returns the mode of a NIC. `None` without Kubernetes if the settings do not decide: then the first interface
    /// does, as whoever names a network is the node's administrator.
    ///
    /// The order of precedence: the settings; the cluster's default network if it is on that NIC; the oldest
    /// SpiderMultusConfig on it in the agent's namespace or `kube-system`; the oldest NetworkAttachmentDefinition
    /// there that describes such a network; l3.
    #[must_use]
    pub fn mode_of(&self, nic: &str, catalog: &Catalog) -> Option<NicMode> {
        if let Some(said) = self.mode_by_settings(nic) {
            return Some(said);
        }
        let cluster = self.cluster.as_deref()?;
        let default = self.default_networks(catalog);
        let namespaces = catalog.namespaces();
        let said = declared_mode(&declared(catalog), nic, &default, namespaces)
            .or_else(|| declared_mode(&described(cluster), nic, &default, namespaces));
        Some(said.unwrap_or_else(|| default_mode(namespaces)))
    }

    /// Returns the networks that request another mode than their NIC's, each as a sentence.
    #[must_use]
    pub fn networks_in_other_modes(&self, catalog: &Catalog) -> Vec<String> {
        let cluster = self.cluster.as_deref();
        let default = self.default_networks(catalog);
        let namespaces = catalog.namespaces();
        let (declared, described) = (declared(catalog), cluster.map_or_else(Vec::new, described));
        let mode_of = |nic: &str| {
            let by_networks = || {
                cluster?;
                let said = declared_mode(&declared, nic, &default, namespaces)
                    .or_else(|| declared_mode(&described, nic, &default, namespaces));
                Some(said.unwrap_or_else(|| default_mode(namespaces)))
            };
            self.mode_by_settings(nic).or_else(by_networks)
        };
        let refused = declared.iter().chain(&described).filter_map(|wants| {
            let nic = mode_of(&wants.master).filter(|nic| nic.mode != wants.mode)?;
            Some(format!(
                "{} {}: its pods are refused: it wants mode {} on {}, which is in mode {} ({}); {}",
                wants.kind,
                wants.name,
                wants.mode,
                wants.master,
                nic.mode,
                nic.says,
                NicMode::HINT
            ))
        });
        refused.collect()
    }

    fn mode_by_settings(&self, nic: &str) -> Option<NicMode> {
        let mode = self.settings.nics.mode_of(nic)?;
        let says = "`nics.modes` of the agent's settings says so".to_owned();
        Some(NicMode { mode, says })
    }

    /// Returns the names that the cluster's default network may have.
    fn default_networks(&self, catalog: &Catalog) -> Vec<ObjectName> {
        let default = self.settings.default_network.as_ref();
        default.map_or_else(Vec::new, |reference| catalog.namespaces().meant(reference))
    }
}

/// Returns the mode that the default network among `wants` decides, or else the oldest one in an administrator's
/// namespace.
fn declared_mode(
    wants: &[Wants],
    nic: &str,
    default: &[ObjectName],
    namespaces: &Namespaces,
) -> Option<NicMode> {
    let on_it = || wants.iter().filter(|wants| wants.master == nic);
    let mut default = default.iter();
    let by_default = default.find_map(|name| on_it().find(|wants| wants.name == *name));
    let by_ours = || on_it().find(|wants| namespaces.hold(&wants.name.namespace));
    let wants = by_default.or_else(by_ours)?;
    Some(NicMode {
        mode: wants.mode,
        says: format!("{} {} says so", wants.kind, wants.name),
    })
}

fn default_mode(namespaces: &Namespaces) -> NicMode {
    NicMode {
        mode: IpvlanMode::default(),
        says: format!(
            "no network of namespace {} says otherwise",
            namespaces.names().join(" or ")
        ),
    }
}

fn declared(catalog: &Catalog) -> Vec<Wants> {
    let networks = catalog.networks().iter().map(|network| Wants {
        kind: "SpiderMultusConfig",
        name: network.name.clone(),
        master: network.master.clone(),
        mode: network.mode,
    });
    networks.collect()
}

fn described(cluster: &Cluster) -> Vec<Wants> {
    let described = attachment::described(cluster).into_iter();
    let networks = described.map(|(name, master, mode)| Wants {
        kind: "NetworkAttachmentDefinition",
        name,
        master,
        mode,
    });
    networks.collect()
}

impl NicMode {
    /// The hint for a network that requests another mode.
    pub const HINT: &str = "a NIC has one ipvlan mode, which is its administrator's to say: use it in this network, or \
         set the other one in `nics.modes` of the agent's settings, or in a SpiderMultusConfig of the agent's namespace \
         or kube-system";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrator_s_oldest_network_says_a_nic_s_mode_whoever_comes_first() {
        let wants = |name: &str, master: &str, mode| {
            let (namespace, name) = name.split_once('/').unwrap();
            Wants {
                kind: "SpiderMultusConfig",
                name: ObjectName {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                },
                master: master.to_owned(),
                mode,
            }
        };
        let (l2, l3, l3s) = (IpvlanMode::L2, IpvlanMode::L3, IpvlanMode::L3s);
        let namespaces = Namespaces::of_agent("ebbtide-system");
        for (what, networks, default, expected) in [
            (
                "a tenant alone",
                vec![wants("team-a/x", "ens5", l2)],
                vec![],
                None,
            ),
            (
                "a tenant, older",
                vec![
                    wants("team-a/x", "ens5", l2),
                    wants("kube-system/x", "ens5", l3),
                ],
                vec![],
                Some(l3),
            ),
            (
                "of two of the administrator's the older",
                vec![
                    wants("kube-system/x", "ens5", l2),
                    wants("ebbtide-system/y", "ens5", l3),
                ],
                vec![],
                Some(l2),
            ),
            (
                "on another NIC",
                vec![wants("kube-system/x", "ens6", l2)],
                vec![],
                None,
            ),
            (
                "the cluster's default, wherever it is",
                vec![
                    wants("kube-system/x", "ens5", l2),
                    wants("default/y", "ens5", l3s),
                ],
                vec!["default/y"],
                Some(l3s),
            ),
            (
                "the default, by a name that a tenant has, too",
                vec![
                    wants("team-a/y", "ens5", l2),
                    wants("kube-system/y", "ens5", l3s),
                ],
                vec!["y"],
                Some(l3s),
            ),
        ] {
            let default = default
                .iter()
                .flat_map(|name| namespaces.meant(&name.parse().unwrap()));
            let default: Vec<ObjectName> = default.collect();
            let said = declared_mode(&networks, "ens5", &default, &namespaces);
            assert_eq!(said.map(|said| said.mode), expected, "{what}");
        }
    }
}
