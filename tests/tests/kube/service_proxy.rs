//! The real kube-proxy, in each mode that its release and this kernel have.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_tests::{
    cluster::{Binaries, ControlPlane, Options, Place, ProxyMode, ServiceProxy},
    plan::{Family, Plan},
    skip::skip,
    snapshot::run,
    traffic::{Client, Protocol},
    vpc::Vpc,
};

/// The API server's own Service, from a machine without a pod: `rules` shows what serves it.
fn serves_the_api_servers_service(mode: ProxyMode, rules: &[&str]) -> Result<()> {
    let Some(binaries) = Binaries::find() else {
        return Ok(());
    };
    if let Some(reason) = mode.missing(&binaries) {
        skip(
            mode.need(),
            format_args!("kube-proxy's mode {mode}: {reason}"),
        );
        return Ok(());
    }
    let vpc = Vpc::build(Plan::default())?;
    let place = Place {
        netns: vpc.node("master").clone(),
        address: vpc.nic("master", "ens5").primary(Family::V4),
    };
    let options = Options {
        place: Some(place),
        ..Options::default()
    };
    let Some(cluster) = ControlPlane::start(options)? else {
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
