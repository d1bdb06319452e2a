//! An interface of Ebbtide beside one that another plugin made and that has the pod's default route. The other one
//! stays as it was, while Ebbtide's exists and after its removal.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    foreign::addresses,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    snapshot::{Snapshot, comes_late, ip},
    traffic::{Client, Protocol, Server},
};

const PORT: u16 = 8080;
/// Addresses behind the other plugin's interface, which Ebbtide's cannot reach.
const BEHIND: [&str; 2] = ["10.99.0.1", "fd00:99::1"];
/// The pod's addresses on the other plugin's interface.
const OTHERS: [&str; 2] = ["10.244.1.5", "fd00:244::5"];

/// A pod with an eth0 as Calico's plugin makes it: only its own address, and a default route by a next hop that nobody
/// has.
struct Overlay {
    pod: Netns,
    /// The other end of eth0, with everything behind it.
    world: Netns,
    sandbox: Sandbox,
    plugin: Plugin,
    config: String,
}

impl Overlay {
    fn create(lab: &mut Lab) -> Result<Self> {
        let (pod, world) = (Netns::new("beside")?, Netns::new("overlay")?);
        let far = world.path();
        for netns in [&pod, &world] {
            ip(netns, &["link", "set", "lo", "up"])?;
        }
        for command in [
            format!(
                "link add eth0 type veth peer name cali0 netns {}",
                far.display()
            ),
            "link set eth0 up".into(),
            "address add 10.244.1.5/32 dev eth0".into(),
            "address add fd00:244::5/128 dev eth0 nodad".into(),
        ] {
            words(&pod, &command)?;
        }
        for command in [
            "link set cali0 up",
            "address add 169.254.1.1/32 dev cali0",
            "address add fd00:99::ffff/128 dev cali0 nodad",
            "address add 10.99.0.1/32 dev lo",
            "address add fd00:99::1/128 dev lo",
            "route add default dev cali0",
            "-6 route add default dev cali0",
        ] {
            words(&world, command)?;
        }
        for command in [
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0",
            "route add 10.50.0.0/16 via 169.254.1.1 dev eth0 table 100",
            "rule add from 10.244.1.5 lookup 100 pref 500",
            "-6 route add fd00:99::ffff dev eth0",
            "-6 route add default via fd00:99::ffff dev eth0",
        ] {
            words(&pod, command)?;
        }
        let plugin = lab.agent("master").plugin();
        let sandbox = Sandbox {
            interface: "net1".into(),
            ..Sandbox::new(&pod, format!("beside-{}", std::process::id()), "beside")
        };
        let config = plugin.config("default/ipvlan-ens6").to_string();
        Ok(Self {
            pod,
            world,
            sandbox,
            plugin,
            config,
        })
    }

    fn call(&self, command: &str) -> Result<serde_json::Value> {
        self.plugin
            .call(command, Some(&self.sandbox), &self.config)?
            .success()
    }

    /// Checks that connections without a source address leave by eth0, to the world and to Services.
    fn prove_eth0(&self) -> Result<()> {
        for (behind, own) in BEHIND.into_iter().zip(OTHERS) {
            let (behind, own): (IpAddr, IpAddr) = (behind.parse()?, own.parse()?);
            for protocol in Protocol::BOTH {
                let server = SocketAddr::new(behind, PORT);
                let answer = Client::new(&self.pod, protocol)
                    .ask(server)
                    .with_context(|| format!("{protocol} to {server}"))?;
                ensure!(answer.seen_as.ip() == own, "{server} has seen {answer:?}");
                let asked = Client::new(&self.world, protocol).from_ip(behind);
                asked
                    .ask(SocketAddr::new(own, PORT))
                    .with_context(|| format!("{protocol} from {behind} to {own}"))?;
            }
        }
        let service = ip(&self.pod, &["route", "get", "10.96.0.1"])?;
        ensure!(service.contains("dev eth0"), "to a Service: {service}");
        Ok(())
    }

    /// Returns the state of the other interfaces: everything except Ebbtide's links and tables.
    fn others(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for family in ["-4", "-6"] {
            for what in [&["route", "show", "table", "all"][..], &["rule", "show"]] {
                let text = ip(&self.pod, &[&[family], what].concat())?;
                let is_ours = |line: &&str| {
                    ["net1", "veth0", "proto 235", "lookup 77"]
                        .iter()
                        .any(|ours| line.contains(ours))
                };
                lines.extend(
                    text.lines()
                        .filter(|line| !is_ours(line) && !comes_late(line))
                        .map(str::to_owned),
                );
            }
        }
        Ok(lines)
    }
}

