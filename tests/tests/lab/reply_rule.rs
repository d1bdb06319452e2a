//! The reply rule: a pod has it only if something in it may route replies elsewhere, from the moment that it is there.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_layout::DEFAULT_MARK;
use ebbtide_tests::two_ways::{
    Case, Site, Way,
    talk::{connection, listener, transfer},
};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::{
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
};

fn words(netns: &Netns, command: &str) -> Result<String> {
    ip(netns, &command.split_whitespace().collect::<Vec<_>>())
}

/// Returns whether the pod has the reply rule, which it has in both families or in none.
fn has_rule(pod: &Netns) -> Result<bool> {
    let mark = format!("fwmark {DEFAULT_MARK:#x}/{DEFAULT_MARK:#x}");
    let [v4, v6] = ["-4", "-6"].map(|family| words(pod, &format!("{family} rule show")));
    let (v4, v6) = (v4?.contains(&mark), v6?.contains(&mark));
    ensure!(v4 == v6, "IPv4: {v4}, IPv6: {v6}");
    Ok(v4)
}

/// Checks a connection with data in both directions, and the path of each packet.
fn talk(case: &Case<'_>) -> Result<()> {
    let listener = listener(case)?;
    let mark = case.mark()?;
    let (client, server) = connection(case, &listener, case.client())?;
    transfer(&client, &server)?;
    transfer(&server, &client)?;
    drop((client, server));
    case.took_its_way(mark)?;
    Ok(())
}

/// Checks connections by the ways that the mark decides.
fn by_node_port(site: &Site) -> Result<()> {
    for family in Family::BOTH {
        for way in [Way::NodePort, Way::OwnNodePort] {
            talk(&site.case(way, family)).with_context(|| format!("{family}, {way}"))?;
        }
    }
    Ok(())
}

/// A macvlan link with the pod's default routes, as Multus makes one with `default-route`.
fn add_macvlan(site: &Site, other: &Netns) -> Result<()> {
    let pod = &site.pod.netns;
    words(other, "link add wire type dummy")?;
    words(other, "link set wire up")?;
    let path = pod.path();
    let net1 = format!(
        "link add net1 link wire netns {} type macvlan mode bridge",
        path.display()
    );
    words(other, &net1)?;
    for command in [
        "link set net1 up",
        "address add 10.98.0.2/24 dev net1",
        "address add fd00:98::2/64 dev net1 nodad",
        "route replace default via 10.98.0.1 dev net1",
        "-6 route del default",
        "-6 route add default via fd00:98::1 dev net1",
    ] {
        words(pod, command)?;
    }
    Ok(())
}

#[test]
fn a_foreign_link_that_takes_the_default_route_of_a_running_pod_does_not_take_its_replies()
-> Result<()> {
    let mut site = Site::create(Plan::default())?;
    ensure!(!has_rule(&site.pod.netns)?, "the rule is there for nothing");
    site.each(talk).context("alone")?;
    let other = Netns::new("wire")?;
    add_macvlan(&site, &other)?;
    eventually("the reply rule", || {
        ensure!(has_rule(&site.pod.netns)?);
        Ok(())
    })?;
    by_node_port(&site).with_context(|| {
        let [rules, routes, neighbours] = ["rule show", "route show table all", "neigh show"]
            .map(|what| words(&site.pod.netns, what).unwrap_or_default());
        format!("beside the link\n{rules}\n{routes}\n{neighbours}")
    })?;
    for (damage, called) in [
        ("rule del pref 1000", "IPv4 rule 1000: fwmark"),
        ("-6 rule del pref 1000", "IPv6 rule 1000: fwmark"),
        (
            "route flush table 7700",
            "route default via 169.254.235.1 dev eth0",
        ),
        (
            "neigh del fe80::eb:b0ff:fe00:1 dev eth0",
            "neighbour fe80::eb:b0ff:fe00:1 dev eth0",
        ),
    ] {
        words(&site.pod.netns, damage)?;
        let Err(error) = site.pod.call("CHECK") else {
            bail!("CHECK found nothing after {damage}");
        };
        let error = format!("{error:#}");
        ensure!(error.contains(called), "after {damage}: {error}");
    }
    // As an older agent made it: the route leads to the veth. Replies go there until the next agent, and after it.
    for command in [
        "rule add fwmark 0x1000/0x1000 iif lo lookup 7700 pref 1000 proto 235",
        "-6 rule add fwmark 0x1000/0x1000 iif lo lookup 7700 pref 1000 proto 235",
        "route replace default via 169.254.1.1 dev veth0 onlink table 7700 proto 235",
        "-6 route flush table 7700",
        "-6 route add default via fe80::1 dev veth0 table 7700 proto 235",
    ] {
        words(&site.pod.netns, command)?;
    }
    by_node_port(&site).context("by an older agent's route")?;
    // The record says so, and the rule stays, since the next one would come at any time.
    let agent = site.lab.agent("master");
    agent.stop()?;
    agent.launch()?;
    agent.wait_ready()?;
    for family in ["-4", "-6"] {
        let routes = words(&site.pod.netns, &format!("{family} route show table 7700"))?;
        let is_one = routes.lines().count() == 1 && routes.contains("dev eth0");
        ensure!(is_one, "with another agent: {routes}");
    }
    by_node_port(&site).context("with another agent")?;
    words(&site.pod.netns, "link del net1")?;
    by_node_port(&site).context("without the link")?;
    ensure!(has_rule(&site.pod.netns)?, "without the link");
    site.lab.vpc.assert_no_violations()?;
    site.pod.delete()
}

#[test]
fn whatever_may_route_replies_brings_the_rule_and_nothing_else_does() -> Result<()> {
    // In this mode the pod's interface resolves neighbours, except the one that is nobody's.
    let mut site = Site::create(Plan {
        mode: IpvlanMode::L2,
        ..Plan::default()
    })?;
    let mut old = Vec::new();
    let harmless = [
        // A link that is down has no routes.
        "link add down type dummy",
        "address add 10.98.1.2/24 dev lo",
        "route add 10.98.2.0/24 dev lo",
    ];
    for (number, foreign) in [
        &["link add wg0 type dummy", "link set wg0 up"][..],
        &["rule add from 10.98.3.0/24 lookup main"],
        &["-6 rule add to fd00:98::/64 lookup main"],
    ]
    .into_iter()
    .enumerate()
    {
        for command in harmless {
            words(&site.pod.netns, command)?;
        }
        // Nobody waits for what must not come longer than for what must.
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(!has_rule(&site.pod.netns)?, "after {harmless:?}");
        for command in foreign {
            words(&site.pod.netns, command)?;
        }
        eventually(format_args!("the reply rule after {foreign:?}"), || {
            ensure!(has_rule(&site.pod.netns)?);
            Ok(())
        })?;
        by_node_port(&site).with_context(|| format!("after {foreign:?}"))?;
        site.pod.call("CHECK")?;
        old.push(site.replace_pod(&format!("c{number}"))?);
    }
    // What came while no agent ran.
    site.lab.agent("master").kill()?;
    words(&site.pod.netns, "rule add from 10.98.3.0/24 lookup main")?;
    site.lab.agent("master").launch()?;
    site.lab.agent("master").wait_ready()?;
    eventually("the reply rule, from the next agent", || {
        ensure!(has_rule(&site.pod.netns)?);
        Ok(())
    })?;
    by_node_port(&site)?;
    site.lab.vpc.assert_no_violations()?;
    old.into_iter().try_for_each(Pod::delete)?;
    site.pod.delete()
}
