//! Names without a namespace, isolated namespaces, and who determines a NIC's mode, with users that try to abuse them.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::{ControlPlane, Options, Place};
use ebbtide_vpc::{agent::Agent, cni::Sandbox, netns::Netns};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setup::{DEPLOY, LONG};

const NODE: &str = "node-a";

/// Returns a network on a NIC that does not exist: the error of an ADD names the NIC, and so tells which network was
/// meant.
fn network(name: &str, master: &str, mode: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderMultusConfig",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"cniType": "ipvlan", "ipvlan": {"master": [master], "mode": mode}},
    })
}

fn definition(name: &str, config: &Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"config": config.to_string()},
    })
}

fn pool() -> Value {
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
        "metadata": {"name": "all"},
        "spec": {"subnet": "10.71.8.0/24", "ips": ["10.71.8.40-10.71.8.99"], "default": true, "nodeName": [NODE]},
    })
}

/// A control plane and an agent, in one namespace of this kernel.
struct Stage {
    agent: Agent,
    cluster: ControlPlane,
    pod: Netns,
    _directory: TempDir,
    count: u32,
}

impl Stage {
    fn open(config: &str) -> Result<Option<Self>> {
        let netns = Netns::new(NODE)?;
        ebbtide_vpc::snapshot::ip(&netns, &["link", "set", "lo", "up"])?;
        let options = Options {
            api_server_arguments: vec!["--disable-admission-plugins=ServiceAccount".into()],
            place: Some(Place {
                netns: netns.clone(),
                address: [127, 0, 0, 1].into(),
            }),
            ..Options::default()
        };
        let Some(cluster) = ControlPlane::start(options)? else {
            return Ok(None);
        };
        cluster.install_crds(&Path::new(DEPLOY).join("crds"))?;
        let known = cluster.get(&["namespaces"])?.to_string();
        for namespace in ["kube-system", "ebbtide-system", "team-a", "aaa"] {
            if !known.contains(&format!("\"{namespace}\"")) {
                cluster.kubectl(&["create", "namespace", namespace])?;
            }
        }
        let directory = TempDir::with_prefix("ebbtide-kubeconfig-")?;
        let kubeconfig = in_namespace(&cluster.kubeconfig(), directory.path(), "ebbtide-system")?;
        cluster.apply(&pool().to_string())?;
        let mut agent = Agent::start_in_cluster(&netns, NODE, &kubeconfig, config)?;
        agent.wait_ready()?;
        Ok(Some(Self {
            agent,
            cluster,
            pod: Netns::new("pod")?,
            _directory: directory,
            count: 0,
        }))
    }

    fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(&list.to_string()).map(drop)
    }

    /// Restarts the agent with other settings.
    fn restart(&mut self, config: &str) -> Result<()> {
        self.agent.kill()?;
        self.agent.configure(config)?;
        self.agent.launch()?;
        self.agent.wait_ready()
    }

    /// Returns the error of an ADD for a new pod of `namespace`, message and details. It never makes an interface.
    fn add(&mut self, namespace: &str, annotations: &Value) -> Result<String> {
        self.add_by(namespace, annotations, &json!({}))
    }

    /// As [`Stage::add`], with further fields in the CNI configuration.
    fn add_by(&mut self, namespace: &str, annotations: &Value, more: &Value) -> Result<String> {
        self.count += 1;
        let name = format!("pod-{}", self.count);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "none"}]},
        });
        self.cluster.apply(&pod.to_string())?;
        let plugin = self.agent.plugin();
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "ebbtide", "type": "ebbtide",
            "agentSocket": plugin.socket(),
        });
        if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
            config.extend(more.clone());
        }
        let arguments =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        let arguments = [("CNI_ARGS", OsStr::new(&arguments))];
        let sandbox = Sandbox::new(&self.pod, name.clone(), &name);
        let start = Instant::now();
        loop {
            let config = config.to_string();
            let called = plugin.call_with("ADD", Some(&sandbox), config.as_bytes(), &arguments)?;
            let error = called.error()?;
            // The agent has not received everything yet.
            if error.code == 11 && start.elapsed() < LONG {
                thread::sleep(Duration::from_millis(100));
                continue;
            }
            return Ok(format!("{} {}", error.msg, error.details));
        }
    }

    /// Repeats ADD until the answer contains all of `said`: the agent receives new objects a little later.
    fn answers(
        &mut self,
        what: &str,
        namespace: &str,
        annotations: &Value,
        said: &[&str],
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let told = self.add(namespace, annotations)?;
            if said.iter().all(|part| told.contains(part)) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(15),
                "{what}: {told}\n{}",
                self.agent.log()
            );
            thread::sleep(Duration::from_millis(300));
        }
    }
}

