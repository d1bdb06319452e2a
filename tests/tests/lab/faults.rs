//! Invalid input and faults: the right error code, a message that names the cause, and nothing left behind.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    cni::{CniError, Sandbox},
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    snapshot::Snapshot,
};
use serde_json::{Value, json};

struct Fault {
    name: &'static str,
    /// Makes a good request bad; a returned string replaces the configuration.
    bad: fn(&mut Value, &mut Sandbox) -> Option<String>,
    code: u32,
    named: &'static str,
}

const FAULTS: [Fault; 12] = [
    Fault {
        name: "malformed JSON",
        bad: |_, _| Some(r#"{"cniVersion": "1.0.0","#.into()),
        code: 6,
        named: "not valid",
    },
    Fault {
        name: "no JSON at all",
        bad: |_, _| Some(String::new()),
        code: 6,
        named: "not valid",
    },
    Fault {
        name: "unknown version",
        bad: |config, _| {
            config["cniVersion"] = json!("2.0.0");
            None
        },
        code: 1,
        named: "2.0.0",
    },
    Fault {
        name: "no network",
        bad: |config, _| {
            config.as_object_mut()?.remove("network");
            None
        },
        code: 7,
        named: "neither `network` nor `master`",
    },
    Fault {
        name: "a field of the wrong type",
        bad: |config, _| {
            config["mtu"] = json!("large");
            None
        },
        code: 7,
        named: "mtu",
    },
    Fault {
        name: "unknown network",
        bad: |config, _| {
            config["network"] = json!("default/nowhere");
            None
        },
        code: 7,
        named: "default/nowhere",
    },
    Fault {
        name: "a master that is not there",
        bad: |config, _| {
            config.as_object_mut()?.remove("network");
            config["master"] = json!("ens9");
            config["ipam"] = json!({"type": "ebbtide", "ipv4Pools": ["inline"]});
            None
        },
        code: 7,
        named: "ens9",
    },
    Fault {
        name: "an IPAM plugin that is not there",
        bad: |config, _| {
            config["ipam"] = json!({"type": "no-such-ipam"});
            None
        },
        code: 7,
        named: "no-such-ipam",
    },
    Fault {
        name: "a namespace that vanished",
        bad: |_, sandbox| {
            sandbox.netns = Some(PathBuf::from("/run/netns/vanished"));
            None
        },
        code: 3,
        named: "/run/netns/vanished",
    },
    Fault {
        name: "no namespace",
        bad: |_, sandbox| {
            sandbox.netns = None;
            None
        },
        code: 4,
        named: "CNI_NETNS",
    },
    Fault {
        name: "an interface that cannot be called so",
        bad: |_, sandbox| {
            sandbox.interface = "a/b".into();
            None
        },
        code: 4,
        named: "CNI_IFNAME",
    },
    Fault {
        name: "the veth's own name",
        bad: |_, sandbox| {
            sandbox.interface = "veth0".into();
            None
        },
        code: 7,
        named: "veth0",
    },
];

const INLINE_POOL: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: inline}
spec:
  subnet: 10.99.0.0/24
  ips: [10.99.0.10-10.99.0.20]
  gateway: 10.99.0.1
";

fn sandbox(netns: &Netns, container_id: &str) -> Sandbox {
    Sandbox::new(netns, container_id, "faulty")
}

/// Waits until the changed manifests were read.
fn wait_for(lab: &mut Lab, what: &str, command: &[&str], text: &str) -> Result<String> {
    eventually(what, || {
        let answer = lab.agent("master").control(command)?;
        ensure!(answer.contains(text), "no {text:?} in {answer}");
        Ok(answer)
    })
}

#[test]
fn bad_requests_are_refused_by_name_and_leave_nothing() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    std::fs::write(
        lab.agent("master").manifests().join("inline.yaml"),
        INLINE_POOL,
    )?;
    wait_for(&mut lab, "the new pool", &["pools"], "inline")?;
    let plugin = lab.agent("master").plugin();
    let node = lab.vpc.node("master").clone();
    let netns = Netns::new("faulty")?;
    let before = (Snapshot::of(&node)?, Snapshot::of(&netns)?);
    for (number, fault) in FAULTS.iter().enumerate() {
        let mut config = plugin.config("default/ipvlan-ens5");
        let mut sandbox = sandbox(&netns, &format!("fault{number}"));
        let replaced = (fault.bad)(&mut config, &mut sandbox);
        let config = replaced.unwrap_or_else(|| config.to_string());
        let error = plugin
            .call("ADD", Some(&sandbox), &config)?
            .error()
            .with_context(|| fault.name)?;
        ensure!(error.code == fault.code, "{}: {error}", fault.name);
        ensure!(error.msg.contains(fault.named), "{}: {error}", fault.name);
        ensure!(
            !error.details.is_empty(),
            "{}: no way out in {error}",
            fault.name
        );
        ensure!(
            lab.agent("master").addresses_in_use()? == 0,
            "{}: an address stayed taken",
            fault.name
        );
        before.0.comes_back(&node).with_context(|| fault.name)?;
        before
            .1
            .assert_same(&Snapshot::of(&netns)?)
            .with_context(|| fault.name)?;
    }
    Ok(())
}

