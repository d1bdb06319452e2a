//! The clouds of the guides: their networks, and the manifests that a person applies.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use ebbtide_vpc::plan::Plan;
use serde::Serialize;

/// The directory of the shipped manifests.
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
/// The manifests of an app: pods and Services.
const APP: &str = include_str!("app.yaml");

/// A cloud: two nodes with two NICs each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cloud {
    /// Each NIC in a subnet of its own; installed by `deploy/ebbtide.yaml`.
    #[default]
    Aws,
    /// Both nodes in both subnets; installed by the Helm chart.
    Alibaba,
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aws => "AWS",
            Self::Alibaba => "Alibaba Cloud",
        })
    }
}

/// A Deployment on one NIC of every node, with its Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) nic: &'static str,
    /// The NodePort of the Service with policy Cluster.
    pub(super) cluster: u16,
    /// The NodePort of the Service with policy Local.
    pub(super) local: u16,
}

const fn app(name: &'static str, nic: &'static str, number: u16) -> App {
    App {
        name,
        nic,
        cluster: 30_000 + number,
        local: 30_010 + number,
    }
}

const AWS: [App; 2] = [app("web5", "ens5", 5), app("web6", "ens6", 6)];
const ALIBABA: [App; 2] = [app("web0", "eth0", 0), app("web1", "eth1", 1)];

impl Cloud {
    /// Returns the apps: one on each NIC.
    pub(super) const fn apps(self) -> &'static [App; 2] {
        match self {
            Self::Aws => &AWS,
            Self::Alibaba => &ALIBABA,
        }
    }

    /// Returns the names of the NICs; the first has the default route.
    pub(super) fn nics(self) -> [&'static str; 2] {
        self.apps().map(|app| app.nic)
    }

    pub(super) fn plan(self) -> Plan {
        match self {
            Self::Aws => Plan::default().cluster(),
            Self::Alibaba => Plan::alibaba().cluster(),
        }
    }

    /// Returns the namespace of the networks.
    pub(super) const fn namespace(self) -> &'static str {
        match self {
            Self::Aws => "default",
            Self::Alibaba => "kube-system",
        }
    }

    /// Returns the network of a NIC, as pods name it.
    pub(super) fn network(self, nic: &str) -> String {
        format!("{}/ipvlan-{nic}", self.namespace())
    }

    /// Returns the name of a NIC's pool in the examples.
    pub(super) fn pool(self, node: &str, nic: &str) -> String {
        match (self, nic) {
            (Self::Aws, nic) => format!("{node}-v4-{nic}"),
            (Self::Alibaba, "eth0") => format!("{node}-172"),
            (Self::Alibaba, _) => format!("{node}-192"),
        }
    }

    /// Returns the files with networks and pools.
    pub(super) fn examples(self) -> [PathBuf; 2] {
        let cloud = match self {
            Self::Aws => "aws",
            Self::Alibaba => "alibaba",
        };
        ["networks.yaml", "pools.yaml"].map(|file| deploy("examples").join(cloud).join(file))
    }

    /// Returns the chart's values (JSON), if it is installed by Helm.
    pub(super) const fn values(self) -> Option<&'static str> {
        match self {
            Self::Aws => None,
            Self::Alibaba => Some(
                r#"{"ipam": {"enableStatefulSet": false}, "multus": {"multusCNI": {"defaultCniCRName": "ipvlan-eth0"}}}"#,
            ),
        }
    }

    /// Returns the manifests of both apps.
    pub(super) fn manifests(self) -> String {
        let apps = self.apps().iter();
        apps.map(|app| {
            let network = match (self, app.nic) {
                // This app names no network: the chart's default network applies.
                (Self::Alibaba, "eth0") => String::new(),
                (_, nic) => format!("v1.multus-cni.io/default-network: {}", self.network(nic)),
            };
            APP.replace("@APP@", app.name)
                .replace("@CLUSTER@", &app.cluster.to_string())
                .replace("@LOCAL@", &app.local.to_string())
                .replace("@NETWORK@", &network)
        })
        .collect()
    }
}

/// Returns the path of a shipped file or directory.
pub(super) fn deploy(name: &str) -> PathBuf {
    Path::new(DEPLOY).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_give_pods_what_the_cloud_has_for_them() -> std::io::Result<()> {
        for cloud in [Cloud::Aws, Cloud::Alibaba] {
            let [networks, pools] = cloud.examples().map(std::fs::read_to_string);
            let (networks, pools) = (networks?, pools?);
            for nic in cloud.nics() {
                let master = format!("master: [{nic}]");
                assert!(networks.contains(&master), "{networks}");
            }
            let plan = cloud.plan();
            let nodes = plan.nodes.iter().filter(|node| node.name != Plan::CONTROL);
            for nic in nodes.flat_map(|node| &node.nics) {
                let name = format!("name: {}\n", cloud.pool(&nic.node, &nic.name));
                let pool = pools.split("---\n").find(|pool| pool.contains(&name));
                let pool = pool.unwrap_or_else(|| panic!("{cloud:?} has no pool {name}"));
                let given = &nic.v4.secondary;
                for expected in [
                    format!("subnet: {}\n", nic.v4.primary.trunc()),
                    format!("ips: [{}-{}]\n", given[0], given[given.len() - 1]),
                    format!("gateway: {}\n", nic.v4.gateway),
                    format!("nodeName: [{}]\n", nic.node),
                ] {
                    assert!(pool.contains(&expected), "{expected} is not in {pool}");
                }
            }
        }
        Ok(())
    }
}
