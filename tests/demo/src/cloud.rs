//! Where the addresses of a run come from: a cloud's metadata tells them, or manifests declare them.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use ebbtide_vpc::{
    agent::Agent,
    lab::Lab,
    manifests,
    metadata::{Cloud, MetadataDouble},
    plan::{Family, Plan},
    snapshot::ip,
};

use ipnet::IpNet;

use super::arrival;

/// The names of the clouds, as the agents' configuration has them.
pub const CLOUDS: [&str; 5] = ["aws", "alibaba", "azure", "gcp", "tencent"];

/// The longest time until the agents believe what they were told when they started.
const BELIEVED: Duration = Duration::from_secs(30);

/// What tells a run's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// A pool for each NIC and family is declared.
    #[default]
    Declared,
    /// This cloud's metadata, as far as it tells: each network has an annotation.
    Told(Cloud),
}

impl Addresses {
    /// Returns the addresses that the cloud of this name tells, one of [`CLOUDS`].
    #[must_use]
    pub fn told_by(name: &str) -> Option<Self> {
        let mut clouds = Cloud::ALL.into_iter();
        clouds
            .find(|cloud| configured(*cloud) == name)
            .map(Self::Told)
    }

    /// Returns the plan of the VPC. Where a cloud tells the addresses, one NIC has none to spare at first.
    pub(super) fn plan(self) -> Plan {
        let mut plan = Plan::default();
        if let Self::Told(cloud) = self {
            arrival::leave_one(&mut plan, families(cloud));
        }
        plan
    }

    /// Returns a title of the step that starts the agents.
    pub(super) fn title(self) -> String {
        let nodes = "starting ebbtide-agent on master and worker1";
        match self {
            Self::Declared => nodes.to_owned(),
            Self::Told(cloud) => format!("{nodes}, and a double of {}'s metadata", title(cloud)),
        }
    }

    /// Returns what is to be said before the agents start.
    pub(super) fn remark(self) -> String {
        let Self::Told(cloud) = self else {
            return String::new();
        };
        let (title, name) = (title(cloud), configured(cloud));
        let v6 = match families(cloud) {
            [_, _] => String::new(),
            _ => format!(" {title} tells no IPv6 addresses for pods, so they have IPv4 alone."),
        };
        format!(
            "no pools: each network has `ebbtide.io/addresses: metadata`.{v6}\n\
             This machine's firmware is not {title}'s, so the agents' configuration has `cloud: {name}`.\n"
        )
    }

    /// Starts the agents, and what they ask. It must be kept as long as they run.
    pub(super) fn start_agents(self, lab: &mut Lab) -> Result<Option<MetadataDouble>> {
        let Self::Told(cloud) = self else {
            return lab.start_agents().map(|()| None);
        };
        announce_routers(lab)?;
        let metadata = MetadataDouble::start(&lab.vpc)?;
        metadata.everywhere(|knobs| knobs.speaks = vec![cloud]);
        let manifests = manifests::without_pools(&lab.vpc.plan);
        lab.start_agents_from(&manifests, &format!("cloud: {}\n", configured(cloud)))?;
        Ok(Some(metadata))
    }

    /// Waits until pods can have what was assigned when the VPC was built.
    pub(super) fn wait_believed(self, lab: &Lab) -> Result<()> {
        let Self::Told(cloud) = self else {
            return Ok(());
        };
        let start = Instant::now();
        while !all_believed(lab, cloud)? {
            if start.elapsed() > BELIEVED {
                bail!(
                    "the agents do not believe {}'s metadata after {BELIEVED:?}\n{}",
                    title(cloud),
                    lab.logs()
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// Returns the cloud's name in the agents' configuration.
const fn configured(cloud: Cloud) -> &'static str {
    match cloud {
        Cloud::Aws => "aws",
        Cloud::Alibaba => "alibaba",
        Cloud::Azure => "azure",
        Cloud::Gcp => "gcp",
        Cloud::Tencent => "tencent",
    }
}

/// Returns the cloud's name for people.
const fn title(cloud: Cloud) -> &'static str {
    match cloud {
        Cloud::Aws => "AWS",
        Cloud::Alibaba => "Alibaba Cloud",
        Cloud::Azure => "Azure",
        Cloud::Gcp => "Google Cloud",
        Cloud::Tencent => "Tencent Cloud",
    }
}

/// Returns the families of which a cloud's metadata tell addresses for pods.
pub(super) const fn families(cloud: Cloud) -> &'static [Family] {
    match cloud {
        Cloud::Aws | Cloud::Alibaba | Cloud::Azure => &Family::BOTH,
        Cloud::Gcp | Cloud::Tencent => &[Family::V4],
    }
}

/// Gives each node an IPv6 default route over its second NIC, after that over its first one, as a cloud's routers do by
/// announcing themselves: most clouds' metadata tell no IPv6 gateway, so the agents take the kernel's.
fn announce_routers(lab: &Lab) -> Result<()> {
    for node in &lab.vpc.plan.nodes {
        for nic in node.nics.iter().skip(1) {
            let gateway = nic.v6.gateway.to_string();
            let route = ["-6", "route", "add", "default", "via", &gateway];
            let over = ["dev", &nic.name, "metric", "2048"];
            ip(lab.vpc.node(&node.name), &[&route[..], &over].concat())?;
        }
    }
    Ok(())
}

/// Whether every agent's pools have every address of its node.
fn all_believed(lab: &Lab, cloud: Cloud) -> Result<bool> {
    for agent in lab.agents() {
        if usable(agent, cloud)? < assigned(lab, agent.node(), cloud) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns how many addresses an agent takes to be assigned and believes.
fn usable(agent: &Agent, cloud: Cloud) -> Result<usize> {
    let report = agent.control_json(&["cloud"])?;
    let nics = report["nics"].as_array().into_iter().flatten();
    let blocks = nics.flat_map(|nic| nic["blocks"].as_array().into_iter().flatten());
    let told = families(cloud);
    Ok(blocks
        .filter(|block| block["state"] == "usable")
        .filter_map(|block| block["block"].as_str()?.parse::<IpNet>().ok())
        .filter(|block| told.contains(&Family::of(block.addr())))
        .count())
}

/// Returns how many addresses a node's NICs have for pods, of those that the metadata tell.
fn assigned(lab: &Lab, node: &str, cloud: Cloud) -> usize {
    let nics = lab.vpc.plan.nics().filter(|nic| nic.node == node);
    let families = families(cloud);
    nics.flat_map(|nic| families.iter().map(|family| nic.subnet(*family)))
        .map(|subnet| subnet.secondary.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_cloud_s_and_every_cloud_has_one() {
        let told = CLOUDS.map(|name| Addresses::told_by(name).unwrap());
        assert_eq!(told, Cloud::ALL.map(Addresses::Told));
        assert_eq!(Addresses::told_by("oracle"), None);
    }
}
