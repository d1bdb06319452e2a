//! The real kube-proxy, in each mode that its release and this kernel support; and a comparison of the stand-in's rules
//! with its own.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_cluster::{Binaries, ControlPlane, Options, Place, ProxyMode, ServiceProxy};
use ebbtide_vpc::{
    netns::Netns,
    plan::{Family, Plan},
    proxy::{self, Backend, ExternalTrafficPolicy, Mode, NodePorts, Service, Settings, Style},
    skip::skip,
    snapshot::run,
    traffic::{Client, Protocol},
    vpc::Vpc,
};
use serde_json::json;

/// Starts a control plane on `master`. Returns `None`, after a skip, if no kube-proxy supports this mode.
fn start(vpc: &Vpc, mode: ProxyMode) -> Result<Option<ControlPlane>> {
    let Some(binaries) = Binaries::find() else {
        return Ok(None);
    };
    if let Some(reason) = mode.missing(&binaries) {
        skip(
            mode.need(),
            format_args!("kube-proxy's mode {mode}: {reason}"),
        );
        return Ok(None);
    }
    let place = Place {
        netns: vpc.node("master").clone(),
        address: vpc.nic("master", "ens5").primary(Family::V4),
    };
    ControlPlane::start(Options {
        place: Some(place),
        ..Options::default()
    })
}

/// Checks the API server's own Service from a machine without a pod; `rules` prints what serves it.
fn serves_the_api_servers_service(mode: ProxyMode, rules: &[&str]) -> Result<()> {
    let vpc = Vpc::build(Plan::default())?;
    let Some(cluster) = start(&vpc, mode)? else {
        return Ok(());
    };
    let netns = vpc.node("worker1");
    let address = vpc.nic("worker1", "ens5").primary(Family::V4);
    let first = ControlPlane::SERVICES.hosts().next();
    let service = SocketAddr::new(first.context("a first Service")?.into(), 443);
    let client = Client::new(netns, Protocol::Tcp).timeout(Duration::from_secs(2));
    let look = || client.connect(service).map(drop);
    ensure!(look().is_err(), "served by nobody");
    let mut proxy = ServiceProxy::start(&cluster, netns, "worker1", address, mode)?;
    proxy.wait(look)?;
    let [program, arguments @ ..] = rules else {
        bail!("no program");
    };
    run(netns, program, arguments)
        .map(drop)
        .with_context(|| format!("served, but by nothing of {mode}'s"))
}

#[test]
fn the_real_kube_proxy_serves_by_iptables() -> Result<()> {
    serves_the_api_servers_service(
        ProxyMode::Iptables,
        &["iptables", "-t", "nat", "-n", "-L", "KUBE-SERVICES"],
    )
}

#[test]
fn the_real_kube_proxy_serves_by_ipvs() -> Result<()> {
    serves_the_api_servers_service(
        ProxyMode::Ipvs,
        &["grep", "0A600001:01BB", "/proc/net/ip_vs"],
    )
}

#[test]
fn the_real_kube_proxy_serves_by_nftables() -> Result<()> {
    serves_the_api_servers_service(
        ProxyMode::Nftables,
        &["nft", "list", "table", "ip", "kube-proxy"],
    )
}

/// Services with endpoints on this node, on the other one, and without: name, the last part of the ClusterIP and of the
/// node port, policy, and the endpoints' addresses and nodes.
type Offer = (
    &'static str,
    u8,
    ExternalTrafficPolicy,
    &'static [(&'static str, &'static str)],
);

const HERE: (&str, &str) = ("172.31.48.4", "worker1");
const ELSEWHERE: (&str, &str) = ("180.17.16.11", "master");

const OFFERS: [Offer; 5] = [
    (
        "spread",
        10,
        ExternalTrafficPolicy::Cluster,
        &[HERE, ELSEWHERE],
    ),
    ("kept", 11, ExternalTrafficPolicy::Local, &[HERE, ELSEWHERE]),
    ("far", 12, ExternalTrafficPolicy::Local, &[ELSEWHERE]),
    ("none", 13, ExternalTrafficPolicy::Cluster, &[]),
    ("none-kept", 14, ExternalTrafficPolicy::Local, &[]),
];

/// Returns the Service for the stand-in.
fn as_data((name, last, policy, endpoints): Offer, protocol: Protocol) -> Result<Service> {
    let backends = endpoints.iter().map(|(address, node)| {
        Ok(Backend {
            address: format!("{address}:8080").parse()?,
            node: (*node).into(),
        })
    });
    Ok(Service {
        name: format!("{name}-{protocol}"),
        protocol,
        cluster: format!("10.96.0.{last}:80").parse()?,
        node_port: Some(30000 + u16::from(last)),
        policy,
        masquerade: false,
        backends: backends.collect::<Result<_>>()?,
    })
}

