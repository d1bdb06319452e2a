//! The objects that `kubectl get` must show.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::plan::Family;
use ipnet::IpNet;
use serde_json::Value;

use super::{
    addresses::Addresses,
    stage::{Pod, Stage},
    told,
};

/// Checks that every pod has an address that the VPC knows for its node's NIC.
pub(super) fn addresses(stage: &Stage) -> Result<String> {
    let mut seen: Vec<String> = Vec::new();
    for pod in stage.web()? {
        let (nic, _) = stage.place(&pod)?;
        let given = stage.vpc.nic(&pod.node, nic).subnet(Family::V4);
        ensure!(
            given.secondary.contains(&pod.address),
            "{} on {} has {}, which is none of {:?}",
            pod.name,
            pod.node,
            pod.address,
            given.secondary
        );
        seen.push(pod.address.to_string());
    }
    ensure!(seen.len() == 4, "{} pods, not 4", seen.len());
    Ok(format!("Running: {}", seen.join(" ")))
}

/// Checks that each SpiderMultusConfig has its NetworkAttachmentDefinition and owns it.
pub(super) fn attachments(stage: &Stage) -> Result<String> {
    let names = stage.cloud.nics().map(|nic| format!("ipvlan-{nic}"));
    let of = [
        "-n",
        stage.cloud.namespace(),
        "network-attachment-definitions",
    ];
    for name in &names {
        let made = stage.cluster.get(&[&of[..], &[name]].concat())?;
        let owner = &made["metadata"]["ownerReferences"][0];
        ensure!(
            owner["kind"] == "SpiderMultusConfig" && owner["name"] == **name,
            "{name} belongs to {owner}"
        );
        let config = made["spec"]["config"].as_str().context("no spec.config")?;
        let config: Value = serde_json::from_str(config).context("spec.config")?;
        let plugin = config.pointer("/plugins/0/type").or(config.get("type"));
        ensure!(
            plugin == Some(&Value::from("ebbtide")),
            "{name} is for {plugin:?}"
        );
    }
    Ok(names.join(" "))
}

/// Checks that the pools count and name the addresses of their pods.
pub(super) fn pools(stage: &Stage) -> Result<String> {
    let pods = stage.web()?;
    stage.until("the pools tell of their pods", || {
        pods.iter().try_for_each(|pod| counted(stage, pod))
    })?;
    Ok("1 of 5 allocated in each of 4".into())
}

/// Checks that a pod's pool has one address in use, which is this pod's.
pub(super) fn counted(stage: &Stage, pod: &Pod) -> Result<()> {
    match stage.addresses {
        Addresses::Told => told::counted(stage, pod),
        Addresses::Declared => allocated(stage, pod, &stage.place(pod)?.1, 5),
    }
}

/// Checks that a declared pool of so many addresses has one in use, which is this pod's.
pub(super) fn allocated(stage: &Stage, pod: &Pod, name: &str, total: u64) -> Result<()> {
    let status = stage.cluster.get(&["spiderippool", name])?["status"].take();
    ensure!(
        status["allocatedIPCount"] == 1 && status["totalIPCount"] == total,
        "{name}: {status}"
    );
    let allocated = status["allocatedIPs"].as_str().context("no allocatedIPs")?;
    let allocated: Value = serde_json::from_str(allocated)?;
    let holder = &allocated[pod.address.to_string()]["pod"];
    let expected = format!("default/{}", pod.name);
    ensure!(
        *holder == expected,
        "{name}: {} belongs to {holder}",
        pod.address
    );
    Ok(())
}

/// Returns the message of the Event of this reason on a pod.
pub(super) fn event(stage: &Stage, pod: &str, reason: &str) -> Result<String> {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let of = ["events", "--field-selector", &selector];
    let events = stage.cluster.get(&of)?;
    let message = events["items"][0]["message"].as_str();
    let message = message.with_context(|| format!("no {reason} on {pod}"))?;
    Ok(message.to_owned())
}

/// Checks that each pod has a SpiderEndpoint with its address, pool and node.
pub(super) fn endpoints(stage: &Stage) -> Result<String> {
    let pods = stage.web()?;
    stage.until("every pod has its SpiderEndpoint", || {
        pods.iter().try_for_each(|pod| endpoint(stage, pod))
    })?;
    Ok(format!("{} of {}", pods.len(), pods.len()))
}

fn endpoint(stage: &Stage, pod: &Pod) -> Result<()> {
    let (_, pool) = stage.place(pod)?;
    let endpoint = stage.cluster.get(&["spiderendpoint", &pod.name])?;
    let current = &endpoint["status"]["current"];
    let ip = &current["ips"][0];
    let address: IpNet = ip["ipv4"].as_str().context("no ipv4")?.parse()?;
    ensure!(
        address.addr() == pod.address
            && ip["ipv4Pool"] == pool
            && ip["interface"] == "eth0"
            && current["node"] == pod.node,
        "{}: {current}",
        pod.name
    );
    Ok(())
}

/// Checks that each pod has its network status in Multus' format.
pub(super) fn network_status(stage: &Stage) -> Result<String> {
    let mut shown = String::new();
    for pod in stage.web()? {
        let (nic, _) = stage.place(&pod)?;
        let status = stage.network_status(&pod)?;
        let own = &status[0];
        let address: Option<IpAddr> = own["ips"][0].as_str().and_then(|ip| ip.parse().ok());
        ensure!(
            own["name"] == stage.cloud.network(nic)
                && own["interface"] == "eth0"
                && own["default"] == true
                && address == Some(pod.address),
            "{}: {status}",
            pod.name
        );
        shown = format!(
            "{} eth0 {}",
            own["name"].as_str().unwrap_or_default(),
            pod.address
        );
    }
    Ok(shown)
}

/// Checks that the Services' networks are discovered.
pub(super) fn services(stage: &Stage) -> Result<String> {
    let coordinator = stage.cluster.get(&["spidercoordinator", "default"])?;
    let status = &coordinator["status"];
    ensure!(
        status["serviceCIDR"][0] == ebbtide_cluster::ControlPlane::SERVICES.to_string(),
        "{status}"
    );
    Ok(status["reason"].as_str().unwrap_or_default().to_owned())
}