#[test]
fn an_interface_that_is_there_already_is_not_replaced() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let plugin = lab.agent("master").plugin();
    let netns = Netns::new("taken")?;
    ebbtide_vpc::snapshot::ip(&netns, &["link", "add", "eth0", "type", "bridge"])?;
    let before = Snapshot::of(&netns)?;
    let host = Snapshot::of(lab.vpc.node("master"))?;
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let error = plugin
        .call("ADD", Some(&sandbox(&netns, "taken")), &config)?
        .error()?;
    ensure!(error.code == 102 && error.msg.contains("eth0"), "{error}");
    before.assert_same(&Snapshot::of(&netns)?)?;
    host.comes_back(lab.vpc.node("master"))?;
    ensure!(lab.agent("master").addresses_in_use()? == 0);
    Ok(())
}

#[test]
fn a_full_pool_says_so_and_a_failed_add_drains_nothing() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pods = ["a", "b", "c", "d", "e"]
        .map(|name| lab.pod("master", "ens5", name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let refused: CniError = match lab.pod("master", "ens5", "f") {
        Ok(_) => bail!("a sixth pod got an address"),
        Err(error) => error.downcast()?,
    };
    ensure!(refused.code == 101, "{refused}");
    ensure!(refused.msg.contains("master-ens5-v"), "{refused}");
    let status = lab.agent("master").plugin().call(
        "STATUS",
        None,
        &lab.agent("master")
            .plugin()
            .config("default/ipvlan-ens6")
            .to_string(),
    )?;
    status.success()?;
    ensure!(
        lab.agent("master").addresses_in_use()? == 10,
        "five of each family"
    );
    for pod in pods {
        pod.delete()?;
    }
    ensure!(lab.agent("master").addresses_in_use()? == 0);
    Ok(())
}

#[test]
fn status_fails_where_nothing_can_be_handed_out_but_never_on_a_node_with_pods() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let status = || plugin.call("STATUS", None, &config);
    let plan = lab.agent("master").manifests().join("plan.yaml");
    std::fs::write(plan, "").context("taking all networks and pools away")?;
    let other = Netns::new("other")?;
    eventually("nothing can be handed out", || {
        let other = sandbox(&other, "other");
        let added = plugin.call("ADD", Some(&other), &config)?;
        match added.error() {
            Ok(_) => Ok(()),
            Err(_) => {
                plugin.call("DEL", Some(&other), &config)?.success()?;
                bail!("an address was")
            }
        }
    })?;
    status()?.success()?;
    pod.delete()?;
    let error = status()?.error()?;
    ensure!(error.code == 50, "{error}");
    Ok(())
}

#[test]
fn a_second_mode_on_one_master_is_refused() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    std::fs::write(
        lab.agent("master").manifests().join("inline.yaml"),
        INLINE_POOL,
    )?;
    wait_for(&mut lab, "the new pool", &["pools"], "inline")?;
    let pod = lab.pod("master", "ens5", "a")?;
    let plugin = lab.agent("master").plugin();
    let config = json!({
        "cniVersion": "1.0.0", "name": "inline", "type": "ebbtide", "master": "ens5",
        "mode": "l2", "ipam": {"type": "ebbtide", "ipv4Pools": ["inline"]},
        "agentSocket": plugin.socket(),
    });
    let netns = Netns::new("l2")?;
    let call =
        |config: &Value| plugin.call("ADD", Some(&sandbox(&netns, "l2")), &config.to_string());
    let error = call(&config)?.error()?;
    ensure!(error.code == 7 && error.msg.contains("l2"), "{error}");
    pod.call("CHECK")?;
    pod.delete()?;
    let result = call(&config)?.success()?;
    ensure!(result["ips"][0]["address"] == "10.99.0.10/24", "{result}");
    plugin
        .call("DEL", Some(&sandbox(&netns, "l2")), &config.to_string())?
        .success()?;
    Ok(())
}

#[test]
fn an_agent_that_is_down_is_named_and_del_does_not_lie() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    lab.agent("master").stop()?;
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    for (command, code) in [
        ("ADD", 11),
        ("CHECK", 11),
        ("DEL", 11),
        ("GC", 11),
        ("STATUS", 50),
    ] {
        let error = plugin.call(command, Some(&pod.sandbox), &config)?.error()?;
        ensure!(error.code == code, "{command}: {error}");
        ensure!(error.msg.contains("cni.sock"), "{command}: {error}");
    }
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    pod.call("CHECK")?;
    pod.delete()
}

#[test]
fn bad_manifests_are_reported_by_file_document_and_field_and_the_good_ones_work() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pool = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\n\
             metadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        )
    };
    let bad = [
        pool("good", "subnet: 10.98.0.0/24, ips: [10.98.0.10]"),
        pool(
            "gateway-in-a-range",
            "subnet: 10.97.0.0/24, ips: [10.97.0.10], gateway: 10.97.0.10",
        ),
        pool(
            "overlapping",
            "subnet: 172.31.16.0/20, ips: [172.31.16.6-172.31.16.9]",
        ),
        pool("misspelt", "subnet: [10.0.0.0/24]"),
    ]
    .concat();
    std::fs::write(lab.agent("master").manifests().join("zz-bad.yaml"), bad)?;
    wait_for(&mut lab, "the good pool", &["pools"], "good")?;
    let status = lab.agent("master").control(&["status"])?;
    for (object, field, document) in [
        ("gateway-in-a-range", "gateway", "2"),
        ("overlapping", "ips", "3"),
        ("misspelt", "subnet", "4"),
    ] {
        let line = status
            .lines()
            .find(|line| line.contains(object) && line.contains("zz-bad.yaml"))
            .with_context(|| format!("{object} is not reported: {status}"))?;
        ensure!(line.contains(field), "no {field} in {line}");
        ensure!(line.contains(document), "no document {document} in {line}");
    }
    lab.pod("master", "ens5", "a")?.delete()
}
