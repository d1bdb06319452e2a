//! The programs on the node's NICs as TCX links, in this kernel: foreign filters on the NIC do not affect them, and
//! they outlive the agent. Without TCX, the other tests cover the agent's tc filters.

use std::{collections::BTreeMap, os::fd::RawFd, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::links::{FdLink, PinnedLink},
    sys::{Stats, enable_stats},
};
use ebbtide_kernel::netlink::{
    Batch,
    direct::Direct,
    model::{Direction, Filter},
};
use ebbtide_programs::Bench;
use ebbtide_tests::chained::ChainedInterface;
use ebbtide_vpc::{
    agent::Agent,
    lab::Lab,
    netns::Netns,
    nic_programs::{Decider, by_tcx, has_tcx, make_it_look, take_off},
    patience::eventually,
    plan::{Family, Plan},
    skip::{Need, skip},
    snapshot::{ip, run},
    traffic::{Client, Protocol, Server},
};

const PORT: u16 = 9090;

/// Starts a lab with a pod, so that the programs are attached to the NICs. Returns `None`, after a skip, without TCX.
fn lab() -> Result<Option<(ChainedInterface, Lab)>> {
    if has_tcx()? {
        let mut lab = Lab::start(Plan::default())?;
        return Ok(Some((ChainedInterface::on(&mut lab, "master")?, lab)));
    }
    skip(Need::Tcx, "this kernel has no TCX (Linux 6.6)");
    Ok(None)
}

/// Returns the links' IDs by the names of their pins.
fn links(agent: &Agent) -> Result<BTreeMap<String, u32>> {
    let mut links = BTreeMap::new();
    for entry in std::fs::read_dir(agent.bpf().join("links"))? {
        let path = entry?.path();
        let link = FdLink::from(PinnedLink::from_pin(&path)?);
        let name = path.file_name().context("a name")?.to_string_lossy();
        links.insert(name.into_owned(), link.info()?.id());
    }
    Ok(links)
}

/// Attaches a program as agents do without TCX.
fn attach(node: &Netns, link: &str, program: &str, fd: RawFd) -> Result<()> {
    let filter = Filter {
        link: link.into(),
        direction: Direction::Ingress,
        program: program.into(),
        only_from: None,
    };
    let index = node.netlink()?.index(link)?;
    node.run(|| {
        let mut batch = Batch::default();
        batch.add_filter(&filter, index, fd);
        Ok(Direct::open("in the node")?.run(batch)?)
    })
}

/// Returns how many packets the agent's program saw that came in by this NIC.
fn seen(agent: &Agent, nic: &str) -> Result<u64> {
    let lines = agent.control_json(&["datapath"])?;
    let lines = lines.as_array().context("lines")?;
    let line = lines
        .iter()
        .find(|line| line["interface"] == nic && line["program"] == "host_nic_ingress");
    let line = line.with_context(|| format!("no line of {nic}: {lines:?}"))?;
    ensure!(line["by"] == "tcx", "{line}");
    line["seen"].as_u64().context("a number")
}

/// A foreign filter decides about packets before a tc filter sees them; the agent's program sees them before.
#[test]
fn a_program_of_others_that_decides_about_packets_does_not_keep_them_from_ours() -> Result<()> {
    let Some((_guest, mut lab)) = lab()? else {
        return Ok(());
    };
    let node = lab.vpc.node("master").clone();
    let _servers: Vec<Server> = Server::on_any(&node, PORT)?;
    // A tc filter that passes all packets, and how often it ran.
    let bench = Bench::new();
    let program = "nic_ingress";
    attach(&node, "ens5", program, bench.fd(program))?;
    let _counting = enable_stats(Stats::RunTime)?;
    let counted = |agent: &Agent| -> Result<(u64, u64)> {
        Ok((seen(agent, "ens5")?, bench.info(program).run_count()))
    };
    let mut ask = || -> Result<(bool, bool)> {
        let before = counted(lab.agent("master"))?;
        let to = lab.vpc.nic("master", "ens5").primary(Family::V4);
        let client = Client::new(lab.vpc.node("worker1"), Protocol::Tcp);
        client.ask((to, PORT).into())?;
        let after = counted(lab.agent("master"))?;
        Ok((after.0 > before.0, after.1 > before.1))
    };
    ensure!(ask()? == (true, true), "without the others");
    let _decider = Decider::new(&node, "ens5")?;
    ensure!(
        ask()? == (true, false),
        "a filter takes no harm, or ours does"
    );
    Ok(())
}

