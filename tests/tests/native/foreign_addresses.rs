//! Addresses that other plugins give to a pod: those that belong to somebody else are refused, and nothing is left
//! behind.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::{Outcome, Plugin, Sandbox},
    foreign,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    snapshot::{Snapshot, ip},
    traffic::{Client, Protocol, Server},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE: &str = "master";
/// An address in the subnet of ens5 and in no pool.
const FREE: &str = "172.31.16.77";

/// A pod whose first plugin gives it `address`, by the IPAM plugin `static`.
struct Given {
    netns: Netns,
    sandbox: Sandbox,
    node: Netns,
    plugin: Plugin,
    before: Value,
    first: Value,
}

impl Given {
    fn by(
        node: &Netns,
        plugin: &Plugin,
        name: &str,
        fields: &Value,
        address: &str,
    ) -> Result<Self> {
        let mut before = json!({
            "cniVersion": "1.0.0",
            "name": "given",
            "ipam": {"type": "static", "addresses": [{"address": address}]},
        });
        if let (Some(before), Some(fields)) = (before.as_object_mut(), fields.as_object()) {
            before.extend(fields.clone());
        }
        let netns = Netns::new(name)?;
        let sandbox = Sandbox::new(&netns, format!("{name}-{}", std::process::id()), name);
        let first = foreign::call(node, "ADD", &sandbox, &before)?.success()?;
        Ok(Self {
            netns,
            sandbox,
            node: node.clone(),
            plugin: plugin.clone(),
            before,
            first,
        })
    }

    fn ebbtide(&self, command: &str) -> Result<Outcome> {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "given",
            "type": "ebbtide",
            "agentSocket": self.plugin.socket(),
            "prevResult": self.first,
        });
        let config = config.to_string();
        self.plugin.call(command, Some(&self.sandbox), &config)
    }

    fn delete(self) -> Result<()> {
        self.ebbtide("DEL")?.success()?;
        let mut config = self.before.clone();
        config["prevResult"] = self.first.clone();
        let gone = foreign::call(&self.node, "DEL", &self.sandbox, &config)?;
        gone.success().map(drop)
    }
}

/// Starts a lab whose agents have further settings.
fn lab(more: &str) -> Result<Lab> {
    let mut lab = Lab::start(Plan::default())?;
    let agent = lab.agent(NODE);
    agent.kill()?;
    agent.configure(more)?;
    agent.launch()?;
    agent.wait_ready()?;
    Ok(lab)
}

