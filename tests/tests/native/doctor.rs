//! Findings of `ebbtidectl doctor` on a node without pods, in this kernel: first the damage, then the finding and its
//! remedy.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use ebbtide_agent::doctor::Finding;
use ebbtide_tests::chained::ChainedInterface;
use ebbtide_vpc::{
    lab::Lab, netns::Netns, nic_programs::make_it_look, patience::eventually, plan::Plan,
    snapshot::run,
};

/// Returns the remedy of the finding with these words.
fn about(findings: &[Finding], words: &str) -> Option<String> {
    let found = findings
        .iter()
        .find(|finding| finding.what.contains(words))?;
    Some(found.hint.clone())
}

/// Whether this kernel supports links of this kind, as named by `ip`.
fn makes(kind: &[&str]) -> Result<bool> {
    let netns = Netns::new("trial")?;
    let below = [
        "link", "add", "below", "type", "veth", "peer", "name", "other",
    ];
    let ip = |arguments: &[&str]| -> Result<bool> {
        let mut command: Command = netns.command("ip");
        Ok(command.args(arguments).output()?.status.success())
    };
    ensure!(ip(&below)?, "no veth");
    ip(&[
        &["link", "add", "link", "below", "name", "child", "type"],
        kind,
    ]
    .concat())
}

#[test]
fn what_this_kernel_cannot_make_is_named_with_its_module() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let (found, _) = lab.agent("master").doctor()?;
    for (kind, module) in [
        (&["ipvlan", "mode", "l3"][..], "ipvlan"),
        (&["dummy"], "dummy"),
    ] {
        let cure = about(&found, &format!("lacks {module}"));
        ensure!(makes(kind)? == cure.is_none(), "{module}: {found:?}");
        let names_it = |cure: String| cure.contains("modprobe") && cure.contains(module);
        ensure!(cure.is_none_or(names_it), "{module}: {found:?}");
    }
    // An ADD says the same.
    let refused = lab.pod("master", "ens5", "pod").err();
    let said = refused.map(|e| format!("{e:#}"));
    ensure!(
        makes(&["ipvlan", "mode", "l3"])? == said.is_none(),
        "{said:?}"
    );
    let names_it = |said: &String| said.contains("no ipvlan") && said.contains("modprobe ipvlan");
    ensure!(said.iter().all(names_it), "{said:?}");
    // Our programs are attached, so these exist.
    for module in ["lacks veth", "lacks sch_ingress"] {
        ensure!(about(&found, module).is_none(), "{found:?}");
    }
    Ok(())
}

/// Strict filtering needs it, as long as there are pods.
#[test]
fn a_setting_that_marks_depend_on_comes_back_and_is_given_back_with_the_last_pod() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let setting = "net/ipv4/conf/ens6/src_valid_mark";
    let value = || run(&node, "cat", &[&format!("/proc/sys/{setting}")]);
    let is = |wanted: &str| {
        let found = value()?;
        ensure!(found.trim() == wanted, "{setting} is {found}");
        Ok(())
    };
    is("0").context("without a pod")?;
    let chained = ChainedInterface::on(&mut lab, "master")?;
    is("1").context("with a pod")?;
    lab.agent("master").kill()?;
    node.sysctls(&[(setting, "0")])?;
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    is("1").context("a new agent writes it")?;
    node.sysctls(&[(setting, "0")])?;
    make_it_look(&node)?;
    let named = "src_valid_mark = 1 is 0 instead in the host: repaired";
    eventually("the agent's look", || {
        ensure!(lab.agent("master").log().contains(named), "{}", lab.logs());
        Ok(())
    })?;
    is("1").context("put back")?;
    let (found, _) = lab.agent("master").doctor()?;
    ensure!(about(&found, "src_valid_mark").is_none(), "{found:?}");
    chained.delete()?;
    eventually("given back", || is("0")).with_context(|| lab.logs())
}

fn pins(bpf: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(bpf)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

#[test]
fn maps_that_are_not_pinned_any_more_are_named_and_those_of_an_older_layout_removed() -> Result<()>
{
    let mut lab = Lab::start(Plan::default())?;
    let bpf = lab.agent("master").bpf().to_owned();
    let (found, _) = lab.agent("master").doctor()?;
    ensure!(about(&found, "not pinned").is_none(), "{found:?}");
    let before = pins(&bpf)?;
    let layout = before.iter().find(|name| name.starts_with('v'));
    let layout = layout.with_context(|| format!("no layout: {before:?}"))?;
    // A file in a bpf file system can only be a map, a program or a link, so a directory is used.
    fs::create_dir_all(bpf.join("v1").join("flows"))?;
    lab.agent("master").stop()?;
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    ensure!(pins(&bpf)? == before, "{:?}", pins(&bpf)?);
    fs::remove_file(bpf.join(layout).join("flows"))?;
    let (found, _) = lab.agent("master").doctor()?;
    let cure = about(&found, "not pinned").with_context(|| format!("{found:?}"))?;
    ensure!(cure.contains("mount -t bpf"), "{cure}");
    Ok(())
}
