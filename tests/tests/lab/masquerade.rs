//! Foreign MASQUERADE rules for all of a node: their effect on pods on ipvlan l3, and ways to exempt pods. What a pod
//! sends by the NIC passes the host's OUTPUT and POSTROUTING.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_demo::{Scenario, WAYS_TO_C};
use ebbtide_vpc::{
    iptables,
    lab::Lab,
    patience::IMPATIENCE,
    plan::{Family, Plan},
    traffic::{Client, Protocol},
};
use tempfile::TempDir;

/// The rule as in ip-masq-agent, firewalld and Docker's guides, after the Service proxy's own rules.
const MASQUERADE: &str = "*nat\n-A POSTROUTING -o ens6 -j MASQUERADE\nCOMMIT\n";

/// Returns a rule that exempts the pods' addresses in the same table, before the MASQUERADE.
fn accept(lab: &Lab, family: Family) -> String {
    let secondary = &lab.vpc.nic("master", "ens6").subnet(family).secondary;
    let rules: Vec<String> = secondary
        .iter()
        .map(|address| format!("-I POSTROUTING -o ens6 -s {address} -j ACCEPT\n"))
        .collect();
    format!("*nat\n{}COMMIT\n", rules.concat())
}

/// Returns a rule for pods in another table: what they send by the NIC is not tracked at all.
fn untrack(lab: &Lab, family: Family) -> String {
    let secondary = &lab.vpc.nic("master", "ens6").subnet(family).secondary;
    let rules: Vec<String> = secondary
        .iter()
        .map(|address| format!("-A OUTPUT -o ens6 -s {address} -j CT --notrack\n"))
        .collect();
    format!("*raw\n{}COMMIT\n", rules.concat())
}

/// How a server outside sees the pod `c`, and whether the pod is answered directly.
struct Seen {
    as_itself: bool,
    answers_udp: bool,
}

fn look(lab: &Lab, scenario: &Scenario, family: Family) -> Result<Seen> {
    let [_, straight] = WAYS_TO_C;
    let client = Client::new(&lab.vpc.world, Protocol::Udp)
        .from(SocketAddr::new(Plan::client(family), 0))
        .timeout(IMPATIENCE);
    let answers_udp = client
        .ask(SocketAddr::new(Plan::load_balancer(family), straight))
        .is_ok();
    let far = scenario.address_of("e", family);
    let answer = Client::new(scenario.netns_of("c"), Protocol::Tcp)
        .ask(far)
        .context("from pod to pod")?;
    Ok(Seen {
        as_itself: answer.seen_as == answer.local,
        answers_udp,
    })
}

/// Returns what `ebbtidectl doctor` reports about foreign firewall rules, and whether it fails.
fn doctor(lab: &mut Lab) -> Result<(Vec<String>, bool)> {
    let (findings, fails) = lab.agent("master").doctor()?;
    let firewall = findings.iter().filter(|one| one.what.contains("firewall"));
    Ok((firewall.map(|one| one.what.clone()).collect(), fails))
}

#[test]
fn a_foreign_masquerade_takes_pods_addresses_away_until_they_are_exempt() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let node = &lab.vpc.node("master").clone();
    let found = doctor(&mut lab)?;
    ensure!(
        found == (Vec::new(), false),
        "the Service proxy's rules: {found:?}"
    );
    for family in Family::BOTH {
        let before = look(&lab, &scenario, family)?;
        ensure!(before.as_itself && before.answers_udp, "{family}: before");
        iptables::restore(node, family, MASQUERADE)?;
        let damaged = look(&lab, &scenario, family)?;
        ensure!(!damaged.as_itself, "{family}: the far pod sees the pod");
        ensure!(!damaged.answers_udp, "{family}: UDP is answered");
        let (found, fails) = doctor(&mut lab)?;
        let rule = "-t nat -A POSTROUTING -o ens6 -j MASQUERADE";
        ensure!(
            fails && found.len() == 1 && found[0].contains(rule),
            "{found:?}"
        );
        iptables::restore(node, family, &accept(&lab, family))?;
        let exempt = look(&lab, &scenario, family)?;
        ensure!(exempt.as_itself && exempt.answers_udp, "{family}: exempt");
        let found = doctor(&mut lab)?;
        ensure!(
            found == (Vec::new(), false),
            "{family}: exempt, yet {found:?}"
        );
    }
    lab.vpc.assert_no_violations()?;
    scenario.delete()
}

