//! The life of an interface: ADD, CHECK, DEL and GC, once and repeated, and what they must not touch.

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::CniError,
    lab::Lab,
    patience::eventually,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::{Snapshot, ip, run},
};
use serde_json::{Value, json};

fn error_of(result: Result<Value>) -> Result<CniError> {
    match result {
        Ok(value) => anyhow::bail!("it succeeded: {value}"),
        Err(error) => error.downcast(),
    }
}

#[test]
fn add_repeated_gives_the_same_answer_and_takes_nothing_more() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let used = lab.agent("master").addresses_in_use()?;
    ensure!(used == 2, "one address of each family, not {used}");
    for _ in 0..3 {
        ensure!(pod.call("ADD")? == pod.result);
    }
    ensure!(lab.agent("master").addresses_in_use()? == used);
    pod.call("CHECK")?;
    pod.delete()
}

#[test]
fn del_repeated_and_del_of_what_never_was_succeed_and_leave_nothing() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let before = Snapshot::of(&node)?;
    let pod = lab.pod("master", "ens5", "a")?;
    ensure!(Snapshot::of(&node)?.mentions(&pod.host_interface));
    for _ in 0..3 {
        pod.call("DEL")?;
    }
    before.comes_back(&node)?;
    let in_pod = Snapshot::of(&pod.netns)?;
    for left in ["eth0", "veth0", "7700"] {
        ensure!(
            !in_pod.mentions(left),
            "{left} is left in the pod: {in_pod:#?}"
        );
    }
    ensure!(lab.agent("master").addresses_in_use()? == 0);
    let error = error_of(pod.call("CHECK"))?;
    ensure!(error.code == 3, "{error}");
    Ok(())
}

#[test]
fn del_succeeds_after_the_namespace_is_gone() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let plugin = lab.agent("master").plugin();
    let sandbox = ebbtide_vpc::cni::Sandbox {
        netns: None,
        ..pod.sandbox.clone()
    };
    let config = plugin.config("default/ipvlan-ens5").to_string();
    plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    ensure!(lab.agent("master").addresses_in_use()? == 0);
    Ok(())
}

/// A part of a pod's network, how it is broken, and how CHECK calls it. The host's parts are repaired automatically:
/// see `repair.rs`.
struct Damage {
    called: &'static str,
    by: fn(&Lab, &Pod) -> Result<()>,
}

/// What the agent logs once it has attached a pod's programs again.
const PUT_BACK: &str = "were detached from the pod's interface: repaired";

const DAMAGES: [Damage; 7] = [
    Damage {
        called: "route default via 172.31.16.1 dev eth0 src",
        by: |_, pod| ip(&pod.netns, &["route", "del", "default", "dev", "eth0"]).map(drop),
    },
    Damage {
        called: "route 10.96.0.0/16 via 169.254.1.1 dev veth0 src",
        by: |_, pod| ip(&pod.netns, &["route", "del", "10.96.0.0/16"]).map(drop),
    },
    Damage {
        called: "program veth_ingress at veth0 ingress is not attached",
        by: |_, pod| {
            run(
                &pod.netns,
                "tc",
                &["filter", "del", "dev", "veth0", "ingress"],
            )
            .map(drop)
        },
    },
    Damage {
        called: "program nic_egress at eth0 egress is not attached",
        by: |_, pod| run(&pod.netns, "tc", &["qdisc", "del", "dev", "eth0", "clsact"]).map(drop),
    },
    Damage {
        called: "address 172.31.16.",
        by: |_, pod| {
            let address = format!("{}/20", pod.address(Family::V4));
            ip(&pod.netns, &["address", "del", &address, "dev", "eth0"]).map(drop)
        },
    },
    Damage {
        called: "sysctl net/ipv4/tcp_fwmark_accept = 1 is 0 instead",
        by: |_, pod| pod.netns.sysctls(&[("net/ipv4/tcp_fwmark_accept", "0")]),
    },
    Damage {
        called: "neighbour 169.254.1.1 dev veth0",
        by: |_, pod| {
            ip(
                &pod.netns,
                &["neighbour", "del", "169.254.1.1", "dev", "veth0"],
            )
            .map(drop)
        },
    },
];
#[test]
fn check_names_each_kind_of_damage_and_a_repeated_add_repairs_it() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    pod.call("CHECK")?;
    for damage in DAMAGES {
        (damage.by)(&lab, &pod).with_context(|| format!("breaking {:?}", damage.called))?;
        let checked = pod.call("CHECK");
        // The agent receives an event when programs are detached, and may be faster than CHECK on a busy machine.
        if checked.is_ok() && damage.called.starts_with("program") {
            eventually(damage.called, || {
                ensure!(lab.logs().contains(PUT_BACK), "nobody put it back");
                Ok(())
            })?;
            continue;
        }
        let error = error_of(checked).with_context(|| damage.called)?;
        ensure!(error.code == 100, "{error}");
        ensure!(
            error.msg.contains(damage.called),
            "{:?} is not in {error}",
            damage.called
        );
        ensure!(pod.call("ADD")? == pod.result, "{}", damage.called);
        pod.call("CHECK")
            .with_context(|| format!("after the repair of {:?}", damage.called))?;
    }
    pod.delete()
}

