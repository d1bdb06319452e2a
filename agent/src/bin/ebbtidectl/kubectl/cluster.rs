//! The cluster: its objects, and programs in its pods, by kubectl or, in a pod without kubectl, by the API server itself.

mod api;
mod program;

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::{api::Connected, program::Kubectl};
use super::Cli;

/// How long a call that does no more than ask the API server, or an agent, may take.
pub(super) const CALL: Duration = Duration::from_secs(90);

/// How much a call may print, in bytes. kubectl prints 2 kB for a SpiderEndpoint.
const MOST: u64 = 256 << 20;

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// The path of its group and version.
    root: &'static str,
    /// Its name in paths, and for kubectl.
    plural: &'static str,
}

impl Kind {
    const fn core(plural: &'static str) -> Self {
        Self {
            root: "/api/v1",
            plural,
        }
    }

    const fn spiderpool(plural: &'static str) -> Self {
        Self {
            root: "/apis/spiderpool.spidernet.io/v2beta1",
            plural,
        }
    }

    /// Returns its name in the plural, in lower case.
    pub(super) const fn plural(self) -> &'static str {
        self.plural
    }
}

pub(super) const NODES: Kind = Kind::core("nodes");
pub(super) const NAMESPACES: Kind = Kind::core("namespaces");
pub(super) const PODS: Kind = Kind::core("pods");
pub(super) const ACCOUNTS: Kind = Kind::core("serviceaccounts");
pub(super) const SERVICES: Kind = Kind::core("services");
pub(super) const EVENTS: Kind = Kind::core("events");
pub(super) const NETWORKS: Kind = Kind::spiderpool("spidermultusconfigs");
pub(super) const POOLS: Kind = Kind::spiderpool("spiderippools");
pub(super) const ENDPOINTS: Kind = Kind::spiderpool("spiderendpoints");

/// Which objects of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which<'a> {
    /// All of one namespace, or of the cluster.
    All,
    /// Those with a label: `NAME=VALUE`.
    Labelled(&'a str),
    /// Those with a field: `NAME=VALUE`.
    Having(&'a str),
    /// One.
    Named(&'a str),
}

/// A container of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Container<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) name: &'a str,
}

/// The cluster.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    way: Way,
    /// The namespace of the agents.
    pub(super) agents: String,
}

/// How the cluster is asked.
#[derive(Clone, Debug)]
enum Way {
    Kubectl(Kubectl),
    /// As this pod's account. Ebbtide's own image has no kubectl.
    Api,
}

/// A program that runs in a container for as long as this is held.
#[derive(Debug)]
pub(super) struct Held {
    _running: Running,
}

#[derive(Debug)]
#[expect(dead_code, reason = "they are held for what their ends do")]
enum Running {
    Program(program::Held),
    Connection(Connected),
}

impl Cluster {
    /// Returns the one that the plugin's options name, or kubectl's own configuration; in a pod without kubectl, that pod's.
    pub(super) fn of(cli: &Cli) -> Self {
        let is_named = cli.context.is_some() || cli.kubeconfig.is_some();
        let kubectl = Kubectl::of(cli);
        // kubectl also knows how to ask as a pod's account.
        let asks_itself =
            ebbtide_kube::client::in_cluster() && !is_named && !Kubectl::is_installed();
        Self {
            way: match asks_itself {
                true => Way::Api,
                false => Way::Kubectl(kubectl),
            },
            agents: cli.namespace.clone(),
        }
    }

    /// Returns kubectl, for what only kubectl does.
    pub(super) fn kubectl(&self) -> anyhow::Result<&Kubectl> {
        match &self.way {
            Way::Kubectl(kubectl) => Ok(kubectl),
            Way::Api => bail!("this command needs kubectl, which is not in the search path"),
        }
    }

    /// Returns what people call the cluster: kubectl's context, if there is one.
    pub(super) fn name(&self) -> Option<String> {
        match &self.way {
            Way::Kubectl(kubectl) => kubectl.context(),
            Way::Api => None,
        }
    }

    /// Returns objects, as JSON: one, or a list. Without a namespace they are those of the whole cluster, and one is of the
    /// namespace that is in use.
    pub(super) fn get(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        which: Which<'_>,
    ) -> anyhow::Result<Value> {
        match &self.way {
            Way::Kubectl(kubectl) => kubectl.get(kind, namespace, which),
            Way::Api => api::get(kind, namespace, which),
        }
    }

    /// Makes the objects of a list.
    pub(super) fn create(&self, objects: &[Value]) -> anyhow::Result<()> {
        match &self.way {
            Way::Kubectl(kubectl) => kubectl.create(objects),
            Way::Api => api::create(objects),
        }
    }

    /// Deletes an object, if it is there, and waits for its end if asked.
    pub(super) fn delete(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        does_wait: bool,
    ) -> anyhow::Result<()> {
        match &self.way {
            Way::Kubectl(kubectl) => kubectl.delete(kind, namespace, name, does_wait),
            Way::Api => api::delete(kind, namespace, name, does_wait),
        }
    }

    /// Returns the API server's version, as `v1.33.1`.
    pub(super) fn version(&self) -> anyhow::Result<String> {
        let version = match &self.way {
            Way::Kubectl(kubectl) => kubectl.version()?,
            Way::Api => api::version()?,
        };
        Ok(version.as_str().unwrap_or("unknown").to_owned())
    }

    /// Runs a program in a container with `input` on its standard input, for no longer than `most`, and returns what it
    /// prints. It has to know by itself where its input ends.
    pub(super) fn run(
        &self,
        container: Container<'_>,
        words: &[&str],
        input: &[u8],
        most: Duration,
    ) -> anyhow::Result<Vec<u8>> {
        match &self.way {
            Way::Kubectl(kubectl) => kubectl.run(container, words, input, most),
            Way::Api => api::run(container, words, input, most),
        }
    }

    /// Starts a program in a container that ends when its input does. Returns the first line that it prints within `most`.
    pub(super) fn hold(
        &self,
        container: Container<'_>,
        words: &[&str],
        most: Duration,
    ) -> anyhow::Result<(Held, String)> {
        let (running, line) = match &self.way {
            Way::Kubectl(kubectl) => {
                let (held, line) = kubectl.hold(container, words, most)?;
                (Running::Program(held), line)
            }
            Way::Api => {
                let (held, line) = api::hold(container, words, most)?;
                (Running::Connection(held), line)
            }
        };
        Ok((Held { _running: running }, line))
    }

    /// Returns an agent's container.
    pub(super) fn agent<'a>(&'a self, pod: &'a str) -> Container<'a> {
        Container {
            namespace: &self.agents,
            pod,
            name: "agent",
        }
    }

    /// Returns what an agent answers to `ebbtidectl`.
    pub(super) fn ebbtidectl<T: DeserializeOwned>(
        &self,
        agent: &str,
        words: &[&str],
    ) -> anyhow::Result<T> {
        let all = [&["ebbtidectl", "-o", "json"], words].concat();
        let text = self.run(self.agent(agent), &all, b"", CALL)?;
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "understand ebbtidectl {} of {agent} (is it of this program's release?)",
                words.join(" ")
            )
        })
    }
}