/// As on Kubernetes: the agent's image has no programs but its own.
#[test]
fn rules_are_read_by_the_host_s_programs_where_the_agent_has_none() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let node = &lab.vpc.node("master").clone();
    iptables::restore(node, Family::V4, MASQUERADE)?;
    let host = TempDir::with_prefix("ebbtide-host-")?;
    lab.agent("master").stop()?;
    lab.agent("master").launch_beside_host(host.path())?;
    lab.agent("master").wait_ready()?;
    let (found, fails) = doctor(&mut lab)?;
    let rule = "-t nat -A POSTROUTING -o ens6 -j MASQUERADE";
    ensure!(
        fails && found.len() == 1 && found[0].contains(rule),
        "{found:?}"
    );
    scenario.delete()
}

/// The pods exist before the option is set.
#[test]
fn the_option_keeps_a_foreign_masquerade_and_a_nodeports_conntrack_off_pods() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let node = &lab.vpc.node("master").clone();
    for family in Family::BOTH {
        iptables::restore(node, family, MASQUERADE)?;
        let damaged = look(&lab, &scenario, family)?;
        ensure!(!damaged.as_itself && !damaged.answers_udp, "{family}");
    }
    let agent = lab.agent("master");
    agent.stop()?;
    agent.configure("exemptFromMasquerade: true\n")?;
    agent.launch()?;
    agent.wait_ready()?;
    let found = doctor(&mut lab)?;
    ensure!(found == (Vec::new(), false), "exempt, yet {found:?}");
    for (family, port) in Family::BOTH.into_iter().zip([40_001, 40_002]) {
        let exempt = look(&lab, &scenario, family)?;
        ensure!(
            exempt.as_itself && exempt.answers_udp,
            "{family}: itself {}, answers {}\n{}",
            exempt.as_itself,
            exempt.answers_udp,
            lab.logs()
        );
        // A TCP client cannot reuse the same connection so soon.
        let udp = [WAYS_TO_C, WAYS_TO_C].concat();
        for (protocol, ways) in [(Protocol::Udp, udp), (Protocol::Tcp, WAYS_TO_C.to_vec())] {
            let client = Client::new(&lab.vpc.world, protocol)
                .from(SocketAddr::new(Plan::client(family), port));
            for way in ways {
                client
                    .ask(SocketAddr::new(Plan::load_balancer(family), way))
                    .with_context(|| format!("{family}, {protocol:?}: port {way}"))?;
            }
        }
    }
    lab.vpc.assert_no_violations()?;
    scenario.delete()
}

#[test]
fn what_is_not_tracked_is_not_masqueraded_and_every_row_still_passes() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let node = lab.vpc.node("master");
    for family in Family::BOTH {
        iptables::restore(node, family, MASQUERADE)?;
        iptables::restore(node, family, &untrack(&lab, family))?;
        let seen = look(&lab, &scenario, family)?;
        ensure!(seen.as_itself && seen.answers_udp, "{family}");
    }
    // The conflict between a NodePort's flow and the direct one is gone, too.
    for (family, port) in Family::BOTH.into_iter().zip([40_001, 40_002]) {
        let client = Client::new(&lab.vpc.world, Protocol::Udp)
            .from(SocketAddr::new(Plan::client(family), port));
        for way in WAYS_TO_C.into_iter().chain(WAYS_TO_C) {
            client
                .ask(SocketAddr::new(Plan::load_balancer(family), way))
                .with_context(|| format!("{family}: port {way}"))?;
        }
    }
    let mut failed = Vec::new();
    for check in scenario.checks() {
        let line = check.run(&lab, false);
        if !line.ok {
            failed.push(format!(
                "{}: {} → {}: {}",
                line.traffic, line.from, line.to, line.note
            ));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    lab.vpc.assert_no_violations()?;
    scenario.delete()
}
