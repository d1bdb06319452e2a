//! The lab: the strict VPC, and an agent on each node.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    agent::Agent,
    manifests,
    plan::{Family, Plan},
    pod::{NIC_SIDE, NODE_SIDE, Pod},
    snapshot::ip,
    tap::{Direction, Place, Taps},
    vpc::Vpc,
};

/// The VPC, its agents, and taps on all wires. Pods must be dropped before it.
#[derive(Debug)]
pub struct Lab {
    agents: BTreeMap<String, Agent>,
    /// The taps on every wire; [`Lab::pod`] adds those of the pod's interfaces.
    pub taps: Taps,
    /// The network.
    pub vpc: Vpc,
}

impl Lab {
    /// Builds the VPC, starts the agents and waits until they are ready.
    ///
    /// # Errors
    /// If a step fails; the error names it, and has the log of an agent that failed.
    pub fn start(plan: Plan) -> Result<Self> {
        let mut lab = Self::without_agents(plan)?;
        lab.start_agents()?;
        Ok(lab)
    }

    /// As [`Lab::start`], with these lines in the configuration of every agent.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn configured(plan: Plan, lines: &str) -> Result<Self> {
        let mut lab = Self::start(plan)?;
        for agent in lab.agents.values_mut() {
            agent.stop()?;
            agent.configure(lines)?;
            agent.launch()?;
            agent.wait_ready()?;
        }
        Ok(lab)
    }

    /// Installs routing policy rules by which packets with a NIC's address leave by that NIC, as the clouds' images do.
    /// Without them the node's own sockets follow the main table.
    ///
    /// # Errors
    /// If `ip` fails; the error has its output.
    pub fn route_by_source(&self) -> Result<()> {
        for (table, nic) in (700..).zip(self.vpc.plan.nics()) {
            let (netns, table) = (self.vpc.node(&nic.node), format!("{table}"));
            for family in Family::BOTH {
                let option = if family == Family::V4 { "-4" } else { "-6" };
                let own = nic.primary(family).to_string();
                let gateway = nic.subnet(family).gateway.to_string();
                let route = [option, "route", "add", "default", "via", &gateway];
                ip(
                    netns,
                    &[&route[..], &["dev", &nic.name, "table", &table]].concat(),
                )?;
                let rule = [option, "rule", "add", "pref", "32000", "from", &own];
                ip(netns, &[&rule[..], &["lookup", &table]].concat())?;
            }
        }
        Ok(())
    }

    /// Sets reverse path filtering on the nodes' NICs to loose. With strict filtering, a NIC without the default route
    /// drops packets for the node itself, with or without an agent.
    ///
    /// # Errors
    /// If a setting cannot be written.
    pub fn filter_loosely(&self) -> Result<()> {
        for nic in self.vpc.plan.nics() {
            let setting = format!("net/ipv4/conf/{}/rp_filter", nic.name);
            self.vpc.node(&nic.node).sysctls(&[(&setting, "2")])?;
        }
        Ok(())
    }

    /// Builds the VPC without agents.
    ///
    /// # Errors
    /// If a step fails; the error names it.
    pub fn without_agents(plan: Plan) -> Result<Self> {
        let vpc = Vpc::build(plan).context("building the VPC")?;
        Ok(Self {
            agents: BTreeMap::new(),
            taps: Taps::on_all_wires(&vpc)?,
            vpc,
        })
    }

    /// Starts an agent on every node and waits until all are ready.
    ///
    /// # Errors
    /// If an agent fails; the error has its log.
    pub fn start_agents(&mut self) -> Result<()> {
        self.start_agents_with("")
    }

    /// As [`Lab::start_agents`], with further manifests after those of the plan, each after a line `---`.
    ///
    /// # Errors
    /// If an agent fails; the error has its log.
    pub fn start_agents_with(&mut self, more: &str) -> Result<()> {
        let plan = &self.vpc.plan;
        // As often as it may be.
        let cloud = plan.metadata.map(|cloud| {
            let cloud = cloud.setting();
            format!("cloud: {cloud}\nmetadataSeconds: 5\n")
        });
        let manifests = manifests::yaml(plan) + more;
        self.start_agents_from(&manifests, &cloud.unwrap_or_default())
    }

    /// As [`Lab::start_agents`], with these manifests in place of the plan's, and these lines in the configuration.
    ///
    /// With [`manifests::without_pools`] and a line `cloud: aws`, the agents follow a
    /// [`MetadataDouble`](crate::metadata::MetadataDouble).
    ///
    /// # Errors
    /// If an agent fails; the error has its log.
    pub fn start_agents_from(&mut self, manifests: &str, lines: &str) -> Result<()> {
        self.prepare_agents(manifests, lines)?;
        self.agents.values_mut().try_for_each(Agent::launch)?;
        self.agents.values_mut().try_for_each(Agent::wait_ready)
    }

    /// As [`Lab::start_agents_from`], but starts none: [`Agent::launch`] does.
    ///
    /// # Errors
    /// If the agents' directories cannot be made.
    pub fn prepare_agents(&mut self, manifests: &str, lines: &str) -> Result<()> {
        let exempt = match self.vpc.plan.exempt {
            true => "exemptFromMasquerade: true\n",
            false => "",
        };
        let config = format!("{exempt}{lines}");
        for node in &self.vpc.plan.nodes {
            let agent = Agent::prepare(self.vpc.node(&node.name), &node.name, manifests, &config)?;
            self.agents.insert(node.name.clone(), agent);
        }
        Ok(())
    }

    /// Returns the agent of a node.
    ///
    /// # Panics
    /// If there is none, which is a mistake in the test.
    pub fn agent(&mut self, node: &str) -> &mut Agent {
        match self.agents.get_mut(node) {
            Some(agent) => agent,
            None => panic!("there is no agent on {node}"),
        }
    }

    /// Returns all agents.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    /// Creates a pod on the network of a node's NIC, and taps its interfaces.
    ///
    /// # Errors
    /// If the plugin fails; the error has the agent's log.
    pub fn pod(&self, node: &str, nic: &str, name: &str) -> Result<Pod> {
        self.pod_with(node, nic, name, &json!({}))
    }

    /// As [`Lab::pod`], with these fields in the network configuration.
    ///
    /// # Errors
    /// As [`Lab::pod`].
    pub fn pod_with(&self, node: &str, nic: &str, name: &str, fields: &Value) -> Result<Pod> {
        let agent = self
            .agents
            .get(node)
            .with_context(|| format!("there is no agent on {node}"))?;
        let network = manifests::network(nic);
        let pod = Pod::create_with(&agent.plugin(), node, nic, &network, name, fields)
            .with_context(|| agent.log())?;
        for interface in [NIC_SIDE, NODE_SIDE] {
            let place = Place::Pod {
                pod: name.to_owned(),
                interface: interface.to_owned(),
            };
            self.taps
                .add(&pod.netns, interface, place, Direction::Out)?;
        }
        Ok(pod)
    }

    /// Returns the logs of all agents, for messages.
    #[must_use]
    pub fn logs(&self) -> String {
        let logs: Vec<String> = self.agents.values().map(Agent::log).collect();
        logs.join("\n")
    }
}