#[test]
fn an_address_that_is_somebody_else_s_is_refused_and_leaves_nothing() -> Result<()> {
    let mut lab = lab("")?;
    let node = lab.vpc.node(NODE).clone();
    let plugin = lab.agent(NODE).plugin();
    let macvlan = json!({"type": "macvlan", "master": "ens5", "mode": "bridge"});
    let bridge = json!({"type": "bridge", "bridge": "attack0"});
    // One pod exists all the time, so that the host's common objects for pods make no difference.
    let held = Given::by(&node, &plugin, "held", &macvlan, &format!("{FREE}/20"))?;
    held.ebbtide("ADD")?.success()?;
    for (what, fields, address, said) in [
        (
            "a server outside",
            &macvlan,
            "198.51.100.9/32",
            "foreignSubnets",
        ),
        (
            "a server outside, by /1",
            &macvlan,
            "198.51.100.9/1",
            "foreignSubnets",
        ),
        (
            "a server outside, behind a bridge",
            &bridge,
            "198.51.100.9/24",
            "foreignSubnets",
        ),
        (
            "another NIC's network",
            &macvlan,
            "210.22.16.77/24",
            "foreignSubnets",
        ),
        (
            "a neighbour, behind a bridge",
            &bridge,
            "172.31.16.78/20",
            "foreignSubnets",
        ),
        ("the node", &macvlan, "172.31.22.228/20", "the node"),
        (
            "the node, at another NIC",
            &macvlan,
            "210.22.16.10/24",
            "the node",
        ),
        ("the gateway", &macvlan, "172.31.16.1/20", "router"),
        (
            "a pool's gateway",
            &macvlan,
            "180.17.16.1/24",
            "gateway of pool",
        ),
        ("broadcast", &macvlan, "172.31.31.255/20", "broadcast"),
        ("a ClusterIP", &macvlan, "10.96.0.10/32", "Services"),
        ("metadata", &macvlan, "169.254.169.254/32", "link-local"),
        (
            "metadata, behind a bridge",
            &bridge,
            "169.254.169.254/16",
            "link-local",
        ),
        ("loopback", &macvlan, "127.0.0.5/8", "loopback"),
        ("multicast", &macvlan, "224.0.0.9/24", "multicast"),
        ("this network", &macvlan, "0.1.2.3/8", "0.0.0.0/8"),
        (
            "a pool's free address",
            &macvlan,
            "172.31.16.5/20",
            "pool master-ens5-v4",
        ),
        (
            "another node's pool",
            &macvlan,
            "180.17.16.12/24",
            "pool worker1-ens5-v4",
        ),
        (
            "another pod",
            &macvlan,
            "172.31.16.77/20",
            "pod default/held",
        ),
        (
            "another pod, behind a bridge",
            &bridge,
            "172.31.16.77/32",
            "pod default/held",
        ),
        ("the NIC's gateway", &macvlan, "fd00:16::1/64", "router"),
        (
            "a pool's, IPv6",
            &macvlan,
            "fd00:16::5/64",
            "pool master-ens5-v6",
        ),
        (
            "outside, IPv6",
            &macvlan,
            "2001:db8:1::77/128",
            "foreignSubnets",
        ),
        (
            "the node, written as IPv6",
            &macvlan,
            "::ffff:172.31.22.228/128",
            "the node has it",
        ),
    ] {
        let Ok(pod) = Given::by(&node, &plugin, "attacker", fields, address) else {
            // The other plugin refuses it first.
            println!("{what}: {address} is refused by the first plugin");
            continue;
        };
        let (before, made) = (Snapshot::of(&node)?, Snapshot::of(&pod.netns)?);
        let error = pod.ebbtide("ADD")?.error();
        let error = error.with_context(|| what.to_owned())?;
        let told = format!("{} {}", error.msg, error.details);
        ensure!(told.contains(said), "{what}: {told}");
        let left = || format!("what {what} leaves");
        before.comes_back(&node).with_context(left)?;
        // The kernel still probes IPv6 addresses of the other plugin, which changes their state later.
        let inside = Snapshot::of(&pod.netns)?;
        made.assert_within(&inside).with_context(left)?;
        let ours = ["veth0", "7700", "fwmark"];
        ensure!(
            !ours.iter().any(|part| inside.mentions(part)),
            "{what}: {inside:?}"
        );
        let known = lab.agent(NODE).control(&["pods"])?;
        ensure!(!known.contains("attacker"), "{what}: {known}");
        pod.delete()?;
        // The plugin leaves its bridge, whose routes follow its carrier.
        if fields["type"] == "bridge" {
            ip(&node, &["link", "del", "attack0"])?;
        }
    }
    held.delete()?;
    Ok(())
}

#[test]
fn the_node_s_connections_to_a_server_outside_are_answered_by_it_and_not_by_a_pod() -> Result<()> {
    let mut lab = lab("")?;
    let node = lab.vpc.node(NODE).clone();
    let plugin = lab.agent(NODE).plugin();
    let web = Plan::web_server(Family::V4);
    let _real = Server::on(&lab.vpc.world, web, 8080)?;
    let macvlan = json!({"type": "macvlan", "master": "ens5", "mode": "bridge"});
    let pod = Given::by(&node, &plugin, "attacker", &macvlan, &format!("{web}/32"))?;
    let _false = Server::on_any(&pod.netns, 8080)?;
    let added = pod.ebbtide("ADD")?;
    for protocol in Protocol::BOTH {
        let answer = Client::new(&node, protocol).ask((web, 8080).into())?;
        // The world sees the VPC's public address, a pod would see the node's own.
        ensure!(
            answer.seen_as.ip() == Plan::NAT,
            "{protocol}: the pod answered, which saw {}",
            answer.seen_as
        );
    }
    added.error()?;
    pod.delete()
}

/// Returns the configuration with an address whose gateway the plugin must be.
fn with_gateway(fields: &Value, address: &str, gateway: &str) -> Value {
    let mut fields = fields.clone();
    let address = json!({"address": address, "gateway": gateway});
    fields["ipam"] = json!({"type": "static", "addresses": [address]});
    fields
}

