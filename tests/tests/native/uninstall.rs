//! `ebbtide-agent uninstall`, and the last pod, leave the host as it was.

use std::{process::Stdio, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_kernel::netlink::{
    Batch,
    direct::Direct,
    model::{Direction, Filter},
};
use ebbtide_tests::{
    chained::ChainedInterface,
    crowd::{moments::AFTERWARDS, state::State},
    removal::{NODE, Stage, foreign_filter, ip_all, is_done},
};
use ebbtide_vpc::{
    agent::binary,
    lab::Lab,
    netns::Netns,
    nic_programs::{Decider, accept, has_tcx},
    patience::eventually,
    plan::Plan,
    random::Random,
    snapshot::{ip, run},
};

/// How often an uninstallation is killed.
const KILLS: u32 = 12;

fn nobody_else(_: &Lab, _: &Netns) -> Result<()> {
    Ok(())
}

#[test]
fn after_pods_restarts_and_a_removal_the_node_is_as_before_byte_for_byte() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    stage.start()?;
    let chained = ChainedInterface::on(&mut stage.lab, NODE)?;
    stage.agent().stop()?;
    stage.start()?;
    chained.delete()?;
    stage.is_gone("guest0")?;
    stage.agent().kill()?;
    stage.start()?;
    let second = ChainedInterface::on(&mut stage.lab, NODE)?;
    second.delete()?;
    stage.is_gone("guest0")?;
    stage.remove()?;

    // A new installation begins from the beginning.
    stage.agent().launch()?;
    stage.agent().wait_ready()?;
    let again = ChainedInterface::on(&mut stage.lab, NODE)?;
    let rules = ip(&stage.node, &["rule", "show"])?;
    ensure!(rules.contains("lookup 770"), "{rules}");
    again.delete()?;
    stage.is_gone("guest0")?;
    stage.remove()
}

#[test]
fn while_an_agent_runs_or_pods_are_left_nothing_is_removed_and_it_says_which() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    stage.start()?;
    let chained = ChainedInterface::on(&mut stage.lab, NODE)?;
    let rules = ip(&stage.node, &["rule", "show"])?;
    ensure!(rules.contains("lookup 770"), "{rules}");
    let is_untouched = |stage: &mut Stage| -> Result<()> {
        let now = ip(&stage.node, &["rule", "show"])?;
        ensure!(now == rules, "{now}");
        let [plugins, configurations] = stage.agent().cni_directories();
        ensure!(plugins.join("ebbtide").exists(), "no plugin");
        ensure!(
            configurations.join("00-ebbtide.conflist").exists(),
            "no configuration"
        );
        Ok(())
    };
    let ended = stage.agent().uninstall_with(&[])?;
    ensure!(ended.code == Some(4), "{ended:#?}");
    ensure!(ended.report["outcome"] == "agent", "{ended:#?}");
    ensure!(ended.log.contains("an agent still runs here"), "{ended:#?}");
    is_untouched(&mut stage)?;
    stage.agent().kill()?;
    for arguments in [&[][..], &["--dry-run"]] {
        let ended = stage.agent().uninstall_with(arguments)?;
        ensure!(ended.code == Some(3), "{ended:#?}");
        ensure!(
            ended.report["pods"][0]["pod"] == "default/guest",
            "{ended:#?}"
        );
        ensure!(
            ended.log.contains("1 pod interface(s) are still there"),
            "{ended:#?}"
        );
        is_untouched(&mut stage)?;
    }

    // Without their records they are known by their links.
    let state = stage.agent().state();
    let moved = state.with_extension("moved");
    std::fs::rename(&state, &moved)?;
    let ended = stage.agent().uninstall_with(&[])?;
    let is_pair = ip(&stage.node, &["-d", "link", "show", "type", "veth"])?.contains("ebbtide: ");
    ensure!(!is_pair || ended.code == Some(3), "{ended:#?}");
    let _made_meanwhile = std::fs::remove_dir_all(&state);
    std::fs::rename(&moved, &state)?;
    if !is_pair {
        stage.start()?;
        stage.agent().kill()?;
    }

    // It waits for the pod's end, and has removed the configuration before, so that no other pod begins.
    let command = stage.node.command(binary()?);
    let mut command = stage.agent().uninstall_command(command);
    command.args(["--purge", "--wait", "60"]);
    let waiting = command
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let [_, configurations] = stage.agent().cni_directories();
    eventually("the configuration is gone", || {
        ensure!(
            !configurations.join("00-ebbtide.conflist").exists(),
            "it is there"
        );
        Ok(())
    })?;
    ensure!(
        ip(&stage.node, &["rule", "show"])?.contains("lookup 770"),
        "it did not wait"
    );
    drop(chained);
    let output = waiting.wait_with_output()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{log}");
    stage.is_as_before().context(log)
}

