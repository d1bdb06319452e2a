//! `ebbtide-agent uninstall`, and the last pod, leave the host as it was.

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{
    chained::ChainedInterface,
    crowd::{moments::AFTERWARDS, state::State},
};
use ebbtide_vpc::{
    lab::Lab,
    patience::eventually,
    plan::Plan,
    snapshot::{Snapshot, ip},
};

#[test]
fn pods_that_ended_without_an_agent_leave_nothing_after_uninstall() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let before = State::of(&node)?;
    lab.start_agents()?;
    let chained = ChainedInterface::on(&mut lab, "master")?;
    let rules = || ip(&node, &["rule", "show"]);

    let said = lab.agent("master").uninstall()?;
    ensure!(said.contains("an agent still runs here"), "{said}");
    lab.agent("master").kill()?;
    let said = lab.agent("master").uninstall()?;
    ensure!(
        said.contains("1 pod interface(s) are still there"),
        "{said}"
    );
    ensure!(rules()?.contains("lookup 770"), "{}", rules()?);

    // Its namespace ends without a DEL.
    drop(chained);
    eventually("the pair is gone", || {
        let now = Snapshot::of(&node)?;
        ensure!(!now.mentions("guest0"), "{now:#?}");
        Ok(())
    })?;
    ensure!(rules()?.contains("lookup 770"), "{}", rules()?);
    let said = lab.agent("master").uninstall()?;
    ensure!(
        said.contains("no rules, routes or programs of Ebbtide are in the host"),
        "{said}"
    );
    before.assert_same(&State::of(&node)?, "after uninstall", &AFTERWARDS)?;
    ensure!(!lab.agent("master").bpf().exists(), "what was pinned is");

    // A second time, with nothing left to do.
    lab.agent("master").uninstall()?;
    before.assert_same(&State::of(&node)?, "after uninstall, again", &AFTERWARDS)?;

    // A new agent starts from the beginning.
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    let chained = ChainedInterface::on(&mut lab, "master")?;
    ensure!(rules()?.contains("lookup 770"), "{}", rules()?);
    chained.delete()
}

#[test]
fn settings_are_given_back_by_an_agent_that_did_not_change_them() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let before = State::of(&node)?;
    lab.start_agents()?;
    let chained = ChainedInterface::on(&mut lab, "master")?;
    let with_a_pod = State::of(&node)?;
    let changed = before.assert_same(&with_a_pod, "with a pod", &AFTERWARDS);
    let changed = format!("{:#}", changed.err().context("nothing was changed")?);
    ensure!(
        changed.contains("+ net/ipv4/conf/") || changed.contains("\nnet/ipv4/conf/"),
        "{changed}"
    );
    for _ in 0..2 {
        lab.agent("master").kill()?;
        lab.agent("master").launch()?;
        lab.agent("master").wait_ready()?;
        let noted = lab.agent("master").state().join("settings-before.json");
        ensure!(noted.exists(), "what settings were before is not noted");
    }
    chained.delete()?;
    eventually("all is as it was", || {
        before.assert_same(&State::of(&node)?, "after the last pod", &AFTERWARDS)
    })
    .with_context(|| lab.logs())
}
