//! The cloud controller, with a real API server, its own account under the shipped policies, and moto in the place of EC2.
//!
//! The agents' side is played by the test: it writes what an agent would write, of what moto says that the NIC has.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use ebbtide_cluster::{ControlPlane, Release};
use ebbtide_tests::moto::{Eni, Moto};
use ebbtide_vpc::{process::Process, workspace};
use serde_json::{Value, json};

use crate::{
    accounts::{NAMESPACE, pod, until_refused},
    attempt::{Act, Holder, Verdict, attempt},
    setup::{DEPLOY, cluster},
};

const ACCOUNT: &str = "ebbtide-cloud-controller";
const MAP: &str = "ebbtide-cloud.node-a";

/// The first release with account policies.
const POLICIES: Release = Release::new(30);

/// Starts the controller `name` as its Deployment does.
fn controller(cluster: &ControlPlane, moto: &Moto, name: &str, more: &[&str]) -> Result<Process> {
    let mut command = Command::new(workspace::BINARIES.file("ebbtide-agent")?);
    let kubeconfig = cluster.kubeconfig_of(NAMESPACE, ACCOUNT, Some(name))?;
    command
        .args(["cloud-controller", "--name", name, "--region", "eu-west-1"])
        .args(["--warm", "2", "--slack", "0", "--idle-seconds", "1"])
        .args(["--endpoint", &moto.url(), "--kubeconfig"])
        .arg(kubeconfig)
        .args(more)
        .env("AWS_ACCESS_KEY_ID", "AKID")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-is-nowhere");
    let log = cluster.directory().join(format!("{name}.log"));
    Ok(Process::start(command, &log)?)
}

fn log(cluster: &ControlPlane, name: &str) -> String {
    let path = cluster.directory().join(format!("{name}.log"));
    std::fs::read_to_string(path).unwrap_or_default()
}

/// An agent's part, played by the test.
struct Agent<'c> {
    cluster: &'c ControlPlane,
    nic: &'c Eni,
}

impl Agent<'_> {
    /// Tells that the NIC has these addresses, of which pods have some, some are surrendered, and pods wait.
    fn tell(&self, has: &[String], used: &[String], surrendered: &str, waiting: u64) -> Result<()> {
        let blocks: Vec<String> = has.iter().map(|each| format!("{each}/32")).collect();
        let pool = json!({
            "name": "node-a-ens5-v4", "family": "v4", "subnet": "10.0.1.0/24", "ranges": has.join(", "),
            "used": used.join(", "), "surrendered": surrendered,
        });
        let told = json!({"version": 1, "node": "node-a", "cloud": "aws", "nics": [{
            "id": self.nic.id, "mac": self.nic.mac, "link": "ens5", "waiting": {"v4": waiting}, "blocks": blocks,
            "pools": [pool],
        }]});
        let patch = json!({"data": {"told.json": told.to_string()}}).to_string();
        self.cluster
            .kubectl(&[
                "-n",
                NAMESPACE,
                "patch",
                "configmap",
                MAP,
                "--type=merge",
                "-p",
                &patch,
            ])
            .map(drop)
    }

    /// Waits for what it is asked back.
    fn asked(&self, when: impl Fn(&str) -> bool) -> Result<String> {
        let of = |map: &Value| -> String {
            let asked = map["data"]["asked.json"].as_str().unwrap_or("{}");
            let asked: Value = serde_json::from_str(asked).unwrap_or_default();
            asked["back"][&self.nic.id]["v4"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let map = ["-n", NAMESPACE, "configmap", MAP];
        self.cluster
            .wait_until(&map, |map| when(&of(map)))
            .map(|map| of(&map))
    }
}

/// Makes the node, the ConfigMap and the pods whose tokens the controllers have.
fn site(cluster: &ControlPlane, nic: &Eni) -> Result<()> {
    for file in ["ebbtide.yaml", "cloud-controller.yaml"] {
        cluster.kubectl(&[
            "apply",
            "-f",
            &Path::new(DEPLOY).join(file).display().to_string(),
        ])?;
    }
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-a", "labels": {"node.kubernetes.io/instance-type": "m5.large"}},
        "spec": {"providerID": format!("aws:///eu-west-1a/{}", nic.instance)},
    });
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": MAP, "namespace": NAMESPACE, "labels": {"ebbtide.io/node-cloud": "true"}},
    });
    for object in [node, map] {
        cluster.apply(&object.to_string())?;
    }
    for name in ["one", "two"] {
        cluster.apply(&pod(NAMESPACE, name, "node-a", ACCOUNT).to_string())?;
    }
    if cluster.release()? >= POLICIES {
        let policies = Path::new(DEPLOY).join("policy-accounts.yaml");
        cluster.kubectl(&["apply", "-f", &policies.display().to_string()])?;
    }
    Ok(())
}