#[test]
fn check_names_links_that_are_down_or_gone() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let node = lab.vpc.node("master");
    ip(&pod.netns, &["link", "set", "veth0", "down"])?;
    let error = error_of(pod.call("CHECK"))?;
    ensure!(error.msg.contains("link veth0 is down"), "{error}");
    ensure!(pod.call("ADD")? == pod.result);
    pod.call("CHECK").context("up again")?;
    ip(node, &["link", "del", &pod.host_interface])?;
    let error = error_of(pod.call("CHECK"))?;
    ensure!(
        error.msg.contains("link veth0 is missing in the pod"),
        "{error}"
    );
    ensure!(pod.call("ADD")? == pod.result);
    pod.call("CHECK")?;
    ip(&pod.netns, &["link", "del", "eth0"])?;
    let error = error_of(pod.call("CHECK"))?;
    ensure!(
        error.msg.contains("link eth0 is missing in the pod"),
        "{error}"
    );
    pod.delete()
}

#[test]
fn gc_removes_what_is_not_in_the_list_and_nothing_else() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let keep = lab.pod("master", "ens5", "keep")?;
    let gone = lab.pod("master", "ens5", "gone")?;
    let elsewhere = lab.pod("worker1", "ens5", "elsewhere")?;
    let plugin = lab.agent("master").plugin();
    let gc = |name: &str, valid: Option<Value>| {
        let mut config = plugin.config("default/ipvlan-ens5");
        config["name"] = json!(name);
        if let Some(valid) = valid {
            config["cni.dev/valid-attachments"] = valid;
        }
        plugin.call("GC", None, &config.to_string())
    };
    let error = gc("ebbtide", None)?.error()?;
    ensure!(
        error.code == 7 && error.msg.contains("valid-attachments"),
        "{error}"
    );
    gc("another-network", Some(json!([])))?.success()?;
    keep.call("CHECK")?;
    gone.call("CHECK")?;
    let valid = json!([{"containerID": keep.sandbox.container_id, "ifname": "eth0"}]);
    gc("ebbtide", Some(valid))?.success()?;
    keep.call("CHECK")?;
    elsewhere.call("CHECK")?;
    let error = error_of(gone.call("CHECK"))?;
    ensure!(error.code == 3, "{error}");
    ensure!(!Snapshot::of(lab.vpc.node("master"))?.mentions(&gone.host_interface));
    ensure!(lab.agent("master").addresses_in_use()? == 2);
    Ok(())
}

#[test]
fn what_is_not_ours_is_never_touched() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    // Foreign objects in Ebbtide's tables, at its priorities, and with names like its own.
    for arguments in [
        "link add veth0123456789a type bridge",
        "route add 192.0.2.0/24 dev ens5 table 7700",
        "route add 192.0.2.0/24 dev ens5 table 7799",
        "rule add from 192.0.2.1 lookup 100 pref 1000",
        "rule add fwmark 0x1000/0x1000 lookup 100 pref 1001",
        "-6 rule add from 2001:db8::1 lookup 100 pref 1000",
        "neighbour add 172.31.16.200 dev ens5 lladdr 02:00:00:00:00:01 nud permanent",
    ] {
        ip(&node, &arguments.split(' ').collect::<Vec<_>>())?;
    }
    let foreign = Snapshot::of(&node)?;
    let pods = [
        lab.pod("master", "ens5", "a")?,
        lab.pod("master", "ens6", "b")?,
    ];
    lab.agent("master").kill()?;
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    for pod in pods {
        pod.call("CHECK")?;
        pod.delete()?;
    }
    foreign.assert_within(&Snapshot::of(&node)?)
}

#[test]
fn each_version_gets_the_result_it_knows() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let plugin = lab.agent("master").plugin();
    for (version, ip_has_version, has_mtu) in [
        ("0.3.0", true, false),
        ("0.3.1", true, false),
        ("0.4.0", true, false),
        ("1.0.0", false, false),
        ("1.1.0", false, true),
    ] {
        let pod = lab.pod("master", "ens5", "a")?;
        let mut config = plugin.config("default/ipvlan-ens5");
        config["cniVersion"] = json!(version);
        let config = config.to_string();
        let result = plugin.call("ADD", Some(&pod.sandbox), &config)?.success()?;
        ensure!(result["cniVersion"] == version, "{result}");
        ensure!(
            result["ips"][0]["version"].is_string() == ip_has_version,
            "{result}"
        );
        ensure!(
            result["interfaces"][0]["mtu"].is_u64() == has_mtu,
            "{result}"
        );
        for command in ["STATUS", "GC"] {
            let outcome = plugin.call(command, None, &config)?;
            if version == "1.1.0" {
                continue;
            }
            let error = outcome.error()?;
            ensure!(error.code == 1, "{command} of {version}: {error}");
        }
        pod.delete()?;
    }
    let versions = plugin
        .call("VERSION", None, r#"{"cniVersion":"1.0.0"}"#)?
        .success()?;
    ensure!(
        versions["supportedVersions"]
            == json!([
                "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"
            ]),
        "{versions}"
    );
    Ok(())
}
