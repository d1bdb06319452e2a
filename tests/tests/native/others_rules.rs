//! Foreign routing rules beside ours, added at any time: neither routes the other's packets.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::chained::ChainedInterface;
use ebbtide_vpc::{lab::Lab, netns::Netns, patience::eventually, plan::Plan, snapshot::ip};

/// The address of the pod of [`ChainedInterface`].
const POD: &str = "10.88.7.2";

fn ip_all(node: &Netns, commands: &[&str]) -> Result<()> {
    for command in commands {
        ip(node, &command.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Returns our IPv4 rules as `ip` shows them.
fn ours(node: &Netns) -> Result<Vec<String>> {
    let all = ip(node, &["rule", "show"])?;
    let ours = all.lines().filter(|line| line.contains("proto 235"));
    Ok(ours.map(ToOwned::to_owned).collect())
}

fn priorities(rules: &[String]) -> Result<BTreeSet<u32>> {
    let priority = |rule: &String| -> Result<u32> {
        let (priority, _) = rule.split_once(':').context("a rule without priority")?;
        Ok(priority.parse()?)
    };
    rules.iter().map(priority).collect()
}

/// Checks that the node reaches the pod by its veth, as it does if our rules are evaluated.
fn reaches_the_pod(node: &Netns) -> Result<()> {
    let way = ip(node, &["route", "get", POD])?;
    ensure!(
        way.contains("dev veth") && way.contains("table 7700"),
        "{way}"
    );
    Ok(())
}

/// Users' own marks are small numbers, and rules match them as a whole.
#[test]
fn what_others_mark_goes_by_their_tables_while_pods_are_there() -> Result<()> {
    const BEFORE: [u32; 6] = [1, 2, 4, 20, 66, 85];
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let far = "203.0.113.7";
    ip_all(
        &node,
        &[
            "link add vpn0 type veth peer name box0",
            "link set vpn0 up",
            "address add 172.18.0.1/24 dev box0",
            "link set box0 up",
            "route add 203.0.113.0/24 dev vpn0 table 1004",
        ],
    )
    .context("a VPN and containers")?;
    node.sysctls(&[("net/ipv4/ip_forward", "1")])?;
    let lead = |mark: u32| ip_all(&node, &[&format!("rule add fwmark {mark} lookup 1004")]);
    let goes_by_the_vpn = |mark: u32| -> Result<()> {
        let mark = mark.to_string();
        for from in [&[][..], &["from", "172.18.0.2", "iif", "box0"]] {
            let asked = [&["route", "get", far][..], from, &["mark", &mark]].concat();
            let way = ip(&node, &asked)?;
            ensure!(way.contains("dev vpn0"), "mark {mark}: {way}");
        }
        Ok(())
    };
    for mark in BEFORE {
        lead(mark)?;
        goes_by_the_vpn(mark).context("without a pod")?;
    }
    let chained = ChainedInterface::on(&mut lab, "master")?;
    for mark in BEFORE {
        goes_by_the_vpn(mark).with_context(|| format!("with a pod: {:?}", ours(&node)))?;
    }
    // Whatever values the NICs have: foreign rules take them, so they must change.
    let marks = |rules: &[String]| -> Result<BTreeSet<u32>> {
        let values = rules.iter().filter_map(|rule| {
            let (_, rest) = rule.split_once("fwmark 0x")?;
            let (value, mask) = rest.split_once('/')?;
            mask.starts_with("0x6e")
                .then(|| u32::from_str_radix(value, 16))
        });
        let mut values: BTreeSet<u32> = values.collect::<Result<_, _>>()?;
        values.remove(&0x6e);
        Ok(values)
    };
    let before = marks(&ours(&node)?)?;
    ensure!(before.len() >= 2, "{:?}", ours(&node)?);
    for mark in &before {
        lead(*mark)?;
    }
    eventually("other values", || {
        let now = marks(&ours(&node)?)?;
        ensure!(now.is_disjoint(&before), "{now:?}");
        ensure!(now.len() == before.len(), "{now:?}, {before:?} before");
        Ok(())
    })
    .with_context(|| lab.logs())?;
    for mark in before.iter().copied().chain(BEFORE) {
        goes_by_the_vpn(mark).with_context(|| format!("later: {:?}", ours(&node)))?;
    }
    let (found, _) = lab.agent("master").doctor()?;
    ensure!(
        !found.iter().any(|f| f.what.contains("foreign rules match")),
        "{found:?}"
    );
    lead(0x40)?;
    let (found, _) = lab.agent("master").doctor()?;
    let named = |words: &str| found.iter().any(|f| f.what.contains(words));
    ensure!(named("fwmark 0x40 lookup 1004"), "{found:?}");
    // After this rule no value is left.
    ip_all(&node, &["rule add fwmark 0x40/0x40 lookup 1004"])?;
    eventually("`nics` to name it", || {
        let nics = lab.agent("master").control(&["nics"])?;
        ensure!(nics.contains("no mark: foreign rules match"), "{nics}");
        Ok(())
    })?;
    chained.delete()
}

#[test]
fn rules_of_others_that_would_take_pods_packets_come_behind_ours() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let chained = ChainedInterface::on(&mut lab, "master")?;
    reaches_the_pod(&node)?;
    for (name, table, rule) in [
        ("strongSwan's", "220", "rule add pref 220 lookup 220"),
        ("without a priority", "221", "rule add lookup 221"),
        (
            "by this destination",
            "222",
            "rule add to 10.88.0.0/16 lookup 222",
        ),
    ] {
        ip_all(
            &node,
            &[
                &format!("route add 10.0.0.0/8 dev ens5 table {table}"),
                rule,
            ],
        )?;
        eventually(name, || reaches_the_pod(&node)).with_context(|| lab.logs())?;
    }
    let rules = ours(&node)?;
    let (found, _) = lab.agent("master").doctor()?;
    ensure!(
        !found.iter().any(|f| f.what.contains("comes before")),
        "{found:?}"
    );
    ensure!(
        rules.iter().any(|rule| rule.contains("lookup 7700")),
        "{rules:?}"
    );
    let last = priorities(&rules)?
        .into_iter()
        .next_back()
        .context("no rule")?;
    ensure!(last < 220, "{rules:?}");
    // If there is no free block of priorities, this is reported.
    ip_all(
        &node,
        &[
            "route add 10.0.0.0/8 dev ens5 table 223",
            "rule add pref 3 lookup 223",
        ],
    )?;
    eventually("the doctor to name it", || {
        let (found, _) = lab.agent("master").doctor()?;
        let what = found
            .iter()
            .find(|f| f.what.contains("3: from all lookup 223"));
        let what = what.with_context(|| format!("{found:?}"))?;
        ensure!(what.hint.contains("ip rule add pref"), "{what}");
        Ok(())
    })?;
    chained.delete()
}

#[test]
fn while_our_rules_move_none_is_missing() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let chained = ChainedInterface::on(&mut lab, "master")?;
    let before = priorities(&ours(&node)?)?;
    ip_all(&node, &["rule add pref 1003 from 192.0.2.0/24 lookup 220"])?;
    eventually("our rules to move", || {
        // Without a retry: no attempt may fail.
        if let Err(e) = reaches_the_pod(&node) {
            return Ok(Err(e));
        }
        let now = priorities(&ours(&node)?)?;
        ensure!(now.is_disjoint(&before), "{now:?}");
        Ok(Ok(()))
    })
    .with_context(|| lab.logs())??;
    let (found, _) = lab.agent("master").doctor()?;
    ensure!(
        !found.iter().any(|f| f.what.contains("comes before")),
        "{found:?}"
    );
    chained.delete()
}
