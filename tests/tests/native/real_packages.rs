//! A pod behind a veth pair beside the real google-guest-agent, in any kernel. Pods on ipvlan: `lab::real_packages`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{chained::ChainedInterface, guest_agent};
use ebbtide_vpc::{
    lab::Lab,
    metadata::MetadataDouble,
    patience::eventually,
    plan::{Family, Plan},
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};
use ipnet::IpNet;

const NODE: &str = "master";
const PORT: u16 = 8080;
/// The address of the pod of [`ChainedInterface`], and of the node at its pair.
const POD: &str = "10.88.7.2";
const HOST: &str = "10.88.7.1";

#[test]
fn a_pod_behind_a_veth_lives_on_beside_googles_real_agent() -> Result<()> {
    let Some(package) = guest_agent::unpacked() else {
        return Ok(());
    };
    let mut lab = Lab::start(Plan::default())?;
    let _double = MetadataDouble::start(&lab.vpc)?;
    let node = lab.vpc.node(NODE).clone();
    let before = ip(&node, &["rule"])?;
    let pod = ChainedInterface::on(&mut lab, NODE)?;
    let at_nic = lab.vpc.nic(NODE, "ens5").primary(Family::V4);
    let _on_node = [
        Server::on(&node, at_nic, PORT)?,
        Server::on(&node, HOST.parse()?, PORT)?,
    ];
    let _in_pod = Server::on_any(pod.netns(), PORT)?;
    ip(pod.netns(), &["route", "add", "default", "via", HOST])?;
    let lives = || {
        for protocol in Protocol::BOTH {
            for (from, to) in [
                (&node, POD.parse()?),
                (pod.netns(), HOST.parse()?),
                (pod.netns(), at_nic),
            ] {
                let to = SocketAddr::new(to, PORT);
                let answer = Client::new(from, protocol).ask(to);
                answer.with_context(|| format!("{protocol} from {} to {to}", from.name()))?;
            }
        }
        Ok(())
    };
    lives().context("alone")?;
    let agent = guest_agent::start(&node, &package)?;
    // Its own, and a range with it.
    for block in ["10.88.7.2/32", "10.88.7.0/28"] {
        let block: IpNet = block.parse()?;
        lab.vpc.assign(NODE, "ens5", block)?;
        let log = || format!("{block}: {}\n{}", agent.log(), lab.logs());
        eventually("the guest agent takes it", || {
            ensure!(guest_agent::routes(&node)?.contains(&block));
            let way = ip(&node, &["route", "get", POD])?;
            ensure!(way.contains("table 7699"), "{way}");
            Ok(())
        })
        .with_context(log)?;
        lives().with_context(log)?;
        lab.vpc.unassign(NODE, "ens5", block)?;
        eventually("the guest agent leaves it", || {
            ensure!(!guest_agent::routes(&node)?.contains(&block));
            Ok(())
        })
        .with_context(log)?;
        eventually("as before", &lives).with_context(log)?;
    }
    agent.runs()?;
    pod.delete()?;
    eventually("the rules are as before", || {
        let now = ip(&node, &["rule"])?;
        ensure!(now == before, "{now}, {before} before");
        Ok(())
    })
    .with_context(|| lab.logs())
}