/// Attaches a program of others as a tc filter with the priority and handle of Ebbtide's.
fn attach_in_our_place(node: &Netns, link: &str) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let program = accept().context("loading a program")?;
    let filter = Filter {
        link: link.to_owned(),
        direction: Direction::Ingress,
        program: "somebody_else".to_owned(),
        only_from: None,
    };
    let index = node.netlink()?.index(link)?;
    node.run(|| {
        let mut batch = Batch::default();
        batch.add_filter(&filter, index, program.as_raw_fd());
        Ok(Direct::open("in the node")?.run(batch)?)
    })
}

#[test]
fn what_others_have_in_the_same_places_stays() -> Result<()> {
    let mut programs = Vec::new();
    let mut stage = Stage::build(Plan::default(), "", |_, node| {
        ip_all(
            node,
            &[
                // At the priorities and in the tables that Ebbtide uses.
                "rule add pref 1000 fwmark 0x99000000/0xff000000 lookup 7701 protocol 66",
                "rule add pref 1001 from 198.51.100.9 lookup 7701",
                "-6 rule add pref 1000 from 2001:db8::9 lookup 7701",
                "route add 198.51.100.0/24 dev ens6 table 7701",
                "route add 203.0.113.7/32 dev ens6 proto 66",
                "link add somebody0 type veth peer name somebody1",
                "link set somebody0 up",
                "neighbour add 198.51.100.7 lladdr 02:00:00:00:00:07 dev ens6 nud permanent",
            ],
        )?;
        for link in ["ens5", "somebody0"] {
            run(node, "tc", &["qdisc", "add", "dev", link, "clsact"])?;
        }
        foreign_filter(node, "ens5", "ingress")?;
        attach_in_our_place(node, "somebody0")?;
        if has_tcx()? {
            programs.push(Decider::new(node, "ens6")?);
        }
        node.sysctls(&[("net/ipv4/conf/ens5/rp_filter", "1")])
    })?;
    stage.start()?;
    let chained = ChainedInterface::on(&mut stage.lab, NODE)?;
    stage.agent().stop()?;
    stage.start()?;
    chained.delete()?;
    stage.is_gone("guest0")?;
    stage.remove()
}

#[test]
fn a_setting_that_a_person_changed_meanwhile_stays_and_the_others_are_given_back() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    stage.start()?;
    let chained = ChainedInterface::on(&mut stage.lab, NODE)?;
    stage.agent().kill()?;
    let text = std::fs::read(stage.agent().state().join("settings-before.json"))?;
    let settings: std::collections::BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&text)?;
    let (path, values) = settings
        .first_key_value()
        .context("no setting was changed")?;
    let by_person = match values["ours"].as_str() {
        Some("0") => "1",
        _ => "0",
    };
    stage.node.sysctls(&[
        (path, by_person),
        ("net/ipv4/conf/all/log_martians", "1"),
        ("net/ipv4/conf/default/forwarding", "0"),
    ])?;
    drop(chained);
    stage.is_gone("guest0")?;
    is_done(&stage.agent().uninstall_with(&["--purge"])?)?;
    let read = |path: &str| -> Result<String> {
        let value = run(&stage.node, "cat", &[&format!("/proc/sys/{path}")])?;
        Ok(value.trim().to_owned())
    };
    ensure!(read(path)? == by_person, "{path}");
    ensure!(read("net/ipv4/conf/all/log_martians")? == "1");
    ensure!(read("net/ipv4/conf/default/forwarding")? == "0");
    for (path, values) in settings.iter().skip(1) {
        ensure!(
            Some(read(path)?.as_str()) == values["was"].as_str(),
            "{path}"
        );
    }
    let was = values["was"].as_str().context("a value")?;
    stage
        .node
        .sysctls(&[(path, was), ("net/ipv4/conf/all/log_martians", "0")])?;
    stage.is_as_before()
}

