//! A pod: a network namespace for which the real plugin was called.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    cni::{Plugin, Sandbox},
    netns::Netns,
    plan::Family,
};

/// The pod's interface on the NIC.
pub const NIC_SIDE: &str = "eth0";
/// The pod's interface to its node.
pub const NODE_SIDE: &str = "veth0";

/// A pod on a node. Dropping it calls DEL.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node it is on.
    pub node: String,
    /// The NIC that its address belongs to.
    pub nic: String,
    /// Its namespace.
    pub netns: Netns,
    /// The sandbox as the runtime describes it.
    pub sandbox: Sandbox,
    /// The result of ADD.
    pub result: Value,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The node's end of its veth pair.
    pub host_interface: String,
    plugin: Plugin,
    config: String,
    deleted: bool,
}

impl Pod {
    /// Creates a namespace and calls ADD for it.
    ///
    /// # Errors
    /// If the plugin fails, or its result lacks something.
    pub fn create(
        plugin: &Plugin,
        node: &str,
        nic: &str,
        network: &str,
        name: &str,
    ) -> Result<Self> {
        Self::create_with(plugin, node, nic, network, name, &json!({}))
    }

    /// As [`Pod::create`], with these fields in the network configuration.
    ///
    /// # Errors
    /// As [`Pod::create`].
    pub fn create_with(
        plugin: &Plugin,
        node: &str,
        nic: &str,
        network: &str,
        name: &str,
        fields: &Value,
    ) -> Result<Self> {
        let netns = Netns::new(name)?;
        let sandbox = Sandbox {
            container_id: container_id(),
            netns: Some(netns.path()),
            interface: NIC_SIDE.into(),
            pod: name.into(),
        };
        let mut config = plugin.config(network);
        for (field, value) in fields.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        let config = config.to_string();
        let mut pod = Self {
            name: name.into(),
            node: node.into(),
            nic: nic.into(),
            netns,
            sandbox,
            result: Value::Null,
            addresses: Vec::new(),
            host_interface: String::new(),
            plugin: plugin.clone(),
            config,
            deleted: false,
        };
        let context = || format!("ADD of the pod {name} to {network} on {node}");
        pod.result = pod.call("ADD").with_context(context)?;
        pod.addresses = addresses(&pod.result).with_context(context)?;
        pod.host_interface = host_interface(&pod.result).with_context(context)?;
        Ok(pod)
    }

    /// Calls the plugin for this pod again. CHECK gets the result of ADD, as libcni passes it.
    ///
    /// # Errors
    /// If the plugin fails; the error is the plugin's.
    pub fn call(&self, command: &str) -> Result<Value> {
        let config = if command == "CHECK" {
            let mut config: Value = serde_json::from_str(&self.config)?;
            config["prevResult"] = self.result.clone();
            config.to_string()
        } else {
            self.config.clone()
        };
        self.plugin
            .call(command, Some(&self.sandbox), &config)?
            .success()
    }

    /// Detaches the programs from the pod's interfaces, as a careless `tc qdisc del` does.
    ///
    /// # Errors
    /// If an interface has none.
    pub fn detach_programs(&self) -> Result<()> {
        let netlink = self.netns.netlink()?;
        netlink.remove_clsact(NODE_SIDE)?;
        netlink.remove_clsact(NIC_SIDE)
    }

    /// Calls DEL.
    ///
    /// # Errors
    /// If the plugin fails; the error is the plugin's.
    pub fn delete(mut self) -> Result<()> {
        self.deleted = true;
        self.call("DEL")
            .with_context(|| format!("DEL of the pod {}", self.name))?;
        Ok(())
    }

    /// Returns its address of one family.
    ///
    /// # Panics
    /// If it has none, which is a mistake in the test.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match self
            .addresses
            .iter()
            .find(|address| Family::of(**address) == family)
        {
            Some(address) => *address,
            None => panic!("the pod {} has no {family} address", self.name),
        }
    }

    /// Returns its address of one family, with a port.
    #[must_use]
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !self.deleted {
            // A caller that needs the result calls `delete`.
            let _ = self.call("DEL");
        }
    }
}

fn container_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:032x}{number:032x}", std::process::id())
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("the result has no ips")?;
    ips.iter()
        .map(|ip| {
            let address = ip["address"].as_str().context("an ip without address")?;
            let net: IpNet = address
                .parse()
                .with_context(|| format!("the address {address:?}"))?;
            Ok(net.addr())
        })
        .collect()
}

/// Returns the name of the only interface that is not in a sandbox.
fn host_interface(result: &Value) -> Result<String> {
    let name = result["interfaces"]
        .as_array()
        .context("the result has no interfaces")?
        .iter()
        .find(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
        .and_then(|interface| interface["name"].as_str())
        .context("the result names no interface of the node")?;
    Ok(name.to_owned())
}
