//! Pool addresses that the node itself has: cloud-init, ec2-net-utils and similar tools configure all of the cloud's
//! addresses on the NIC.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    manifests,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
};
use serde_json::json;

/// The number of addresses of a pool in the plan.
const SIZE: usize = 5;

fn change(node: &Netns, verb: &str, address: IpAddr, link: &str) -> Result<()> {
    // On other links without the subnet, which is behind the NIC.
    let length = match (address, link) {
        (IpAddr::V4(_), "ens6") => 20,
        (IpAddr::V6(_), "ens6") => 64,
        (IpAddr::V4(_), _) => 32,
        (IpAddr::V6(_), _) => 128,
    };
    let net = format!("{address}/{length}");
    ip(node, &["address", verb, &net, "dev", link]).map(drop)
}

/// Returns a pool address of each family.
fn secondary(lab: &Lab, number: usize) -> [IpAddr; 2] {
    let nic = lab.vpc.nic("master", "ens6");
    Family::BOTH.map(|family| nic.subnet(family).secondary[number])
}

/// Adds pods on ens6 until there is no address left. Returns them, and the error of the last ADD.
fn fill(lab: &Lab, round: &str) -> Result<(Vec<Pod>, String)> {
    let mut pods = Vec::new();
    loop {
        match lab.pod("master", "ens6", &format!("{round}-{}", pods.len())) {
            Ok(pod) => pods.push(pod),
            Err(e) => return Ok((pods, format!("{e:#}"))),
        }
        ensure!(pods.len() <= SIZE, "more pods than addresses");
    }
}

#[test]
fn an_address_that_the_node_has_is_no_pods_and_free_again_when_it_goes() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    ip(&node, &["link", "add", "dummy7", "type", "dummy"])?;
    ip(&node, &["link", "set", "dummy7", "up"])?;
    // On the NIC, on a link that is not a NIC, and on the loopback, with the families on different links.
    let places = ["ens6", "dummy7", "lo"];
    let held: Vec<[IpAddr; 2]> = (0..places.len())
        .map(|number| secondary(&lab, number))
        .collect();
    for (number, addresses) in held.iter().enumerate() {
        for (shift, address) in addresses.iter().enumerate() {
            change(
                &node,
                "add",
                *address,
                places[(number + shift) % places.len()],
            )?;
        }
    }
    // Without waiting, as the kernel's netlink notifications take a moment.
    let (pods, refusal) = fill(&lab, "first")?;
    ensure!(
        pods.len() == SIZE - held.len(),
        "{} pods, then {refusal}",
        pods.len()
    );
    for address in held.iter().flatten() {
        let own = pods.iter().any(|pod| pod.addresses.contains(address));
        ensure!(!own, "{address} is the node's and a pod's");
    }
    let why = format!("{}: the node has it on ens6", held[0][0]);
    ensure!(refusal.contains(&why), "{why:?} is not in {refusal}");

    let shown = lab.agent("master").control(&["pools"])?;
    for (number, [v4, v6]) in held.iter().enumerate() {
        for (family, address, shift) in [(Family::V4, v4, 0), (Family::V6, v6, 1)] {
            let link = places[(number + shift) % places.len()];
            let pool = manifests::pool(lab.vpc.nic("master", "ens6"), family);
            let line = format!("{address} of {pool} is held: the node has it on {link}");
            ensure!(shown.contains(&line), "{line:?} is not in\n{shown}");
        }
    }
    let status = lab.agent("master").control(&["status"])?;
    let what = "is not given to pods: the node has it on ens6";
    ensure!(status.contains(what), "{status}");
    ensure!(lab.agent("master").log().contains(what));
    let looked_at = lab
        .agent("master")
        .control(&["ip", &held[0][1].to_string()])?;
    ensure!(looked_at.contains("is not given to pods"), "{looked_at}");

    for (number, addresses) in held.iter().enumerate() {
        for (shift, address) in addresses.iter().enumerate() {
            change(
                &node,
                "del",
                *address,
                places[(number + shift) % places.len()],
            )?;
        }
    }
    eventually("the addresses are free", || {
        let pools = lab.agent("master").control(&["pools"])?;
        ensure!(!pools.contains("is held"), "{pools}");
        Ok(())
    })?;
    let (more, refusal) = fill(&lab, "second")?;
    let mut given: Vec<IpAddr> = more.iter().flat_map(|pod| pod.addresses.clone()).collect();
    let mut expected: Vec<IpAddr> = held.iter().flatten().copied().collect();
    given.sort();
    expected.sort();
    ensure!(given == expected, "{given:?}, then {refusal}");
    Ok(())
}

#[test]
fn an_address_by_name_that_the_node_has_is_refused_and_a_pod_that_has_it_keeps_it() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let pod = lab.pod("master", "ens6", "earlier")?;
    for family in Family::BOTH {
        let wanted = lab.vpc.nic("master", "ens6").subnet(family).secondary[3];
        change(&node, "add", wanted, "ens6")?;
        let netns = Netns::new("named")?;
        let sandbox = ebbtide_vpc::cni::Sandbox::new(&netns, "named", "named");
        let plugin = lab.agent("master").plugin();
        let mut config = plugin.config(&manifests::network("ens6"));
        config["runtimeConfig"] = json!({ "ips": [wanted.to_string()] });
        let config = config.to_string();
        let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
        let why =
            format!("the requested address {wanted} is not available: the node has it on ens6");
        ensure!(error.msg.contains(&why), "{error}");
        ensure!(
            lab.agent("master").addresses_in_use()? == 2,
            "something is kept"
        );
        change(&node, "del", wanted, "ens6")?;
        let result = plugin.call("ADD", Some(&sandbox), &config)?.success()?;
        ensure!(
            result["ips"].to_string().contains(&wanted.to_string()),
            "{result}"
        );
        plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    }

    let [own, _] = secondary(&lab, 0);
    ensure!(pod.addresses.contains(&own), "{:?}", pod.addresses);
    change(&node, "add", own, "ens6")?;
    let again = pod.call("ADD").context("a repeated ADD")?;
    ensure!(again["ips"] == pod.result["ips"], "{again}");
    eventually("doctor", || {
        let (findings, fails) = lab.agent("master").doctor()?;
        let what = format!("{own}, which pod default/earlier has");
        let found = findings.iter().find(|finding| finding.what.contains(&what));
        let finding = found.with_context(|| format!("{findings:?}"))?;
        // A rule in front of the table `local` leads to the pod.
        ensure!(!fails, "{finding}");
        ensure!(
            finding
                .hint
                .contains(&format!("ip address del {own} dev ens6")),
            "{finding}"
        );
        Ok(())
    })
}
