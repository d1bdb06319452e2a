//! Pods whose address the node takes for its own: a link of the node has it as well (ec2-net-utils' timer, cloud-init),
//! or a local route of somebody else's (google-guest-agent). All traffic of such a pod goes on.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};
use ipnet::IpNet;

const PORT: u16 = 8080;

/// What makes an address the node's.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// On the pod's NIC, as ec2-net-utils puts it there.
    OnNic,
    /// On the loopback.
    OnOther,
    /// A local route to it alone, as google-guest-agent adds it.
    Route,
    /// One to a range.
    Range,
}

impl Cause {
    const ALL: [Self; 4] = [Self::OnNic, Self::OnOther, Self::Route, Self::Range];
    const ROUTES: [Self; 2] = [Self::Route, Self::Range];

    fn change(self, node: &Netns, verb: &str, address: IpAddr) -> Result<()> {
        let own = IpNet::from(address);
        let range = IpNet::new(address, own.max_prefix_len() - 1)?.trunc();
        let command = match self {
            Self::OnNic => format!("address {verb} {own} dev ens6"),
            Self::OnOther => format!("address {verb} {own} dev lo"),
            Self::Route => format!("route {verb} local {own} dev ens6 table local proto 66"),
            Self::Range => format!("route {verb} local {range} dev ens6 table local proto 66"),
        };
        let nodad = match (self, verb, address) {
            (Self::OnNic | Self::OnOther, "add", IpAddr::V6(_)) => " nodad",
            _ => "",
        };
        let option = if address.is_ipv6() { "-6 " } else { "" };
        let command = format!("{option}{command}{nodad}");
        ip(node, &command.split(' ').collect::<Vec<_>>()).map(drop)
    }
}

/// Returns the rules of both families.
fn rules(node: &Netns) -> Result<[String; 2]> {
    Ok([ip(node, &["rule"])?, ip(node, &["-6", "rule"])?])
}

/// Checks that the look-up for these pods comes first, and `local` directly after it.
fn precede_local(node: &Netns) -> Result<()> {
    for rules in rules(node)? {
        let mut rules = rules.lines().map(str::split_whitespace);
        let mut next = || {
            rules
                .next()
                .map(|words| words.collect::<Vec<_>>().join(" "))
        };
        let found = [next(), next(), next()].map(Option::unwrap_or_default);
        ensure!(
            found[0] == "0: from all lookup 7699 proto 235"
                && found[1] == "0: from all lookup local"
                && !found[2].contains("lookup local"),
            "{found:?}"
        );
    }
    Ok(())
}

/// All that a pod on ens6 does and serves, each with its way's name.
fn traffic(lab: &Lab, pod: &Pod, other: &Pod) -> Result<()> {
    let node = lab.vpc.node("master");
    for family in Family::BOTH {
        let own = pod.socket(family, PORT);
        let nodes = lab.vpc.nic("master", "ens5").primary(family);
        let at_nic = lab.vpc.nic("master", "ens6").primary(family);
        let web = Plan::web_server(family);
        let outside = lab.vpc.node("worker1");
        let beside = other.socket(family, PORT);
        for protocol in Protocol::BOTH {
            for (what, from, to) in [
                ("node to pod", node, own),
                ("another node to pod", outside, own),
                ("another pod to pod", &other.netns, own),
                ("pod to node", &pod.netns, (nodes, PORT).into()),
                ("pod to node's NIC", &pod.netns, (at_nic, PORT).into()),
                ("pod to another pod", &pod.netns, beside),
                ("pod to the world", &pod.netns, (web, PORT).into()),
            ] {
                let answer = Client::new(from, protocol).ask(to);
                answer.with_context(|| format!("{what}, {protocol} {family}"))?;
            }
        }
    }
    Ok(())
}

/// Holds pods' addresses in each way, before and after their ADD.
fn goes_on(rp_filter: &str) -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    for link in ["all", "default", "ens5", "ens6"] {
        node.sysctls(&[(&format!("net/ipv4/conf/{link}/rp_filter"), rp_filter)])?;
    }
    let mut on_node = Vec::new();
    for (nic, family) in ["ens5", "ens6"]
        .into_iter()
        .flat_map(|nic| Family::BOTH.map(|family| (nic, family)))
    {
        let own = lab.vpc.nic("master", nic).primary(family);
        on_node.extend(Server::on(&node, own, PORT)?);
    }
    let other = lab.pod("master", "ens5", "other")?;
    let _beside = Server::on_any(&other.netns, PORT)?;
    let mut worlds = Vec::new();
    for family in Family::BOTH {
        worlds.extend(Server::on(&lab.vpc.world, Plan::web_server(family), PORT)?);
    }
    let before = rules(&node)?;
    let as_before = || {
        eventually("the rules are as before", || {
            let now = rules(&node)?;
            ensure!(now == before, "{now:#?}, {before:#?} before");
            Ok(())
        })
    };
    let pod = lab.pod("master", "ens6", "earlier")?;
    let _served = Server::on_any(&pod.netns, PORT)?;
    traffic(&lab, &pod, &other).context("without a cause")?;
    let with_pod = rules(&node)?;
    for cause in Cause::ALL {
        for address in &pod.addresses {
            cause.change(&node, "add", *address)?;
        }
        eventually("the look-up is first", || precede_local(&node))
            .with_context(|| format!("{cause:?}\n{}", lab.logs()))?;
        eventually("all traffic goes on", || traffic(&lab, &pod, &other)).with_context(|| {
            let all = ip(&node, &["route", "show", "table", "all"]).unwrap_or_default();
            format!("{cause:?}: {:#?}\n{all}\n{}", rules(&node), lab.logs())
        })?;
        if matches!(cause, Cause::OnNic) {
            let (findings, _) = lab.agent("master").doctor()?;
            let found = findings
                .iter()
                .any(|f| f.what.contains(&pod.addresses[0].to_string()));
            ensure!(found, "{findings:?}");
        }
        for address in &pod.addresses {
            cause.change(&node, "del", *address)?;
        }
        eventually("the rules are as before", || {
            let now = rules(&node)?;
            ensure!(now == with_pod, "{now:#?}, {with_pod:#?} before");
            Ok(())
        })
        .with_context(|| format!("{cause:?}\n{}", lab.logs()))?;
        traffic(&lab, &pod, &other).with_context(|| format!("after {cause:?}"))?;
    }
    pod.delete()?;
    as_before()?;
    let [v4, v6] = Family::BOTH.map(|family| lab.vpc.nic("master", "ens6").subnet(family));
    for cause in Cause::ROUTES {
        let pool = v4.secondary.iter().chain(&v6.secondary);
        let pool: Vec<IpAddr> = pool.copied().collect();
        // Routes to ranges meet others of the pool's.
        for address in &pool {
            let _there_already = cause.change(&node, "add", *address);
        }
        let pod = lab.pod("master", "ens6", "later")?;
        let _served = Server::on_any(&pod.netns, PORT)?;
        // At once: nothing comes after the answer to ADD.
        let first = traffic(&lab, &pod, &other);
        first.with_context(|| format!("{cause:?}, before\n{}", lab.logs()))?;
        precede_local(&node)?;
        pod.delete()?;
        eventually("no look-up without a pod", as_before)?;
        for address in &pool {
            let _gone_already = cause.change(&node, "del", *address);
        }
    }
    lab.vpc.assert_no_violations()
}

#[test]
fn all_traffic_of_a_pod_whose_address_the_node_takes_goes_on() -> Result<()> {
    goes_on("0")
}

#[test]
fn so_it_does_with_strict_reverse_path_filters() -> Result<()> {
    goes_on("1")
}