#[test]
fn what_the_administrator_lists_or_the_node_leads_to_the_pod_anyway_goes_on() -> Result<()> {
    let mut lab = lab("foreignSubnets: [192.0.2.0/24, 172.31.16.8/32]\n")?;
    let node = lab.vpc.node(NODE).clone();
    let plugin = lab.agent(NODE).plugin();
    for (what, fields, address) in [
        (
            "the NIC's network",
            json!({"type": "macvlan", "master": "ens5", "mode": "bridge"}),
            "172.31.16.77/20",
        ),
        (
            "IPv6",
            json!({"type": "macvlan", "master": "ens5", "mode": "bridge"}),
            "fd00:16::77/64",
        ),
        (
            "listed",
            json!({"type": "macvlan", "master": "ens5", "mode": "bridge"}),
            "192.0.2.77/32",
        ),
        (
            "a pool's free address, listed",
            json!({"type": "macvlan", "master": "ens5", "mode": "bridge"}),
            "172.31.16.8/20",
        ),
        (
            "ptp's route",
            with_gateway(&json!({"type": "ptp"}), "10.89.0.77/24", "10.89.0.1"),
            "10.89.0.77/24",
        ),
        (
            "a bridge with the node's address",
            with_gateway(
                &json!({"type": "bridge", "bridge": "cni7", "isGateway": true}),
                "10.88.0.77/24",
                "10.88.0.1",
            ),
            "10.88.0.77/24",
        ),
    ] {
        let pod = Given::by(&node, &plugin, "served", &fields, address)
            .with_context(|| what.to_owned())?;
        pod.ebbtide("ADD")?
            .success()
            .with_context(|| what.to_owned())?;
        // A repeated ADD has the same result.
        pod.ebbtide("ADD")?
            .success()
            .with_context(|| what.to_owned())?;
        let _server = Server::on_any(&pod.netns, 8080)?;
        let own: IpAddr = address.split('/').next().context("an address")?.parse()?;
        Client::new(&node, Protocol::Tcp)
            .ask((own, 8080).into())
            .with_context(|| what.to_owned())?;
        pod.delete()?;
    }
    Ok(())
}

#[test]
fn an_address_of_another_ipam_that_is_not_the_pod_s_to_have_goes_back_to_it() -> Result<()> {
    let data = TempDir::with_prefix("ebbtide-host-local-")?;
    let mut lab = lab("")?;
    let node = lab.vpc.node(NODE).clone();
    let plugin = lab.agent(NODE).plugin();
    let netns = Netns::new("delegated")?;
    let before = (Snapshot::of(&node)?, Snapshot::of(&netns)?);
    let fixed = |address: &str| json!({"type": "static", "addresses": [{"address": address}]});
    let ranges = json!([[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.9"}]]);
    for (what, ipam, said) in [
        ("outside", fixed("198.51.100.9/32"), "foreignSubnets"),
        ("half of all", fixed("172.31.16.77/1"), "foreignSubnets"),
        (
            "more than the NIC has",
            fixed("172.31.16.77/16"),
            "foreignSubnets",
        ),
        ("another NIC's", fixed("210.22.16.77/24"), "foreignSubnets"),
        ("the gateway", fixed("172.31.16.1/20"), "router"),
        ("a pool's", fixed("172.31.16.5/20"), "pool master-ens5-v4"),
        (
            "host-local, outside",
            json!({"type": "host-local", "dataDir": data.path(), "ranges": ranges}),
            "foreignSubnets",
        ),
    ] {
        let sandbox = Sandbox::new(&netns, format!("delegated-{}", std::process::id()), "d");
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "delegated",
            "type": "ebbtide",
            "master": "ens5",
            "agentSocket": plugin.socket(),
            "ipam": ipam,
        });
        let error = plugin.call("ADD", Some(&sandbox), &config.to_string())?;
        let error = error.error().with_context(|| what.to_owned())?;
        let told = format!("{} {}", error.msg, error.details);
        ensure!(told.contains(said), "{what}: {told}");
        before
            .0
            .comes_back(&node)
            .with_context(|| what.to_owned())?;
        before
            .1
            .comes_back(&netns)
            .with_context(|| what.to_owned())?;
        let kept = std::fs::read_dir(data.path().join("delegated"));
        let kept = kept.map(|entries| {
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.filter(|name| name.starts_with("198.")).count()
        });
        ensure!(
            kept.unwrap_or(0) == 0,
            "{what}: host-local keeps an address"
        );
    }
    Ok(())
}
