//! Pods beside the real programs of clouds' images, which put the same addresses on the node: Debian's packages of them run
//! against the metadata double while pods come and go, and while addresses are assigned and taken away.

mod cloud_init;
mod ec2_net_utils;
mod guest_agent;
mod networkd;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    image::Image,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};

use super::{
    cloud::{NODE, Site},
    node_changes::{PORT, checked},
};

/// A node whose pods have the addresses that its cloud assigned, with servers everywhere.
struct Beside {
    /// A pod on ens5.
    other: Pod,
    _servers: Vec<Server>,
    site: Site,
    /// The node's rules without a pod.
    rules: [String; 2],
}

impl Beside {
    fn start(site: Site) -> Result<Self> {
        let node = site.lab.vpc.node(NODE);
        let rules = rules(node)?;
        let mut servers = Vec::new();
        for family in Family::BOTH {
            for nic in ["ens5", "ens6"] {
                let own = site.lab.vpc.nic(NODE, nic).primary(family);
                servers.extend(Server::on(node, own, PORT)?);
            }
            servers.extend(Server::on(
                &site.lab.vpc.world,
                Plan::web_server(family),
                PORT,
            )?);
        }
        let other = site.pod("ens5", "other")?;
        servers.extend(Server::on_any(&other.netns, PORT)?);
        Ok(Self {
            other,
            _servers: servers,
            site,
            rules,
        })
    }

    fn node(&self) -> &Netns {
        self.site.lab.vpc.node(NODE)
    }

    /// Checks what a pod has with its node, for which the VPC is not needed.
    fn lives_within(&self, pod: &Pod) -> Result<()> {
        let node = self.node();
        let _served = Server::on_any(&pod.netns, PORT)?;
        for family in families(pod) {
            let own = pod.socket(family, PORT);
            let mut ways = vec![("node to pod", node, own)];
            for nic in ["ens5", "ens6"] {
                let at_nic = self.site.lab.vpc.nic(NODE, nic).primary(family);
                ways.push(("pod to node", &pod.netns, (at_nic, PORT).into()));
            }
            ask_all(family, &ways)?;
        }
        checked(pod)
    }

    /// As [`Beside::lives_within`], and with others: the VPC drops what leaves by another NIC than the address'.
    fn lives(&self, pod: &Pod) -> Result<()> {
        self.lives_within(pod)?;
        let _served = Server::on_any(&pod.netns, PORT)?;
        for family in families(pod) {
            let own = pod.socket(family, PORT);
            let web = (Plan::web_server(family), PORT).into();
            let outside = self.site.lab.vpc.node("worker1");
            let beside = self.other.socket(family, PORT);
            ask_all(
                family,
                &[
                    ("another node to pod", outside, own),
                    ("another NIC's pod to pod", &self.other.netns, own),
                    ("pod to another NIC's pod", &pod.netns, beside),
                    ("from outside to pod", self.site.lab.vpc.edge.netns(), own),
                    ("pod to the world", &pod.netns, web),
                ],
            )?;
        }
        self.site.lab.vpc.assert_no_violations()
    }

    /// Returns what the programs wrote, the node's network and the agents' logs, for messages.
    fn log(&self, image: &Image) -> String {
        let node = self.node();
        let mut text = image.log();
        for command in [
            "ip -d address",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip route get 169.254.169.254",
            "ip neighbour",
            "tc qdisc",
            "tc filter show dev ens6 ingress",
            "tc filter show dev ens6 egress",
        ] {
            let mut words = command.split(' ');
            let ran = words.next().and_then(|program| {
                let mut command = node.command(program);
                command.args(words).output().ok()
            });
            let ran = ran.map(|ran| String::from_utf8_lossy(&ran.stdout).into_owned());
            text.push_str(&format!("--- {command}\n{}\n", ran.unwrap_or_default()));
        }
        let violations = self.site.lab.vpc.assert_no_violations();
        let violations = violations.err().map(|e| format!("{e:#}\n"));
        text + &violations.unwrap_or_default() + &self.site.lab.logs()
    }

    /// Waits until no new pod gets an address, since the node has all of them.
    fn refuses(&self, image: &Image) -> Result<()> {
        in_the_end("no new pod gets an address that the node has", || {
            let refused = self.site.pod("ens6", "refused").err().context("a pod")?;
            let refused = format!("{refused:#}");
            ensure!(refused.contains("the node has it on ens6"), "{refused}");
            Ok(())
        })
        .with_context(|| self.log(image))
    }

    /// Waits until pods get addresses again and live, and ends.
    fn recovers(self, image: &Image) -> Result<()> {
        let log = || self.log(image);
        let pod = in_the_end("pods get addresses again", || {
            self.site.pod("ens6", "after")
        });
        let pod = pod.with_context(log)?;
        eventually("they live", || self.lives(&pod)).with_context(log)?;
        pod.delete()?;
        self.ends()
    }

    /// Deletes the pod that is left, and waits until the node's rules are as without pods.
    fn ends(self) -> Result<()> {
        self.other.delete()?;
        let node = self.site.lab.vpc.node(NODE);
        eventually("the rules are as without pods", || {
            let now = rules(node)?;
            ensure!(now == self.rules, "{now:#?}, {:#?} before", self.rules);
            Ok(())
        })
        .with_context(|| self.site.lab.logs())?;
        self.site.lab.vpc.assert_no_violations()
    }
}

/// As [`eventually`], for what takes programs many requests in a slow machine.
fn in_the_end<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..5 {
        if let Ok(done) = eventually(what, &mut attempt) {
            return Ok(done);
        }
    }
    eventually(what, attempt)
}

fn families(pod: &Pod) -> Vec<Family> {
    pod.addresses.iter().map(|own| Family::of(*own)).collect()
}

fn ask_all(family: Family, ways: &[(&str, &Netns, SocketAddr)]) -> Result<()> {
    for protocol in Protocol::BOTH {
        for (what, from, to) in ways {
            let answer = Client::new(from, protocol).ask(*to);
            answer.with_context(|| format!("{what}, {protocol} {family}"))?;
        }
    }
    Ok(())
}

/// Returns the rules of both families.
fn rules(node: &Netns) -> Result<[String; 2]> {
    Ok([ip(node, &["rule"])?, ip(node, &["-6", "rule"])?])
}
