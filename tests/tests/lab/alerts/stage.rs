//! A node with pods of which nothing is wrong.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    agent::Agent,
    lab::Lab,
    manifests,
    metadata::{Cloud, MetadataDouble},
    netns::Netns,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};

use super::super::node_changes::{PORT, checked, serve_the_world};

/// The node.
pub(super) const NODE: &str = "master";

/// The node, its pods and those that they talk with.
pub(super) struct Stage {
    /// The pods that stay, one on each NIC.
    pub(super) pods: Vec<Pod>,
    /// Those that only take addresses.
    pub(super) more: Vec<Pod>,
    servers: Vec<Server>,
    /// `None` while nobody serves it.
    pub(super) metadata: Option<MetadataDouble>,
    pub(super) lab: Lab,
}

impl Stage {
    /// Builds it: one agent that installs its configuration, and follows AWS' metadata.
    pub(super) fn build() -> Result<Self> {
        let plan = Plan {
            metadata: Some(Cloud::Aws),
            ..Plan::default()
        };
        let lab = Lab::without_agents(plan)?;
        let metadata = MetadataDouble::start(&lab.vpc)?;
        let mut stage = Self {
            pods: Vec::new(),
            more: Vec::new(),
            servers: serve_the_world(&lab)?,
            metadata: Some(metadata),
            lab,
        };
        stage.give_the_gateway()?;
        let manifests = manifests::yaml(&stage.lab.vpc.plan);
        // As often as it may be.
        let lines = "cloud: aws\nmetadataSeconds: 5\n";
        stage.lab.prepare_agents(&manifests, lines)?;
        let agent = stage.agent();
        agent.install()?;
        agent.launch()?;
        agent.wait_ready()?;
        for (nic, name) in [("ens5", "first"), ("ens6", "second")] {
            let pod = stage.lab.pod(NODE, nic, name)?;
            stage.servers.extend(Server::on_any(&pod.netns, PORT)?);
            stage.pods.push(pod);
        }
        Ok(stage)
    }

    pub(super) fn node(&self) -> Netns {
        self.lab.vpc.node(NODE).clone()
    }

    pub(super) fn agent(&mut self) -> &mut Agent {
        self.lab.agent(NODE)
    }

    /// Returns a pod that stays.
    pub(super) fn pod(&self, name: &str) -> Result<&Pod> {
        let mut pods = self.pods.iter();
        pods.find(|pod| pod.name == name).context("no such pod")
    }

    /// Adds the kernel's default route by the second NIC, as its router announces: no cloud's metadata but Alibaba's
    /// tells an IPv6 router.
    pub(super) fn give_the_gateway(&self) -> Result<()> {
        self.change_gateway("add")
    }

    /// Removes that.
    pub(super) fn take_the_gateway(&self) -> Result<()> {
        self.change_gateway("del")
    }

    fn change_gateway(&self, verb: &str) -> Result<()> {
        let subnet = self.lab.vpc.nic(NODE, "ens6").subnet(Family::V6);
        let via = subnet.gateway.to_string();
        let route = ["-6", "route", verb, "default", "via", &via, "dev", "ens6"];
        ip(&self.node(), &[&route[..], &["metric", "2000"]].concat()).map(drop)
    }

    /// Has the pods asked from outside, from the other node and from their own, and has them ask the world.
    pub(super) fn talk(&self) -> Result<()> {
        let node = self.node();
        for pod in &self.pods {
            for address in &pod.addresses {
                let web = SocketAddr::new(Plan::web_server(Family::of(*address)), PORT);
                for protocol in Protocol::BOTH {
                    let outside = self.lab.vpc.edge.netns();
                    for asking in [outside, self.lab.vpc.node("worker1"), &node] {
                        let client = Client::new(asking, protocol);
                        let answer = client.ask(SocketAddr::new(*address, PORT));
                        answer.with_context(|| format!("{address} of {}", pod.name))?;
                    }
                    let client = Client::new(&pod.netns, protocol);
                    let answer = client.ask(web);
                    answer.with_context(|| format!("{web} from {}", pod.name))?;
                }
            }
        }
        Ok(())
    }

    /// Checks that the pods are as they were made, and ends them.
    pub(super) fn end(mut self) -> Result<()> {
        ensure!(self.more.is_empty(), "{:?}", self.more);
        for pod in self.pods.drain(..) {
            checked(&pod)?;
            pod.delete()?;
        }
        Ok(())
    }
}