#[test]
fn forwarding_stays_where_somebody_else_needs_it_or_on_request() -> Result<()> {
    let forwards = |stage: &Stage| -> Result<bool> {
        let value = run(&stage.node, "cat", &["/proc/sys/net/ipv4/ip_forward"])?;
        Ok(value.trim() == "1")
    };
    let other = Netns::new("other")?;
    for (arguments, with_other, stays) in [
        (&[][..], false, false),
        (&["--forwarding", "keep"], false, true),
        (&[], true, true),
        (&["--forwarding", "restore"], true, false),
    ] {
        let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
        stage.start()?;
        ChainedInterface::on(&mut stage.lab, NODE)?.delete()?;
        stage.is_gone("guest0")?;
        ensure!(forwards(&stage)?, "it does not forward for pods");
        stage.agent().stop()?;
        if with_other {
            let path = other.path().display().to_string();
            let pair = format!("link add cali0 type veth peer name eth0 netns {path}");
            ip_all(&stage.node, &[&pair])?;
        }
        let ended = stage.agent().uninstall_with(arguments)?;
        is_done(&ended)?;
        ensure!(
            forwards(&stage)? == stays,
            "{arguments:?} {with_other}: {ended:#?}"
        );
        let kept = ended.report["kept"].to_string();
        ensure!(kept.contains("forwarding") == stays, "{kept}");
        if with_other {
            ip_all(&stage.node, &["link del cali0"])?;
        }
    }
    Ok(())
}

#[test]
fn killed_at_any_moment_it_ends_at_the_next_try() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    let mut random = Random::new(u64::from(std::process::id()));
    let mut killed = 0;
    for round in 0..KILLS {
        stage.start()?;
        let chained = ChainedInterface::on(&mut stage.lab, NODE)?;
        stage.agent().kill()?;
        drop(chained);
        stage.is_gone("guest0")?;
        let start = std::time::Instant::now();
        for _ in 0..3 {
            let command = stage.node.command(binary()?);
            let mut command = stage.agent().uninstall_command(command);
            command.arg("--purge");
            let silent = command.stderr(Stdio::null()).stdout(Stdio::null());
            let mut child = silent.spawn()?;
            thread::sleep(Duration::from_micros(random.below(60_000)));
            killed += u32::from(child.try_wait()?.is_none());
            child.kill()?;
            child.wait()?;
        }
        let ended = stage.agent().uninstall_with(&["--purge"])?;
        is_done(&ended)?;
        stage
            .is_as_before()
            .with_context(|| format!("round {round}, {:?}\n{}", start.elapsed(), ended.log))?;
    }
    ensure!(killed > 0, "none was killed on the way");
    Ok(())
}

#[test]
fn on_a_node_that_never_had_an_agent_there_is_nothing_to_do() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    for arguments in [&["--dry-run"][..], &[], &["--purge"], &["--wait", "1"]] {
        let ended = stage.agent().uninstall_with(arguments)?;
        is_done(&ended)?;
        let removed = ended.report["removed"].as_array();
        ensure!(removed.is_some_and(Vec::is_empty), "{ended:#?}");
        stage.is_as_before()?;
    }
    // Without the directories it is a wrong command line.
    let output = stage.node.command(binary()?).arg("uninstall").output()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

#[test]
fn without_the_bpf_file_system_the_rest_goes_and_it_says_what_stays() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", nobody_else)?;
    stage.start()?;
    let chained = ChainedInterface::on(&mut stage.lab, NODE)?;
    stage.agent().kill()?;
    drop(chained);
    stage.is_gone("guest0")?;
    let hide = "umount -l /sys/fs/bpf 2>/dev/null; exec \"$@\"";
    let mut command = stage.node.command("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        hide,
        "sh",
    ]);
    command.arg(binary()?);
    let output = stage.agent().uninstall_command(command).output()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let rules = ip(&stage.node, &["rule", "show"])?;
    ensure!(!rules.contains("lookup 770"), "{rules}");
    if has_tcx()? {
        ensure!(output.status.code() == Some(1), "{log}");
        ensure!(log.contains("no bpf file system is mounted here"), "{log}");
    } else {
        ensure!(output.status.success(), "{log}");
    }
    is_done(&stage.agent().uninstall_with(&["--purge"])?)?;
    stage.is_as_before()
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
