//! Failures: deleted pods, killed agents, and no free address.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::{
    objects,
    stage::{AGENTS, NAMESPACE, Pod, Stage, is_ready},
    traffic,
};

/// A pod that names a pool of another node.
const HUNGRY: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: hungry
  annotations:
    v1.multus-cni.io/default-network: @NETWORK@
    ipam.spidernet.io/ippool: '{"ipv4": ["@POOL@"]}'
spec:
  nodeName: @NODE@
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: 'localhost/busybox:1', imagePullPolicy: Never}]
"#;

/// Checks that a deleted pod's address is released, and that another pod takes its place.
pub(super) fn deletion(stage: &Stage) -> Result<String> {
    let node = stage.nodes().next().context("a node")?;
    let before = stage.pod(stage.cloud.apps()[0].name, node)?;
    delete(stage, &before)?;
    let after = replaced(stage, &before)?;
    Ok(format!(
        "{} is free, {} is out",
        before.address, after.address
    ))
}

/// Checks that traffic continues while agents are killed by SIGKILL, and that everything is the same afterwards.
pub(super) fn killed(stage: &Stage) -> Result<String> {
    let before = stage.web()?;
    let restarts = kill_agents(stage)?;
    let meanwhile = traffic::node_port_local(stage, 1);
    // The rows below need agents, whatever the result was.
    agents_are_back(stage, &restarts)?;
    meanwhile.context("while the agents were away")?;
    let after = stage.web()?;
    ensure!(before == after, "{before:?} became {after:?}");
    objects::pools(stage)?;
    traffic::node_port_local(stage, 2).context("when the agents were back")?;
    Ok("pods, addresses, counts and traffic as before".into())
}

/// Checks that a pod that is deleted while its agent is dead leaves nothing behind.
pub(super) fn deleted_meanwhile(stage: &Stage) -> Result<String> {
    let node = stage.nodes().last().context("a node")?;
    let before = stage.pod(stage.cloud.apps()[1].name, node)?;
    let restarts = kill_agents(stage)?;
    delete(stage, &before)?;
    agents_are_back(stage, &restarts)?;
    let after = replaced(stage, &before)?;
    Ok(format!(
        "{} is free, {} is out",
        before.address, after.address
    ))
}

/// Checks that an Event tells why a pod gets no address.
pub(super) fn hungry(stage: &Stage) -> Result<String> {
    let mut nodes = stage.nodes();
    let (node, other) = (nodes.next(), nodes.next());
    let (node, other) = node.zip(other).context("two nodes")?;
    let [_, nic] = stage.cloud.nics();
    let pool = stage.pool(other, nic);
    let pod = HUNGRY
        .replace("@NODE@", node)
        .replace("@POOL@", &pool)
        .replace("@NETWORK@", &stage.cloud.network(nic));
    stage.cluster.apply(&pod)?;
    let told = std::cell::RefCell::new(String::new());
    let waited = stage.until("an Event of the agent's names the pool", || {
        let selector = "involvedObject.name=hungry";
        let events = stage
            .cluster
            .get(&["events", "--field-selector", selector])?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        let own = events.iter().find(|event| {
            let by = [&event["source"]["component"], &event["reportingComponent"]];
            by.iter()
                .any(|by| by.as_str().is_some_and(|by| by.contains("ebbtide")))
        });
        let own = own.with_context(|| format!("no Event of the agent's among {events:?}"))?;
        let message = own["message"].as_str().unwrap_or_default();
        ensure!(message.contains(&pool), "{message}");
        told.replace(message.to_owned());
        Ok(())
    });
    stage
        .cluster
        .kubectl(&["delete", "pod", "hungry", "--wait=false"])?;
    waited?;
    let told = told.into_inner();
    let short: String = told.chars().take(60).collect();
    Ok(format!("{short}..."))
}

fn delete(stage: &Stage, pod: &Pod) -> Result<()> {
    let arguments = ["delete", "pod", &pod.name, "--wait=false"];
    stage.cluster.kubectl(&arguments).map(drop)
}

/// Waits until another pod has taken the place of one, and all objects show the new one only.
fn replaced(stage: &Stage, before: &Pod) -> Result<Pod> {
    stage.until("another pod is ready", || {
        stage.all_ready()?;
        let now = stage.pod(&before.app, &before.node)?;
        ensure!(now.name != before.name, "{} is still there", before.name);
        Ok(())
    })?;
    let after = stage.pod(&before.app, &before.node)?;
    stage.until("the pool tells of the new pod alone", || {
        objects::counted(stage, &after)
    })?;
    stage.until("the Service proxy knows the new pod", || {
        traffic::answers_locally(stage, &after)
    })?;
    stage.until("the old pod's SpiderEndpoint is gone", || {
        let left = stage
            .cluster
            .kubectl(&["get", "spiderendpoint", "-o", "name"])?;
        ensure!(!left.contains(&before.name), "{left}");
        Ok(())
    })?;
    Ok(after)
}

/// The agents' pods, and how often each was restarted.
type Restarts = BTreeMap<String, u64>;

/// Kills the agents. Returns how often they had been restarted before.
fn kill_agents(stage: &Stage) -> Result<Restarts> {
    let before = agents(stage)?
        .into_iter()
        .map(|(name, restarts, _)| (name, restarts));
    let before = before.collect();
    for host in stage.pods("host")? {
        let killed = stage.script(&host, "kill")?;
        ensure!(killed.contains("killed"), "{}: {killed}", host.node);
    }
    Ok(before)
}

/// Waits until the kubelets have restarted the agents. Being ready alone says nothing, until it was noticed that they
/// are not.
fn agents_are_back(stage: &Stage, before: &Restarts) -> Result<()> {
    stage.until("the agents are back", || {
        for (name, restarts, ready) in agents(stage)? {
            let anew = before.get(&name).is_some_and(|before| restarts > *before);
            ensure!(anew && ready, "{name}: {restarts} restarts, ready: {ready}");
        }
        Ok(())
    })
}

fn agents(stage: &Stage) -> Result<Vec<(String, u64, bool)>> {
    let list = stage
        .cluster
        .get(&["-n", NAMESPACE, "pods", "-l", AGENTS])?;
    let pods = list["items"].as_array().context("no list of pods")?;
    ensure!(pods.len() == stage.nodes().count(), "{} agents", pods.len());
    let agents = pods.iter().map(|pod| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        (
            name.to_owned(),
            restarts.as_u64().unwrap_or_default(),
            is_ready(pod),
        )
    });
    Ok(agents.collect())
}
