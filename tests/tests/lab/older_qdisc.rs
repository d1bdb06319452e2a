//! A NIC on which others have the older queueing discipline, `ingress`: it is the one place for tc filters, and has
//! none for what goes out. What they have there stays, before, with and after pods.

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

/// What `tc` shows of the NIC's filters for one way; it names the parent as whoever came last did.
fn filters(node: &Netns, way: &str) -> Result<String> {
    let shown = tc(node, &format!("filter show dev {NIC} {way}"))?;
    Ok(shown.replace(" parent ffff:", ""))
}

/// The NIC's queueing disciplines and filters. On other NICs our `clsact` stays: somebody may have filters there by now.
fn all(node: &Netns) -> Result<(String, String)> {
    let qdiscs = tc(node, &format!("qdisc show dev {NIC}"))?;
    Ok((qdiscs, filters(node, "ingress")?))
}

/// Whether the doctor says that the place is taken.
fn is_told(lab: &mut Lab) -> Result<bool> {
    let (findings, _) = lab.agent("master").doctor()?;
    let mut findings = findings.iter();
    Ok(findings.any(|finding| finding.what.contains("queueing discipline `ingress`")))
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

    // Tc programs only: links need no queueing discipline.
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
        // The agent compares plan and kernel when something of anybody's went.
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

    // Its owner goes while pods run: then there is a place for both.
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