/// Returns the manifests for the API server.
fn as_manifests((name, last, policy, endpoints): Offer) -> String {
    let protocols = Protocol::BOTH.map(|protocol| protocol.to_string());
    let port = |protocol: &String| {
        json!({
            "name": protocol, "protocol": protocol.to_uppercase(),
            "port": 80, "nodePort": 30000 + u16::from(last),
        })
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "NodePort", "clusterIP": format!("10.96.0.{last}"),
            "externalTrafficPolicy": format!("{policy:?}"),
            "ports": protocols.iter().map(port).collect::<Vec<_>>(),
        },
    });
    let port = |protocol: &String| json!({"name": protocol, "protocol": protocol.to_uppercase(), "port": 8080});
    let endpoint = |(address, node): &(&str, &str)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": protocols.iter().map(port).collect::<Vec<_>>(),
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    });
    format!("{service}\n---\n{slice}\n")
}

/// Returns the rules and elements of kube-proxy's table, each with its chain or set, without comments, and with the
/// stand-in's names.
fn table(netns: &Netns) -> Result<BTreeSet<String>> {
    let listed = run(netns, "nft", &["list", "table", "ip", "kube-proxy"])?;
    let (mut found, mut head) = (BTreeSet::new(), String::new());
    for line in listed.lines().map(str::trim) {
        let line = without_comment(line);
        let line = line.strip_prefix("elements = {").unwrap_or(&line);
        if let Some(begun) = line.strip_suffix(" {") {
            head = begun.split(' ').map(name).collect::<Vec<_>>().join(" ");
            found.insert(head.clone());
            continue;
        }
        // The elements of a set may share a line; a rule has its own in brackets.
        let parts = match head.starts_with("chain ") {
            true => vec![line],
            false => line.trim_end_matches('}').split(',').collect(),
        };
        for part in parts.into_iter().map(str::trim) {
            if !part.is_empty() && part != "}" {
                let words: Vec<String> = part.split(' ').map(name).collect();
                found.insert(format!("{head}: {}", words.join(" ")));
            }
        }
    }
    // Without the API server's own Service.
    found.retain(|one| !one.contains("kubernetes-") && !one.ends_with(": 10.96.0.1"));
    Ok(found)
}

fn without_comment(line: &str) -> String {
    match line.split_once("comment \"") {
        Some((before, rest)) => {
            let after = rest.split_once('"').map_or("", |(_, after)| after);
            [before.trim_end(), after].concat()
        }
        None => line.to_owned(),
    }
}

/// Translates a name: `service-PPPPPPPP-default/far/tcp/tcp` is `service-far-tcp` here, and an endpoint's suffix
/// `__172.31.48.4/8080` is its number.
fn name(word: &str) -> String {
    let parts: Vec<&str> = word.split('/').collect();
    let [kind, name, protocol, port, ..] = parts[..] else {
        return word.to_owned();
    };
    let kind = kind.split('-').next().unwrap_or_default();
    let comma = if word.ends_with(',') { "," } else { "" };
    let endpoint = match port.split_once("__") {
        Some((_, address)) => {
            let of = OFFERS.iter().find(|offer| offer.0 == name);
            let endpoints = of.map_or(&[][..], |offer| offer.3);
            let number = endpoints.iter().position(|one| one.0 == address);
            number.map_or(String::new(), |number| format!("-{number}"))
        }
        None => String::new(),
    };
    format!("{kind}-{name}-{protocol}{endpoint}{comma}")
}

#[test]
fn the_stand_in_writes_the_real_ones_rules_of_nftables() -> Result<()> {
    let vpc = Vpc::build(Plan::default())?;
    let mode = ProxyMode::Nftables;
    let Some(cluster) = start(&vpc, mode)? else {
        return Ok(());
    };
    let manifests = OFFERS.map(as_manifests).join("---\n");
    cluster.apply(&manifests)?;
    let (real, address) = (
        vpc.node("worker1"),
        vpc.nic("worker1", "ens5").primary(Family::V4),
    );
    let mut services = Vec::new();
    for offer in OFFERS {
        for protocol in Protocol::BOTH {
            services.push(as_data(offer, protocol)?);
        }
    }
    let mut proxy = ServiceProxy::start(&cluster, real, "worker1", address, mode)?;
    let stand_in = vpc.node("master");
    proxy.wait(|| {
        let real = table(real)?;
        let style = match real.contains("set hairpin-connections") {
            true => Style::Maps,
            false => Style::Chains,
        };
        let settings = Settings {
            mode: Mode::Nftables(style),
            service_cidr: vec![ControlPlane::SERVICES.into()],
            node_ports: NodePorts::At(vec![address]),
            ..Settings::default()
        };
        proxy::install(stand_in, "worker1", &settings, &services)?;
        let own = table(stand_in)?;
        ensure!(real.len() > 50, "only {} rules and elements", real.len());
        let (missing, more): (Vec<_>, Vec<_>) = (
            real.difference(&own).collect(),
            own.difference(&real).collect(),
        );
        ensure!(
            missing.is_empty() && more.is_empty(),
            "{style:?}: the stand-in lacks {missing:#?}, and has {more:#?}"
        );
        Ok(())
    })
}
