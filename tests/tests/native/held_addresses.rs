//! The rule in front of the table `local`, for a pod whose address the node has as well: where it goes beside others'
//! rules, and that nothing is left of it.

use anyhow::{Context as _, Result, ensure};
use ebbtide_kernel::netlink::{Batch, direct::Direct, message::address_family};
use ebbtide_tests::chained::ChainedInterface;
use ebbtide_types::Family;
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    snapshot::{Snapshot, ip},
};

use rtnetlink::{
    packet_core::NLM_F_CREATE,
    packet_route::{
        RouteNetlinkMessage,
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

const NODE: &str = "master";
/// The address of the pod of [`ChainedInterface`].
const POD: &str = "10.88.7.2";
const OURS: &str = "from all lookup 7699 proto 235";
const LOCAL: &str = "from all lookup local";

fn ip_all(node: &Netns, commands: &[&str]) -> Result<()> {
    for command in commands {
        ip(node, &command.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Returns the IPv4 rules, in order.
fn rules(node: &Netns) -> Result<Vec<String>> {
    let all = ip(node, &["rule"])?;
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(all.lines().map(line).collect())
}

/// Adds the kernel's rule for the table `local` a second time, as an agent does on its way. `ip` would look whether it is
/// there.
fn repeat_local(node: &Netns) -> Result<()> {
    let mut batch = Batch::default();
    for family in Family::BOTH {
        let mut rule = RuleMessage::default();
        rule.header.family = address_family(family);
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Priority(0),
            RuleAttribute::Protocol(RouteProtocol::Kernel),
            RuleAttribute::Table(255),
        ];
        let add = RouteNetlinkMessage::NewRule(rule);
        batch.push("add it once more", add, NLM_F_CREATE);
    }
    node.run(|| Ok(Direct::open("in the test")?.run(batch)?))
}

fn eventually_begin(lab: &Lab, node: &Netns, expected: &[String]) -> Result<()> {
    eventually("the rules begin as they should", || {
        let found = rules(node)?;
        ensure!(found.starts_with(expected), "{found:#?}");
        let way = ip(node, &["route", "get", POD])?;
        ensure!(way.contains("table 7699"), "{way}");
        Ok(())
    })
    .with_context(|| lab.logs())
}

fn eventually_as(lab: &Lab, node: &Netns, before: &[String]) -> Result<()> {
    eventually("the rules are as before", || {
        let found = rules(node)?;
        ensure!(found == before, "{found:#?}, {before:#?} before");
        Ok(())
    })
    .with_context(|| lab.logs())
}

/// amazon-vpc-cni and Cilium move the kernel's rule, with rules of theirs in front of it.
#[test]
fn where_others_have_moved_local_ours_is_directly_in_front_of_it() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let take = format!("address add {POD}/32 dev ens5");
    let leave = format!("address del {POD}/32 dev ens5");
    for (local, theirs) in [(20, 10), (100, 99)] {
        ip_all(
            &node,
            &[
                &format!("rule add pref {theirs} fwmark 0x200/0xf00 lookup 2004"),
                &format!("rule add pref {local} lookup local protocol kernel"),
                "rule del pref 0 lookup local",
            ],
        )?;
        let before = rules(&node)?;
        ip_all(&node, &[&take])?;
        let theirs_says = format!("{theirs}: from all fwmark 0x200/0xf00 lookup 2004");
        let expected = [
            theirs_says,
            format!("{}: {OURS}", local - 1),
            format!("{local}: {LOCAL}"),
        ];
        eventually_begin(&lab, &node, &expected)?;
        ip_all(&node, &[&leave])?;
        eventually_as(&lab, &node, &before)?;
        ip_all(
            &node,
            &[
                "rule add pref 0 lookup local protocol kernel",
                &format!("rule del pref {local} lookup local"),
                &format!("rule del pref {theirs}"),
            ],
        )?;
    }
    // They begin while ours is there, and end.
    let before = rules(&node)?;
    ip_all(&node, &[&take])?;
    let first = [format!("0: {OURS}"), format!("0: {LOCAL}")];
    eventually_begin(&lab, &node, &first)?;
    ip_all(
        &node,
        &[
            "rule add pref 100 lookup local protocol kernel",
            "rule del pref 0 lookup local",
        ],
    )?;
    let moved = [format!("99: {OURS}"), format!("100: {LOCAL}")];
    eventually_begin(&lab, &node, &moved)?;
    ip_all(
        &node,
        &[
            "rule add pref 0 lookup local protocol kernel",
            "rule del pref 100 lookup local",
        ],
    )?;
    eventually_begin(&lab, &node, &first)?;
    // For VRFs it is moved behind all of Ebbtide's: nothing has to precede it.
    ip_all(
        &node,
        &[
            "rule add pref 32765 lookup local protocol kernel",
            "rule del pref 0 lookup local",
        ],
    )?;
    eventually("there is none", || {
        let found = rules(&node)?;
        ensure!(!found.iter().any(|rule| rule.contains(OURS)), "{found:#?}");
        let way = ip(&node, &["route", "get", POD])?;
        ensure!(way.contains("table 7700"), "{way}");
        Ok(())
    })
    .with_context(|| lab.logs())?;
    ip_all(
        &node,
        &[
            "rule add pref 0 lookup local protocol kernel",
            "rule del pref 32765 lookup local",
            &leave,
        ],
    )?;
    eventually_as(&lab, &node, &before)
}

/// A rule without a priority goes one below the second rule, so in front of `local` where that was moved.
#[test]
fn what_others_add_without_a_priority_stays_behind_local() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let route = format!("route add local {POD}/31 dev ens5 table local proto 66");
    ip_all(&node, &[&route])?;
    let first = [format!("0: {OURS}"), format!("0: {LOCAL}")];
    eventually_begin(&lab, &node, &first)?;
    ip_all(&node, &["rule add from 192.0.2.0/24 lookup 99"])?;
    // Somebody removes ours: it cannot come back in front without the other one, which stays behind `local`.
    let found = rules(&node)?;
    ensure!(found.starts_with(&first), "{found:#?}");
    ensure!(found[2] == "0: from 192.0.2.0/24 lookup 99", "{found:#?}");
    ip_all(&node, &["rule del pref 0 lookup 7699"])?;
    eventually("ours is back, behind", || {
        let found = rules(&node)?;
        ensure!(found[0] == format!("0: {LOCAL}"), "{found:#?}");
        ensure!(found.contains(&format!("0: {OURS}")), "{found:#?}");
        Ok(())
    })?;
    let (findings, _) = lab.agent(NODE).doctor()?;
    let named = findings
        .iter()
        .any(|f| f.what.contains("priority 0") && f.hint.contains("pref 0"));
    ensure!(named, "{findings:?}");
    ip_all(&node, &["rule del from 192.0.2.0/24 lookup 99"])?;
    eventually_begin(&lab, &node, &first)?;
    let (findings, _) = lab.agent(NODE).doctor()?;
    let note = findings
        .iter()
        .any(|f| f.what.contains("10.88.7.2/31") && f.hint.contains("google-guest-agent"));
    ensure!(note, "{findings:?}");
    Ok(())
}

#[test]
fn what_an_agent_left_that_ended_in_between_is_completed() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let before = Snapshot::of(&node)?;
    repeat_local(&node)?;
    let twice = rules(&node)?;
    ensure!(
        twice[..2] == [format!("0: {LOCAL}"), format!("0: {LOCAL}")],
        "{twice:#?}"
    );
    lab.start_agents()?;
    let pod = ChainedInterface::on(&mut lab, NODE)?;
    eventually("one rule", || {
        let found = rules(&node)?;
        let count = found.iter().filter(|rule| rule.contains(LOCAL)).count();
        ensure!(
            count == 1 && found[0] == format!("0: {LOCAL}"),
            "{found:#?}"
        );
        Ok(())
    })
    .with_context(|| lab.logs())?;
    // One that ended when it had added its rule, behind the kernel's.
    lab.agent(NODE).kill()?;
    ip_all(
        &node,
        &[
            &format!("address add {POD}/32 dev ens5"),
            "rule add pref 0 protocol 235 lookup 7699",
        ],
    )?;
    lab.agent(NODE).launch()?;
    lab.agent(NODE).wait_ready()?;
    let first = [format!("0: {OURS}"), format!("0: {LOCAL}")];
    eventually_begin(&lab, &node, &first)?;
    // The last pod ends without an agent, and the agent is uninstalled.
    lab.agent(NODE).kill()?;
    drop(pod);
    eventually("the pair is gone", || {
        let now = Snapshot::of(&node)?;
        ensure!(!now.mentions("guest0"), "{now:#?}");
        Ok(())
    })?;
    lab.agent(NODE).uninstall()?;
    ip_all(&node, &[&format!("address del {POD}/32 dev ens5")])?;
    before.comes_back(&node)
}

#[test]
fn with_local_rule_never_the_kernels_rule_is_first_and_doctor_says_what_comes_of_it() -> Result<()>
{
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    lab.agent(NODE).kill()?;
    lab.agent(NODE).configure("localRule: never\n")?;
    lab.agent(NODE).launch()?;
    lab.agent(NODE).wait_ready()?;
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let before = rules(&node)?;
    let route = format!("route add local {POD}/32 dev ens5 table local proto 66");
    ip_all(&node, &[&route])?;
    eventually("doctor", || {
        let (findings, _) = lab.agent(NODE).doctor()?;
        let lost = findings
            .iter()
            .any(|f| f.what.contains("does not answer them"));
        ensure!(lost, "{findings:?}");
        Ok(())
    })?;
    ensure!(rules(&node)? == before, "{:#?}", rules(&node)?);
    Ok(())
}
