//! Foreign nft rules: the effect of a masquerade on pods on ipvlan l3, the doctor's finding, and its remedy.
//! `masquerade.rs` has the same for iptables.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_agent::doctor::Finding;
use ebbtide_tests::two_ways::{Site, Way};
use ebbtide_vpc::{
    nft::is_here,
    plan::{Family, Plan},
    snapshot::run,
    traffic::{Client, Protocol, Server},
};

/// Returns what `ebbtidectl doctor` reports about foreign firewall rules.
fn firewall(site: &mut Site) -> Result<Vec<Finding>> {
    let (mut findings, _) = site.lab.agent("master").doctor()?;
    findings.retain(|finding| finding.what.contains("firewall"));
    Ok(findings)
}

/// Whether a server outside sees the pod's own address.
fn as_itself(site: &Site, family: Family) -> Result<bool> {
    let case = site.case(Way::Straight, family);
    let outside = SocketAddr::new(case.client().ip(), case.port);
    let _server = Server::start(site.client(), Protocol::Tcp, outside)?;
    let answer = Client::new(&site.pod.netns, Protocol::Tcp).ask(outside)?;
    Ok(answer.seen_as == answer.local)
}

#[test]
fn a_masquerade_made_with_nft_is_found_and_its_remedy_keeps_it_off_pods() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    ensure!(firewall(&mut site)?.is_empty(), "the NodePort's rules");
    let nft = |site: &Site, command: &str| run(site.node(), "nft", &[command]);
    let table = "table inet others { chain post { type nat hook postrouting priority 100; }; }";
    if !is_here(site.node()) {
        return site.pod.delete();
    }
    nft(&site, &format!("add {table}"))?;
    for family in Family::BOTH {
        ensure!(as_itself(&site, family)?, "{family}: before");
    }
    nft(&site, "add rule inet others post oifname ens6 masquerade")?;
    for family in Family::BOTH {
        ensure!(!as_itself(&site, family)?, "{family}: no damage");
    }
    let found = firewall(&mut site)?;
    ensure!(found.len() == 2, "one in each family: {found:?}");
    for family in Family::BOTH {
        let nic = site.lab.vpc.nic("master", "ens6");
        let pods = nic.subnet(family).primary.trunc().to_string();
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let finding = found
            .iter()
            .find(|one| one.what.contains(&family.to_string()));
        let finding = finding.with_context(|| format!("{family}: {found:?}"))?;
        ensure!(finding.what.contains("nft inet others post"), "{finding}");
        let remedy = format!("insert rule inet others post oifname ens6 {ip} saddr PODS accept");
        ensure!(finding.hint.contains(&remedy), "{finding}");
        nft(&site, &remedy.replace("PODS", &pods))?;
        ensure!(as_itself(&site, family)?, "{family}: not cured");
    }
    let found = firewall(&mut site)?;
    ensure!(found.is_empty(), "cured, yet {found:?}");
    site.lab.vpc.assert_no_violations()?;
    site.pod.delete()
}

/// The filters of firewalld for IPv6 (`IPv6_rpfilter`, on by default) and of NixOS for both families.
#[test]
fn reverse_paths_that_an_nft_firewall_filters_are_found() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    let nft = |site: &Site, command: &str| run(site.node(), "nft", &[command]);
    if !is_here(site.node()) {
        return site.pod.delete();
    }
    for setting in ["all", "ens5", "ens6"].map(|link| format!("net/ipv4/conf/{link}/rp_filter")) {
        site.node().sysctls(&[(&setting, "0")])?;
    }
    for command in [
        "add table inet filtering",
        "add chain inet filtering pre { type filter hook prerouting priority -140; }",
        "add rule inet filtering pre meta l4proto icmpv6 accept",
        "add rule inet filtering pre fib saddr . mark . iif oif missing counter drop",
    ] {
        nft(&site, command)?;
    }
    // An agent checks every half minute, and when it starts.
    site.lab.agent("master").stop()?;
    site.lab.agent("master").launch()?;
    site.lab.agent("master").wait_ready()?;
    site.each(|case| {
        let any = SocketAddr::new(case.family.any(), case.port);
        for protocol in Protocol::BOTH {
            let _server = Server::start(&case.site.pod.netns, protocol, any)?;
            let mark = case.mark()?;
            let client = Client::new(case.site.client(), protocol).from(case.client());
            let answer = client.ask(case.server());
            answer.with_context(|| protocol.to_string())?;
            case.took_its_way(mark)?;
        }
        Ok(())
    })?;
    site.pod.delete()
}
