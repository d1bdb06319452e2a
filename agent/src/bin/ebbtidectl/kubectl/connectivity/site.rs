//! The test's place in the cluster: its namespace, and servers on nodes that end with this program.

use std::time::Duration;

use anyhow::{Context as _, bail};
use ebbtide_agent::probe::{Asking, Exchange, Serving};

use super::{
    super::cluster::{Cluster, Container, Held, Kind, NAMESPACES, PODS, SERVICES, Which},
    objects::{self, Image, LABEL, LABEL_KEY},
    plan::{Asker, TestPod},
    topology::Node,
};

/// How much longer than what it runs an exec may take.
const EXEC: Duration = Duration::from_secs(60);

/// The cluster, and the test's place in it.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) cluster: Cluster,
    /// The namespace of pods and Services.
    pub(super) namespace: String,
    /// Whether the namespace was there before.
    is_given: bool,
}

impl Site {
    /// Returns a place in the namespace `within`, or in one of the test's own, whose name ends with `suffix`.
    pub(super) fn new(cluster: Cluster, within: Option<&str>, suffix: &str) -> Self {
        Self {
            cluster,
            namespace: match within {
                Some(namespace) => namespace.to_owned(),
                None => format!("{LABEL}-{suffix}"),
            },
            is_given: within.is_some(),
        }
    }

    /// Returns what the test has made of a kind.
    fn made(&self, kind: Kind) -> anyhow::Result<Vec<String>> {
        let label = format!("{LABEL_KEY}={LABEL}");
        let which = Which::Labelled(&label);
        let list = self.cluster.get(kind, Some(&self.namespace), which)?;
        let items = list["items"].as_array().into_iter().flatten();
        let names = items.filter_map(|item| item["metadata"]["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    /// Checks that the namespace has no pods of another test.
    pub(super) fn is_free(&self) -> anyhow::Result<()> {
        if self.is_given
            && let Some(pod) = self.made(PODS)?.first()
        {
            bail!(
                "another test is in the namespace {}, or was not removed: pod {pod} ({})",
                self.namespace,
                self.by_hand()
            );
        }
        Ok(())
    }

    /// Makes the namespace, if it is the test's own, and everything in it.
    pub(super) fn make(
        &self,
        pods: &[(String, TestPod)],
        networks: &[String],
        image: &Image,
    ) -> anyhow::Result<()> {
        if !self.is_given {
            let namespace = objects::namespace(&self.namespace);
            let made = self.cluster.create(&[namespace]);
            made.context("make the test's namespace")?;
        }
        let objects = objects::objects(&self.namespace, pods, networks, image);
        let made = self.cluster.create(&objects);
        made.context("make pods and Services")
    }

    /// Deletes what the test made, and waits for its end if asked.
    pub(super) fn remove(&self, does_wait: bool) -> anyhow::Result<()> {
        if !self.is_given {
            return self
                .cluster
                .delete(NAMESPACES, None, &self.namespace, does_wait);
        }
        let namespace = Some(self.namespace.as_str());
        for kind in [SERVICES, PODS] {
            let made = self.made(kind)?;
            // All are told before any is waited for.
            for does_wait in [false, does_wait] {
                for name in &made {
                    self.cluster.delete(kind, namespace, name, does_wait)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the command by which a person removes what was made.
    pub(super) fn by_hand(&self) -> String {
        let namespace = &self.namespace;
        match self.is_given {
            true => format!("kubectl -n {namespace} delete pods,services -l {LABEL_KEY}={LABEL}"),
            false => format!("kubectl delete namespace {namespace}"),
        }
    }

    /// Has somebody ask, and returns what became of the questions.
    pub(super) fn ask(&self, asker: &Place, asking: &Asking) -> anyhow::Result<Vec<Exchange>> {
        let input = serde_json::to_vec(asking).context("write the questions")?;
        let most = Duration::from_millis(asking.deadline) + EXEC;
        let container = match asker {
            Place::Agent(agent) => self.cluster.agent(agent),
            Place::Pod(pod) => Container {
                namespace: &self.namespace,
                pod,
                name: objects::CONTAINER,
            },
        };
        let words = ["ebbtide-agent", "probe", "ask"];
        let text = self.cluster.run(container, &words, &input, most)?;
        serde_json::from_slice(&text).context("understand the answers")
    }

    /// Starts a server on a node's own network, at each of its addresses, in its agent's container. It ends with what is
    /// returned.
    pub(super) fn serve(&self, node: &Node) -> anyhow::Result<(Held, u16)> {
        let addresses = node.addresses();
        let addresses: Vec<String> = addresses
            .map(|(_, address)| format!("--address={address}"))
            .collect();
        let mut words = vec!["ebbtide-agent", "probe", "serve", "--until-eof", "--port=0"];
        words.extend(["--name", &node.name, "--node", &node.name]);
        words.extend(addresses.iter().map(String::as_str));
        let container = self.cluster.agent(&node.agent);
        let (held, line) = self.cluster.hold(container, &words, EXEC)?;
        let serving: Serving = serde_json::from_str(&line).with_context(|| {
            format!(
                "start a server in {} (is its agent of this release?)",
                node.agent
            )
        })?;
        Ok((held, serving.port))
    }
}

/// Where somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In an agent's pod, which is on the node's network.
    Agent(String),
    /// In a pod of the test.
    Pod(String),
}

/// Returns where an asker is.
pub(super) fn place(
    asker: &Asker,
    nodes: &[Node],
    name: impl Fn(&TestPod) -> Option<String>,
) -> Option<Place> {
    match asker {
        Asker::Node(node) => {
            let mut nodes = nodes.iter();
            let node = nodes.find(|each| each.name == *node)?;
            Some(Place::Agent(node.agent.clone()))
        }
        Asker::Pod(pod) => name(pod).map(Place::Pod),
    }
}
