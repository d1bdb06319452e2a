//! The clouds of the guides: their NICs, networks and apps.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use ebbtide_vpc::{metadata, plan::Plan};
use serde::Serialize;
use serde_json::{Value, json};

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

    /// Returns the name of its examples' directory.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Alibaba => "alibaba",
        }
    }

    /// Returns the cloud whose metadata service the nodes have.
    pub(super) const fn metadata(self) -> metadata::Cloud {
        match self {
            Self::Aws => metadata::Cloud::Aws,
            Self::Alibaba => metadata::Cloud::Alibaba,
        }
    }

    /// Returns the VPC. The nodes have IPv6 addresses, and the pods have IPv4 alone, as in the guides.
    pub(super) fn plan(self) -> Plan {
        let mut plan = match self {
            Self::Aws => Plan::default().cluster(),
            Self::Alibaba => Plan::alibaba().cluster(),
        };
        for nic in plan.nodes.iter_mut().flat_map(|node| &mut node.nics) {
            nic.v6.secondary.clear();
        }
        plan
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

    /// Returns the chart's values, if it is installed by Helm.
    pub(super) fn values(self) -> Option<Value> {
        match self {
            Self::Aws => None,
            Self::Alibaba => Some(json!({
                "ipam": {"enableStatefulSet": false},
                "multus": {"multusCNI": {"defaultCniCRName": "ipvlan-eth0"}},
            })),
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