fn words(netns: &Netns, command: &str) -> Result<String> {
    ip(netns, &command.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn another_plugin_s_default_route_stays_while_ours_is_there_and_after_it() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let overlay = Overlay::create(&mut lab)?;
    let mut servers = Server::on_any(&overlay.pod, PORT)?;
    for behind in BEHIND {
        servers.extend(Server::on(&overlay.world, behind.parse()?, PORT)?);
    }
    for family in Family::BOTH {
        servers.extend(Server::on(&lab.vpc.world, Plan::web_server(family), PORT)?);
    }
    overlay.prove_eth0().context("before")?;
    let (before, rules) = (overlay.others()?, Snapshot::of(&overlay.pod)?);
    for round in 0..2 {
        let result = overlay.call("ADD")?;
        ensure!(
            overlay.call("ADD")?["ips"] == result["ips"],
            "ADD, repeated"
        );
        let others = overlay.others()?;
        ensure!(others == before, "with net1: {others:#?}, not {before:#?}");
        overlay.prove_eth0().context("with net1")?;
        for own in addresses(&result)? {
            let family = Family::of(own);
            for protocol in Protocol::BOTH {
                // Out by net1, in by net1, and from the node by the veth pair.
                let web = SocketAddr::new(Plan::web_server(family), PORT);
                let client = Client::new(&overlay.pod, protocol).from_ip(own);
                client
                    .ask(web)
                    .with_context(|| format!("{protocol} from {own}"))?;
                let node = lab.vpc.nic("master", "ens6").primary(family);
                let client = Client::new(lab.vpc.node("master"), protocol).from_ip(node);
                client
                    .ask(SocketAddr::new(own, PORT))
                    .with_context(|| format!("{protocol} from the node to {own}"))?;
            }
        }
        overlay.call("CHECK")?;
        if round == 0 {
            lab.agent("master").kill()?;
            lab.agent("master").launch()?;
            lab.agent("master").wait_ready()?;
            overlay.call("CHECK").context("a new agent")?;
            ensure!(overlay.others()? == before, "after a new agent");
            overlay.prove_eth0().context("after a new agent")?;
        }
        overlay.call("DEL")?;
        rules
            .assert_same(&Snapshot::of(&overlay.pod)?)
            .context("after net1")?;
        overlay.prove_eth0().context("after net1")?;
    }
    lab.vpc.assert_no_violations()
}

#[test]
fn net1_has_the_default_route_where_that_is_asked_for_and_gives_it_back() -> Result<()> {
    let mut lab = Lab::without_agents(Plan::default())?;
    lab.start_agents_with(
        "---\n\
         apiVersion: spiderpool.spidernet.io/v2beta1\n\
         kind: SpiderCoordinator\n\
         metadata: {name: default}\n\
         spec: {podDefaultRouteNIC: net1}\n",
    )?;
    let overlay = Overlay::create(&mut lab)?;
    let mut servers = Server::on_any(&overlay.pod, PORT)?;
    for behind in BEHIND {
        servers.extend(Server::on(&overlay.world, behind.parse()?, PORT)?);
    }
    for family in Family::BOTH {
        servers.extend(Server::on(&lab.vpc.world, Plan::web_server(family), PORT)?);
    }
    let before = Snapshot::of(&overlay.pod)?;
    let result = overlay.call("ADD")?;
    for own in addresses(&result)? {
        for protocol in Protocol::BOTH {
            let web = SocketAddr::new(Plan::web_server(Family::of(own)), PORT);
            let answer = Client::new(&overlay.pod, protocol).ask(web)?;
            ensure!(answer.local.ip() == own, "{web} was asked by {answer:?}");
        }
    }
    overlay.call("CHECK")?;
    overlay.call("DEL")?;
    before.assert_same(&Snapshot::of(&overlay.pod)?)?;
    overlay.prove_eth0()?;
    lab.vpc.assert_no_violations()
}

#[test]
fn a_route_of_somebody_else_s_in_our_way_stays_and_is_named() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let netns = Netns::new("in-the-way")?;
    let node = lab
        .vpc
        .nic("master", "ens5")
        .primary(Family::V4)
        .to_string();
    words(&netns, "link add other type dummy")?;
    words(&netns, "link set other up")?;
    words(&netns, &format!("route add {node}/32 dev other"))?;
    let before = Snapshot::of(&netns)?;
    let plugin = lab.agent("master").plugin();
    let sandbox = Sandbox::new(&netns, format!("way-{}", std::process::id()), "in-the-way");
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
    for part in ["a foreign route", node.as_str(), "os error 17"] {
        ensure!(error.msg.contains(part), "{part:?} in {error}");
    }
    let after = Snapshot::of(&netns)?;
    before.assert_within(&after)?;
    ensure!(!after.mentions("veth0"), "{after:?}");
    ensure!(
        lab.agent("master").addresses_in_use()? == 0,
        "an address is kept"
    );
    words(&netns, &format!("route del {node}/32 dev other"))?;
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    lab.vpc.assert_no_violations()
}
