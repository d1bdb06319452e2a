//! A pod whose interface is a foreign veth pair, which needs no ipvlan.

use anyhow::{Context as _, Result};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    lab::Lab,
    netns::Netns,
    snapshot::ip,
};
use serde_json::json;

/// A pod with a chained interface. [`ChainedInterface::delete`] deletes it; otherwise it ends with its namespace.
#[derive(Debug)]
pub struct ChainedInterface {
    netns: Netns,
    plugin: Plugin,
    sandbox: Sandbox,
    config: String,
}

impl ChainedInterface {
    /// Creates the pod on a node, behind a veth pair with addresses of its own.
    ///
    /// # Errors
    /// If the pair cannot be made, or ADD fails.
    pub fn on(lab: &mut Lab, node: &str) -> Result<Self> {
        let netns = Netns::new("guest")?;
        let host = lab.vpc.node(node).clone();
        let path = netns.path().display().to_string();
        let pair = "link add guest0 type veth peer name eth0 netns";
        let pair: Vec<&str> = pair.split(' ').chain([path.as_str()]).collect();
        ip(&host, &pair)?;
        for (place, commands) in [
            (
                &host,
                ["address add 10.88.7.1/24 dev guest0", "link set guest0 up"],
            ),
            (
                &netns,
                ["address add 10.88.7.2/24 dev eth0", "link set eth0 up"],
            ),
        ] {
            for command in commands {
                ip(place, &command.split(' ').collect::<Vec<_>>())?;
            }
        }
        let plugin = lab.agent(node).plugin();
        let sandbox = Sandbox::new(&netns, "guest", "guest");
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "chained",
            "type": "ebbtide",
            "agentSocket": plugin.socket(),
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": netns.path()}],
                "ips": [{"interface": 0, "address": "10.88.7.2/24"}],
            },
        });
        let guest = Self {
            netns,
            plugin,
            sandbox,
            config: config.to_string(),
        };
        guest.call("ADD").with_context(|| lab.logs())?;
        Ok(guest)
    }

    /// Returns the pod's namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    fn call(&self, command: &str) -> Result<()> {
        let outcome = self
            .plugin
            .call(command, Some(&self.sandbox), &self.config)?;
        outcome.success().map(drop)
    }

    /// Calls DEL.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn delete(self) -> Result<()> {
        self.call("DEL")
    }
}