#[test]
fn a_program_of_others_in_front_of_ours_is_told_and_one_behind_is_not() -> Result<()> {
    let Some((_guest, mut lab)) = lab()? else {
        return Ok(());
    };
    let node = lab.vpc.node("master").clone();
    let mut told = || -> Result<Vec<String>> {
        let (findings, _) = lab.agent("master").doctor()?;
        let findings = findings.into_iter().map(|finding| finding.what);
        Ok(findings
            .filter(|what| what.contains("before ebbtide"))
            .collect())
    };
    let _behind = Decider::new(&node, "ens5")?;
    ensure!(told()?.is_empty(), "{:?}", told()?);
    let first = Decider::in_front(&node, "ens6")?;
    let now = told()?;
    ensure!(
        now.len() == 1 && now[0].contains("at ens6 (ingress)"),
        "{now:?}"
    );
    drop(first);
    ensure!(told()?.is_empty(), "it is gone: {:?}", told()?);
    Ok(())
}

#[test]
fn a_new_agent_puts_its_programs_into_the_links_and_takes_away_an_older_one_s_filter() -> Result<()>
{
    let Some((_guest, mut lab)) = lab()? else {
        return Ok(());
    };
    let node = lab.vpc.node("master").clone();
    let before = (links(lab.agent("master"))?, by_tcx(&node, "ens5")?);
    ensure!(before.0.len() == 4, "{before:?}");
    lab.agent("master").kill()?;
    ensure!(
        by_tcx(&node, "ens5")? == before.1,
        "they went with the agent"
    );
    // As an older agent without links left it; any program will do.
    let decider = Decider::new(&node, "ens6")?;
    attach(&node, "ens5", "host_nic_ingress", decider.program())?;
    let filters = || run(&node, "tc", &["filter", "show", "dev", "ens5", "ingress"]);
    ensure!(filters()?.contains("host_nic_ingress"), "{}", filters()?);
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    let after = (links(lab.agent("master"))?, by_tcx(&node, "ens5")?);
    ensure!(after.0 == before.0, "other links: {before:?} {after:?}");
    for (old, new) in before.1.iter().zip(&after.1) {
        ensure!(
            old.len() == 1 && new.len() == 1 && old != new,
            "{before:?} {after:?}"
        );
    }
    ensure!(filters()?.is_empty(), "{}", filters()?);
    Ok(())
}

#[test]
fn links_that_are_wiped_come_back_and_one_that_went_with_its_nic_leaves_no_pin() -> Result<()> {
    let Some((_guest, mut lab)) = lab()? else {
        return Ok(());
    };
    let node = lab.vpc.node("master").clone();
    let bpf = lab.agent("master").bpf().to_owned();
    let before = (links(lab.agent("master"))?, by_tcx(&node, "ens5")?);
    for pin in std::fs::read_dir(bpf.join("links"))? {
        std::fs::remove_file(pin?.path())?;
    }
    ensure!(
        by_tcx(&node, "ens5")? == before.1,
        "they went with their pins"
    );
    make_it_look(&node)?;
    eventually("the pins", || {
        ensure!(all_pins(&bpf)? == before.0.len(), "{}", lab.logs());
        Ok(())
    })?;
    ensure!(links(lab.agent("master"))? == before.0, "other links");
    take_off(&node, "ens5", &bpf)?;
    ensure!(by_tcx(&node, "ens5")?.concat().is_empty(), "they are there");
    make_it_look(&node)?;
    let named = "program host_nic_egress at ens5 egress is not attached in the host: repaired";
    eventually("the links", || {
        let log = lab.agent("master").log();
        ensure!(by_tcx(&node, "ens5")? == before.1, "{log}");
        ensure!(log.contains(named), "{log}");
        Ok(())
    })?;
    let index = node.netlink()?.index("ens6")?;
    ip(&node, &["link", "del", "ens6"])?;
    eventually("no pin without a NIC", || {
        for hook in ["ingress", "egress"] {
            let pin = bpf.join(format!("links/{index}-{hook}"));
            ensure!(!pin.exists(), "{}: {}", pin.display(), lab.logs());
        }
        Ok(())
    })
}

#[test]
fn what_is_in_the_place_of_a_link_s_pin_is_taken_away_and_the_link_made_anew() -> Result<()> {
    let Some((_guest, mut lab)) = lab()? else {
        return Ok(());
    };
    let node = lab.vpc.node("master").clone();
    let bpf = lab.agent("master").bpf().to_owned();
    let before = links(lab.agent("master"))?;
    lab.agent("master").kill()?;
    for name in before.keys() {
        let pin = bpf.join("links").join(name);
        std::fs::remove_file(&pin)?;
        std::fs::create_dir(&pin)?;
    }
    ensure!(
        by_tcx(&node, "ens5")?.concat().is_empty(),
        "links without pins stay"
    );
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    let after = links(lab.agent("master")).with_context(|| lab.logs())?;
    ensure!(after.keys().eq(before.keys()), "{before:?} {after:?}");
    for programs in by_tcx(&node, "ens5")? {
        ensure!(programs.len() == 1, "{programs:?}");
    }
    Ok(())
}

fn all_pins(bpf: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(bpf.join("links"))?.count())
}