#[test]
fn a_nic_gets_what_pods_need_and_gives_back_what_is_surrendered_whichever_controller_leads()
-> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let Some(moto) = Moto::start()? else {
        return Ok(());
    };
    let nic = moto.instance("m5.large")?;
    site(&cluster, &nic)?;
    let agent = Agent {
        cluster: &cluster,
        nic: &nic,
    };

    // Someone looks first: it says what it would do, and does nothing.
    agent.tell(&[], &[], "", 3)?;
    let mut once = controller(&cluster, &moto, "two", &["--once"])?;
    let mut ended = None;
    for _ in 0..240 {
        ended = once.ended()?;
        if ended.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(250));
    }
    let said = log(&cluster, "two");
    ensure!(ended.is_some_and(|status| status.success()), "{said}");
    ensure!(said.contains("would assign 5 IPv4 addresses"), "{said}");
    ensure!(moto.assigned(&nic)?.is_empty(), "{said}");

    // Two warm ones, and three for pods that wait; each request is an Event.
    let mut one = controller(&cluster, &moto, "one", &[])?;
    let has = moto.until(&nic, 5)?;
    let event = "involvedObject.kind=Node,reason=Assigned";
    cluster.wait_until(
        &["events", "-n", "default", "--field-selector", event],
        |list| {
            let message = list["items"][0]["message"].as_str().unwrap_or_default();
            has.iter().all(|address| message.contains(address))
        },
    )?;

    // The pods are there: that is enough. Then they go, and the leader is killed; the other one asks three back.
    agent.tell(&has, &has[..3], "", 0)?;
    let _two = controller(&cluster, &moto, "two", &[])?;
    thread::sleep(Duration::from_secs(8));
    ensure!(moto.assigned(&nic)? == has, "{}", log(&cluster, "one"));
    one.kill()?;
    agent.tell(&has, &[], "", 0)?;
    let back = agent.asked(|asked| !asked.is_empty())?;
    ensure!(back.split(',').count() >= 1, "{back}");
    // Nothing is taken before it is surrendered.
    thread::sleep(Duration::from_secs(8));
    ensure!(moto.assigned(&nic)?.len() == 5, "{}", log(&cluster, "two"));
    agent.tell(&has, &[], &back, 0)?;
    let left = moto.until(&nic, 2)?;
    agent.tell(&left, &[], &back, 0)?;
    agent.asked(str::is_empty)?;

    // An m5.large has ten addresses on a NIC, one of them its own; moto would give a hundred.
    agent.tell(&left, &left, "", 100)?;
    let full = moto.until(&nic, 9)?;
    agent.tell(&full, &full, "", 93)?;
    let event = "involvedObject.kind=Node,reason=CloudAddresses";
    cluster.wait_until(
        &["events", "-n", "default", "--field-selector", event],
        |list| {
            let items = list["items"].as_array().into_iter().flatten();
            let mut said = items.filter_map(|each| each["message"].as_str());
            said.any(|message| message.contains("of at most 10 IPv4 addresses"))
        },
    )?;
    ensure!(moto.assigned(&nic)?.len() == 9);
    for name in ["one", "two"] {
        let log = log(&cluster, name);
        ensure!(!log.contains("a-secret-that-is-nowhere"), "{log}");
        ensure!(
            !log.contains("forbidden") && !log.contains("orbidden:"),
            "{log}"
        );
    }
    Ok(())
}

#[test]
fn the_cloud_controllers_token_changes_what_is_asked_back_and_nothing_else() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let nic = Eni {
        id: "eni-1".into(),
        instance: "i-1".into(),
        mac: "02:00:00:00:00:01".into(),
    };
    site(&cluster, &nic)?;
    if cluster.release()? < POLICIES {
        return crate::accounts::without_policies(&cluster);
    }
    let config = cluster.kubeconfig_of(NAMESPACE, ACCOUNT, Some("one"))?;
    let holder = Holder::of(&config)?;
    let maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let path = format!("{maps}/{MAP}");
    let map = |data: Value, label: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": MAP, "namespace": NAMESPACE, "labels": {"ebbtide.io/node-cloud": label}}, "data": data,
        })
    };
    let agents = || Act::Replace(map(json!({"told.json": "x"}), "true"));
    until_refused(&holder, &attempt("what an agent tells", &path, agents()));
    for (allowed, one) in [
        (
            true,
            attempt(
                "what is asked back",
                &path,
                Act::Replace(map(json!({"asked.json": "x"}), "true")),
            ),
        ),
        (false, attempt("what an agent tells", &path, agents())),
        (
            false,
            attempt("the label", &path, Act::Replace(map(json!({}), "x"))),
        ),
        (
            false,
            attempt(
                "another ConfigMap",
                format!("{maps}/ebbtide"),
                Act::Replace(json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ebbtide", "namespace": NAMESPACE}, "data": {},
                })),
            ),
        ),
        (
            false,
            attempt(
                "a ConfigMap made",
                &maps,
                Act::Create(map(json!({}), "true")),
            ),
        ),
        (false, attempt("a ConfigMap deleted", &path, Act::Delete)),
        (
            false,
            attempt(
                "a node",
                "/api/v1/nodes/node-a",
                Act::Patch(json!({"metadata": {"labels": {"x": "y"}}})),
            ),
        ),
        (
            false,
            attempt(
                "pools",
                "/apis/spiderpool.spidernet.io/v2beta1/spiderippools",
                Act::List,
            ),
        ),
        (
            false,
            attempt(
                "secrets",
                format!("/api/v1/namespaces/{NAMESPACE}/secrets"),
                Act::List,
            ),
        ),
    ] {
        let verdict = holder.verdict(&one);
        ensure!(
            allowed != matches!(verdict, Verdict::Refused(_)),
            "{one:?}: {verdict:?}"
        );
    }
    Ok(())
}
