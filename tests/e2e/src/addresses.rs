//! Where the pods' addresses are from: the cloud's metadata tell them, or pools declare them.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use ebbtide_vpc::{metadata::MetadataDouble, vpc::Vpc};
use serde::Serialize;
use serde_json::json;

use super::cloud::{Cloud, deploy};

/// What says which addresses pods may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Addresses {
    /// The cloud's metadata: each network has an annotation, and there is no pool.
    #[default]
    Told,
    /// A pool for each NIC of each node.
    Declared,
}

impl Addresses {
    /// Returns what is applied for them.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Told => "networks, Deployments, Services",
            Self::Declared => "networks, pools, Deployments, Services",
        }
    }

    /// Returns what shows people how many addresses are out.
    pub(super) const fn shown_by(self) -> &'static str {
        match self {
            Self::Told => "ebbtidectl pools",
            Self::Declared => "kubectl get spiderippool",
        }
    }

    /// Returns the cloud's example: a file, or a directory of files.
    pub(super) fn example(self, cloud: Cloud) -> PathBuf {
        let examples = deploy("examples").join(cloud.name());
        match self {
            Self::Told => examples.join("networks.yaml"),
            Self::Declared => examples.join("declared"),
        }
    }

    /// Returns the name of a NIC's pool: the agent's, or that of the example.
    pub(super) fn pool(self, cloud: Cloud, node: &str, nic: &str) -> String {
        match (self, cloud, nic) {
            (Self::Told, ..) => format!("{node}-{nic}-v4"),
            (Self::Declared, Cloud::Aws, nic) => format!("{node}-v4-{nic}"),
            (Self::Declared, Cloud::Alibaba, "eth0") => format!("{node}-172"),
            (Self::Declared, Cloud::Alibaba, _) => format!("{node}-192"),
        }
    }

    /// Returns the agents' configuration. A machine of the cloud needs none: its firmware says whose it is. User-mode Linux
    /// has no firmware.
    pub(super) fn configuration(self, cloud: Cloud) -> serde_json::Value {
        match self {
            Self::Told => json!({"cloud": cloud.metadata().setting()}),
            Self::Declared => json!({}),
        }
    }

    /// Starts what the agents ask.
    pub(super) fn serve(self, cloud: Cloud, vpc: &Vpc) -> Result<Option<MetadataDouble>> {
        if self == Self::Declared {
            return Ok(None);
        }
        let double = MetadataDouble::start(vpc).context("starting the double of the metadata")?;
        double.everywhere(|knobs| knobs.speaks = vec![cloud.metadata()]);
        Ok(Some(double))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::read_to_string;

    use ebbtide_vpc::plan::Plan;

    use super::*;

    #[test]
    fn the_networks_of_the_example_have_the_annotation_and_nothing_else_is_needed()
    -> std::io::Result<()> {
        for cloud in [Cloud::Aws, Cloud::Alibaba] {
            let networks = read_to_string(Addresses::Told.example(cloud))?;
            for nic in cloud.nics() {
                let master = format!("master: [{nic}]");
                assert!(networks.contains(&master), "{networks}");
            }
            let annotated = networks.matches("ebbtide.io/addresses: metadata").count();
            assert_eq!(annotated, cloud.nics().len());
            assert!(!networks.contains("SpiderIPPool"));
        }
        Ok(())
    }

    #[test]
    fn the_declared_pools_give_pods_what_the_cloud_has_for_them() -> std::io::Result<()> {
        for cloud in [Cloud::Aws, Cloud::Alibaba] {
            let example = Addresses::Declared.example(cloud);
            let networks = read_to_string(example.join("networks.yaml"))?;
            let pools = read_to_string(example.join("pools.yaml"))?;
            for nic in cloud.nics() {
                let master = format!("master: [{nic}]");
                assert!(networks.contains(&master), "{networks}");
            }
            assert!(!networks.contains("ebbtide.io/addresses"));
            let plan = cloud.plan();
            let nodes = plan.nodes.iter().filter(|node| node.name != Plan::CONTROL);
            for nic in nodes.flat_map(|node| &node.nics) {
                let name = Addresses::Declared.pool(cloud, &nic.node, &nic.name);
                let name = format!("name: {name}\n");
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
