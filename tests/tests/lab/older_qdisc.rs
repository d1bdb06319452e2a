//! A NIC with the older queueing discipline `ingress`, which others have installed. It is the only place for tc
//! filters, and has none for egress. Foreign filters stay, before, with and after pods.

use anyhow::{Result, ensure};
use ebbtide_demo::{Scenario, all_go_their_way};
use ebbtide_vpc::{
    lab::Lab, netns::Netns, nic_programs::has_tcx, patience::eventually, plan::Plan, snapshot::run,
};

const NIC: &str = "ens5";

fn tc(node: &Netns, arguments: &str) -> Result<String> {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    run(node, "tc", &arguments)
}

/// Returns `tc`'s list of the NIC's filters in one direction. The parent in it is named by the latest `tc`.
fn filters(node: &Netns, way: &str) -> Result<String> {
    let shown = tc(node, &format!("filter show dev {NIC} {way}"))?;
    Ok(shown.replace(" parent ffff:", ""))
}

/// Returns the NIC's queueing disciplines and filters. On other NICs our `clsact` stays, since others may use it by
/// now.
fn all(node: &Netns) -> Result<(String, String)> {
    let qdiscs = tc(node, &format!("qdisc show dev {NIC}"))?;
    Ok((qdiscs, filters(node, "ingress")?))
}

/// Whether the doctor reports that the place is taken.
fn is_told(lab: &mut Lab) -> Result<bool> {
    let (findings, _) = lab.agent("master").doctor()?;
    let mut findings = findings.iter();
    Ok(findings.any(|finding| finding.what.contains("foreign qdisc `ingress`")))
}

#[test]
fn others_ingress_qdisc_gets_the_program_for_its_own_way_alone_and_is_left_as_it_was() -> Result<()>
{
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    tc(&node, &format!("qdisc add dev {NIC} handle ffff: ingress"))?;
    let theirs = format!(
        "filter add dev {NIC} parent ffff: prio 50 protocol all handle 0x777777 fw action drop"
    );
    tc(&node, &theirs)?;
    let before = all(&node)?;

    // Only tc programs need a queueing discipline, TCX links do not.
    let by_filter = !has_tcx()?;
    let scenario = Scenario::create(&lab)?;
    let local = scenario.checks().into_iter();
    let local: Vec<_> = local
        .filter(|check| check.traffic.starts_with("NodePort, policy Local"))
        .collect();
    ensure!(local.len() == 4, "{} rows", local.len());
    all_go_their_way(&lab, &local)?;
    for look in ["after the first pod", "after a repair"] {
        let there = filters(&node, "ingress")?;
        ensure!(
            there.contains("host_nic_ingress") == by_filter,
            "{look}: {there}"
        );
        ensure!(
            !there.contains("host_nic_egress"),
            "{look}: it is run for what comes in: {there}"
        );
        ensure!(is_told(&mut lab)? == by_filter, "{look}: the doctor");
        // The agent compares plan and kernel when any object was removed.
        for verb in ["add", "del"] {
            tc(&node, &format!("qdisc {verb} dev lo clsact"))?;
        }
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    scenario.delete()?;
    eventually("the node to be as it was", || {
        let after = all(&node)?;
        ensure!(after == before, "{before:?} {after:?}");
        Ok(())
    })?;

    // Its owner removes it while pods run: then there is a place for both.
    let pod = lab.pod("master", "ens5", "p")?;
    tc(&node, &format!("qdisc del dev {NIC} ingress"))?;
    if by_filter {
        eventually("both programs", || {
            for way in ["ingress", "egress"] {
                let there = filters(&node, way)?;
                ensure!(there.contains(&format!("host_nic_{way}")), "{way}: {there}");
            }
            Ok(())
        })?;
    }
    ensure!(!is_told(&mut lab)?, "the doctor tells what was");
    pod.delete()
}