/// Writes the kubeconfig of a client in this namespace.
fn in_namespace(kubeconfig: &Path, directory: &Path, namespace: &str) -> Result<PathBuf> {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(kubeconfig)?)?;
    config["contexts"][0]["context"]["namespace"] = json!(namespace);
    let file = directory.join("kubeconfig");
    fs::write(&file, config.to_string()).context("writing the kubeconfig")?;
    Ok(file)
}

fn first(network: &str) -> Value {
    json!({"v1.multus-cni.io/default-network": network})
}

#[test]
fn a_name_without_a_namespace_is_never_what_another_namespace_calls_the_same() -> Result<()> {
    let Some(mut stage) = Stage::open("defaultNetwork: common\n")? else {
        return Ok(());
    };
    let none = json!({});
    let inline = json!({"cniVersion": "1.0.0", "type": "ebbtide", "master": "theirs0"});
    stage.apply(&[
        network("team-a/common", "theirs0", "l3"),
        network("default/common", "theirs0", "l3"),
        definition("aaa/common", &inline),
        network("team-a/own", "own0", "l3"),
    ])?;
    // Waits until it has received all objects.
    stage.answers(
        "by its whole name",
        "default",
        &first("team-a/own"),
        &["own0"],
    )?;
    stage.answers("aaa's", "default", &first("aaa/common"), &["theirs0"])?;
    let told = [
        "\"common\"",
        "in namespace ebbtide-system or kube-system",
        "namespace/name",
    ];
    stage.answers("three others have one", "default", &none, &told)?;
    stage.answers("the pod of one of them", "team-a", &none, &told)?;
    stage.answers("a pod that says so", "team-a", &first("common"), &told)?;

    stage.apply(&[network("kube-system/common", "adm0", "l3")])?;
    stage.answers(
        "the cluster's",
        "default",
        &none,
        &["kube-system/common", "adm0"],
    )?;
    stage.answers("for all", "team-a", &none, &["kube-system/common", "adm0"])?;
    stage.answers(
        "by annotation",
        "team-a",
        &first("common"),
        &["kube-system/common", "adm0"],
    )?;
    let by_whole_name = first("team-a/common");
    stage.answers(
        "another, by its name",
        "default",
        &by_whole_name,
        &["team-a/common", "theirs0"],
    )?;
    // With more networks: a bare name is in the pod's own namespace.
    let more = json!({"k8s.v1.cni.cncf.io/networks": "nothing"});
    stage.answers(
        "more networks",
        "team-a",
        &more,
        &["team-a/nothing", "not declared"],
    )?;

    let inline = json!({"cniVersion": "1.0.0", "type": "ebbtide", "master": "own1"});
    stage.apply(&[definition("ebbtide-system/common", &inline)])?;
    stage.answers("the agent's own goes first", "default", &none, &["own1"])?;
    let named = stage.add_by("default", &none, &json!({"network": "own"}))?;
    ensure!(
        named.contains("in namespace ebbtide-system or kube-system"),
        "{named}"
    );
    let named = stage.add_by("default", &none, &json!({"network": "team-a/own"}))?;
    ensure!(named.contains("own0"), "{named}");
    Ok(())
}

