//! The Helm chart, by Helm itself: installed, tested, and removed without a trace.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::workspace;
use serde_json::Value;

use super::{
    cloud::deploy,
    stage::{NAMESPACE, Stage},
};

/// The release's name.
const RELEASE: &str = "ebbtide";

/// What is of Ebbtide on a node, as a shell in a privileged pod on the node's network and among its processes sees it: links,
/// rules, routes of other tables, and files.
const TRACES: &str = r"
ip -o link show | grep -E ': (ebbtide|veth)' ;
ip rule show | grep -vE 'lookup (local|main|default)' ;
ip -6 rule show | grep -vE 'lookup (local|main|default)' ;
ip route show table all | grep -E 'dev (ebbtide|veth)' ;
for file in opt/cni/bin/ebbtide etc/cni/net.d/00-ebbtide.conflist run/ebbtide var/lib/ebbtide sys/fs/bpf/ebbtide; do
  [ -e /proc/1/root/$file ] && echo /$file ;
done ;
true";

/// Installs the chart with these values, and waits until it is ready.
pub(super) fn install(stage: &Stage, values: &Value) -> Result<()> {
    let file = stage.cluster.directory().join("values.json");
    std::fs::write(&file, values.to_string())
        .with_context(|| format!("writing {}", file.display()))?;
    let (chart, values) = (deploy("helm/ebbtide"), file);
    let (chart, values) = (chart.display().to_string(), values.display().to_string());
    let arguments = [
        "install",
        RELEASE,
        &chart,
        "--create-namespace",
        "--values",
        &values,
        "--wait",
        "--timeout=5m",
    ];
    let output = helm(stage, &arguments)?;
    ensure!(output.status.success(), "helm install: {}", said(&output));
    Ok(())
}

/// Checks that `helm test` passes, shows its table, and leaves its log alone.
pub(super) fn test(stage: &Stage) -> Result<String> {
    let output = helm(stage, &["test", RELEASE, "--timeout=15m"])?;
    let log = stage
        .cluster
        .kubectl(&["-n", NAMESPACE, "logs", "ebbtide-connectivity"]);
    ensure!(
        output.status.success(),
        "helm test: {}\n{log:?}",
        said(&output)
    );
    let log = log?;
    let well = log.lines().find(|line| line.starts_with("All is well"));
    let well = well.with_context(|| format!("no table in the log: {log}"))?;
    let label = ["-l", "app.kubernetes.io/name=ebbtide-connectivity"];
    for (kinds, expected) in [
        (&["namespaces"][..], 0),
        (&["clusterroles,clusterrolebindings"], 0),
        (&["-A", "roles,rolebindings,serviceaccounts"], 0),
        (&["-A", "pods"], 1),
    ] {
        let words = [kinds, &label].concat();
        stage.until("what the test made is gone", || {
            let left = stage.cluster.get(&words)?;
            let left = left["items"].as_array().map_or(0, Vec::len);
            ensure!(left == expected, "{left} {kinds:?}");
            Ok(())
        })?;
    }
    Ok(well.to_owned())
}

/// Checks that the removal is refused while pods have addresses, and that then nothing is left on nodes and in the cluster.
pub(super) fn uninstall(stage: &Stage) -> Result<String> {
    let refused = helm(stage, &["uninstall", RELEASE, "--timeout=2m"])?;
    ensure!(
        !refused.status.success(),
        "it was removed below running pods: {}",
        said(&refused)
    );
    let agents = stage
        .cluster
        .get(&["-n", NAMESPACE, "daemonset", "ebbtide"])?;
    ensure!(
        agents["status"]["numberReady"] == agents["status"]["desiredNumberScheduled"],
        "agents are gone: {agents}"
    );

    for words in [
        &["delete", "deployments", "--all"][..],
        &["delete", "pods", "-l", "app!=host", "--grace-period=1"],
    ] {
        stage.cluster.kubectl(words)?;
    }
    let removed = helm(stage, &["uninstall", RELEASE, "--wait", "--timeout=5m"])?;
    ensure!(
        removed.status.success(),
        "helm uninstall: {}\n{}",
        said(&removed),
        jobs(stage)
    );
    let mut nodes = 0;
    for pod in stage.pods("host")? {
        let shell = ["exec", &pod.name, "--", "sh", "-c", TRACES];
        let left = stage.cluster.kubectl(&shell)?;
        // The agents' persistent data stay, unless asked for.
        let left: Vec<&str> = left
            .lines()
            .filter(|line| *line != "/var/lib/ebbtide")
            .collect();
        ensure!(left.is_empty(), "{} has {left:?}", pod.node);
        nodes += 1;
    }
    ensure!(nodes > 0, "no node was looked at");
    for words in [
        &["-n", NAMESPACE, "all,configmaps,roles,rolebindings,leases"][..],
        &["-A", "spiderendpoints"],
        &["-A", "network-attachment-definitions"],
    ] {
        stage.until("what was written is gone", || {
            let left = stage.cluster.get(words)?;
            let left = left["items"].as_array().context("no list")?;
            let names = left
                .iter()
                .filter_map(|item| item["metadata"]["name"].as_str());
            // Every namespace has it.
            let names: Vec<&str> = names.filter(|name| *name != "kube-root-ca.crt").collect();
            ensure!(names.is_empty(), "{words:?}: {names:?}");
            Ok(())
        })?;
    }
    Ok(format!(
        "refused first; then nothing is left on {nodes} nodes"
    ))
}

/// Runs Helm as the administrator.
fn helm(stage: &Stage, arguments: &[&str]) -> Result<Output> {
    let program = workspace::HELM.file("helm")?;
    let arguments = [arguments, &["--namespace", NAMESPACE]].concat();
    stage.cluster.client(&program, &arguments)
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Returns what the removal's pods say, for messages.
fn jobs(stage: &Stage) -> String {
    let pods = stage
        .cluster
        .kubectl(&["-n", NAMESPACE, "get", "pods,jobs", "-o", "wide"]);
    let log = [
        "-n",
        NAMESPACE,
        "logs",
        "job/ebbtide-uninstall",
        "--tail=50",
    ];
    let log = stage.cluster.kubectl(&log);
    format!("{}\n{}", pods.unwrap_or_default(), log.unwrap_or_default())
}
