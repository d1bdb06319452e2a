//! A NIC that is renamed while pods use it: late renames by udev, distribution upgrades.

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    patience::{IMPATIENCE, PATIENCE, eventually},
    plan::{Family, Plan},
    snapshot::{Snapshot, ip},
    traffic::Server,
};

use super::node_changes::{
    PORT, ask_node_port, checked, expose, reaches_the_world, serve_the_world,
};

/// Renames a link as udev does: before Linux 6.2 a link that is up cannot be renamed. Setting it down removes its IPv6
/// addresses.
pub(crate) fn rename(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let node = lab.vpc.node("master");
    ip(node, &["link", "set", from, "down"])?;
    ip(node, &["link", "set", from, "name", to])?;
    ip(node, &["link", "set", to, "up"])?;
    let own = lab
        .vpc
        .nic("master", "ens6")
        .subnet(Family::V6)
        .primary
        .to_string();
    ip(node, &["address", "replace", &own, "dev", to, "nodad"]).map(drop)
}

/// Returns the host's rules, and the routes in our tables, that name a link.
fn ours(lab: &Lab, link: &str) -> Result<Vec<String>> {
    let node = lab.vpc.node("master");
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for what in [
            &["rule", "show"][..],
            &["route", "show", "table", "all", "proto", "235"],
        ] {
            let shown = ip(node, &[&[family], what].concat())?;
            let about = shown
                .lines()
                .filter(|line| line.split_whitespace().any(|word| word == link));
            lines.extend(about.map(str::to_owned));
        }
    }
    Ok(lines)
}

#[test]
fn a_nic_that_is_renamed_keeps_its_routing_and_its_pods_and_is_said_to_be_called_otherwise()
-> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let _world = serve_the_world(&lab)?;
    let pod = lab.pod("master", "ens6", "c")?;
    let _server = Server::on_any(&pod.netns, PORT)?;
    let addresses = Family::BOTH.map(|family| lab.vpc.nic("master", "ens6").primary(family));
    expose(&lab, &pod, &addresses)?;
    let works = |lab: &Lab, what: &str| -> Result<()> {
        eventually(format_args!("to the world, {what}"), || {
            reaches_the_world(&pod.netns, IMPATIENCE)
        })?;
        for (number, address) in addresses.into_iter().enumerate() {
            eventually(format_args!("a NodePort at {address}, {what}"), || {
                let wires = ask_node_port(lab, number, address)?;
                // The wire has its name from the plan.
                ensure!(wires == ["master/ens6"], "answered by {wires:?}");
                Ok(())
            })?;
        }
        Ok(())
    };
    works(&lab, "before")?;
    let before = ours(&lab, "ens6")?;
    ensure!(!before.is_empty(), "nothing of ours speaks of ens6");

    for _ in 0..2 {
        rename(&lab, "ens6", "enp6s0")?;
        works(&lab, "renamed")?;
        let renamed: Vec<String> = before
            .iter()
            .map(|line| line.replace("ens6", "enp6s0"))
            .collect();
        eventually("the same rules and routes, by the new name", || {
            let (old, new) = (ours(&lab, "ens6")?, ours(&lab, "enp6s0")?);
            ensure!(old.is_empty(), "of the old name: {old:#?}");
            ensure!(new == renamed, "{new:#?} instead of {renamed:#?}");
            Ok(())
        })
        .with_context(|| lab.logs())?;
        let status = lab.agent("master").control(&["status"])?;
        let said = "the NIC ens6 of pod default/c (eth0) is called enp6s0 now";
        ensure!(status.contains(said), "{status}");
        let (findings, fails) = lab.agent("master").doctor()?;
        let finding = findings.iter().find(|finding| finding.what.contains(said));
        let finding = finding.with_context(|| format!("{findings:?}"))?;
        ensure!(
            finding.hint.contains("ip link set enp6s0 name ens6"),
            "{finding}"
        );
        ensure!(
            !fails
                || findings
                    .iter()
                    .any(|other| other.what.contains("ens6") && other != finding),
            "{findings:?}"
        );

        // A new agent only knows the old name, from the record.
        lab.agent("master").kill()?;
        lab.agent("master").launch()?;
        lab.agent("master").wait_ready()?;
        works(&lab, "with a new agent")?;
        checked(&pod)?;

        rename(&lab, "enp6s0", "ens6")?;
        works(&lab, "named back")?;
        eventually("all is as it was", || {
            let now = ours(&lab, "ens6")?;
            ensure!(now == before, "{now:#?} instead of {before:#?}");
            let status = lab.agent("master").control(&["status"])?;
            ensure!(!status.contains("problem"), "{status}");
            Ok(())
        })?;
    }
    reaches_the_world(&pod.netns, PATIENCE)?;
    lab.vpc.assert_no_violations()?;
    let node = lab.vpc.node("master").clone();
    pod.delete()?;
    eventually("nothing is left of it", || {
        ensure!(!Snapshot::of(&node)?.mentions("enp6s0"));
        ensure!(ours(&lab, "ens6")?.is_empty());
        Ok(())
    })
}