#[test]
fn isolated_pods_name_networks_of_their_own_namespace_and_of_those_that_are_open() -> Result<()> {
    let Some(mut stage) = Stage::open("defaultNetwork: team-a/net\n")? else {
        return Ok(());
    };
    let by_name = json!({"cniVersion": "1.0.0", "type": "ebbtide", "network": "team-a/net"});
    stage.apply(&[
        network("team-a/net", "theirs0", "l3"),
        network("aaa/net", "aaa0", "l3"),
        network("kube-system/net", "adm0", "l3"),
        definition("default/around", &by_name),
    ])?;
    let none = json!({});
    let isolated = "namespaceIsolation";
    stage.answers(
        "as with Multus, off",
        "default",
        &first("aaa/net"),
        &["aaa0"],
    )?;
    stage.answers(
        "around, off",
        "default",
        &first("default/around"),
        &["theirs0"],
    )?;
    for (settings, rows) in [
        (
            "",
            [
                ("default", "aaa/net", isolated),
                ("default", "kube-system/net", "adm0"),
                ("team-a", "team-a/net", "theirs0"),
                ("default", "default/around", isolated),
                ("aaa", "default/around", isolated),
                ("team-a", "default/around", "theirs0"),
            ],
        ),
        (
            "globalNamespaces: [aaa]\n",
            [
                ("default", "aaa/net", "aaa0"),
                ("default", "kube-system/net", isolated),
                ("team-a", "team-a/net", "theirs0"),
                ("default", "default/around", isolated),
                ("aaa", "default/around", isolated),
                ("team-a", "kube-system/net", isolated),
            ],
        ),
    ] {
        stage.restart(&format!(
            "defaultNetwork: team-a/net\nnamespaceIsolation: true\n{settings}"
        ))?;
        for (namespace, name, said) in rows {
            let what = format!("{settings}: {name} by a pod of {namespace}");
            stage.answers(&what, namespace, &first(name), &[said])?;
            let more = json!({"k8s.v1.cni.cncf.io/networks": name});
            if said == isolated {
                stage.answers(&what, namespace, &more, &[said])?;
                // Named by the CNI configuration, as by Multus.
                let called = stage.add_by(namespace, &none, &json!({"network": name}))?;
                ensure!(
                    name.contains("around") || called.contains(said),
                    "{what}: {called}"
                );
            }
        }
        // The cluster's default applies to all.
        stage.answers("the cluster's default", "aaa", &none, &["theirs0"])?;
    }
    Ok(())
}

#[test]
fn a_nic_s_mode_is_the_administrator_s_to_say_whoever_s_pod_comes_first() -> Result<()> {
    let Some(mut stage) = Stage::open("")? else {
        return Ok(());
    };
    let inline = |master: &str, mode: &str| json!({"cniVersion": "1.0.0", "type": "ebbtide", "master": master, "mode": mode});
    stage.apply(&[
        network("team-a/l2", "adm0", "l2"),
        network("team-a/l2-alone", "alone0", "l2"),
        definition("team-a/inline", &inline("adm0", "l2")),
        definition("team-a/inline-alone", &inline("alone0", "l2")),
    ])?;
    stage.answers(
        "nobody else is there",
        "team-a",
        &first("team-a/l2-alone"),
        &["wants mode l2", "in mode l3", "nics.modes"],
    )?;
    stage.answers(
        "inline",
        "team-a",
        &first("team-a/inline-alone"),
        &["wants mode l2", "in mode l3"],
    )?;
    // The administrator's networks still determine the mode: their l2 is the NIC's.
    stage.apply(&[
        network("kube-system/l3", "adm0", "l3"),
        network("kube-system/l2", "two0", "l2"),
        network("team-a/l3", "two0", "l3"),
        definition("ebbtide-system/inline", &inline("two1", "l2")),
    ])?;
    for (what, name, master) in [
        ("l2 of the administrator's", "kube-system/l2", "two0"),
        ("l3 of the administrator's", "kube-system/l3", "adm0"),
        ("a definition's l2", "ebbtide-system/inline", "two1"),
    ] {
        let said = [master, "is not on this node"];
        stage.answers(what, "default", &first(name), &said)?;
    }
    stage.answers(
        "l3 on it",
        "team-a",
        &first("team-a/l3"),
        &["wants mode l3", "kube-system/l2 says so"],
    )?;
    stage.answers(
        "l2 on l3",
        "team-a",
        &first("team-a/l2"),
        &["wants mode l2", "kube-system/l3 says so"],
    )?;
    stage.answers(
        "inline",
        "team-a",
        &first("team-a/inline"),
        &["wants mode l2", "kube-system/l3 says so"],
    )?;
    let told = stage.add("default", &first("ebbtide-system/inline"))?;
    ensure!(!told.contains("wants mode"), "{told}");
    let status = stage.agent.control(&["status"])?;
    for part in [
        "SpiderMultusConfig team-a/l2:",
        "SpiderMultusConfig team-a/l3:",
        "NetworkAttachmentDefinition team-a/inline:",
    ] {
        ensure!(status.contains(part), "{part}: {status}");
    }
    let of_ours = "problem: SpiderMultusConfig kube-system/";
    ensure!(!status.contains(of_ours), "{status}");

    stage.restart("nics: {modes: {adm0: l2}}\n")?;
    let told = stage.add("team-a", &first("team-a/l2"))?;
    ensure!(!told.contains("wants mode"), "{told}");
    stage.answers(
        "by settings",
        "default",
        &first("kube-system/l3"),
        &["wants mode l3", "`nics.modes`"],
    )?;
    Ok(())
}
