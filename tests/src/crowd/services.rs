//! The node's Service proxy: Services of the overlay's pods, from before the agent, and of Ebbtide's pods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use ebbtide_vpc::{
    family::Family::V4,
    pod::Pod,
    proxy::{self, Backend, ExternalTrafficPolicy, Service, Settings},
    traffic::{Protocol, bind},
};

use super::{
    cell::{By, Cell},
    overlay::{Overlay, Side, Who, inner},
    servers::Servers,
    site::{Asking, HOST_PORT, POD_PORT, Site},
};

/// Port of every ClusterIP.
const PORT: u16 = 80;
/// NodePorts of the pod on the node's bridge by both policies, and of the far pod by the first tunnel.
const NEAR: [(ExternalTrafficPolicy, u16); 2] = [
    (ExternalTrafficPolicy::Cluster, 31_001),
    (ExternalTrafficPolicy::Local, 31_002),
];
const FAR: u16 = 31_100;
/// The NodePort of the first of Ebbtide's pods.
const OURS: u16 = 31_201;
/// The NICs of Ebbtide's pods, one on each.
pub(super) const OUR_PODS: [(&str, &str); 2] = [("a", "ens5"), ("c", "ens6")];

fn cluster_ip(third: u8, last: u8) -> IpAddr {
    Ipv4Addr::new(10, 96, third, last).into()
}

/// Returns the address that the pool gives to its first pod.
fn first_pod(site: &Site, nic: &str) -> IpAddr {
    site.vpc.nic("master", nic).v4.secondary[0]
}

/// Installs all Services, and adds the cells of those that are not Ebbtide's.
pub(super) fn set_up(site: &mut Site, overlay: &Overlay) -> Result<()> {
    let mut services = Vec::new();
    let near = inner(V4, Side::Near, overlay.first(), Who::Pod);
    for (number, (policy, port)) in (1..).zip(NEAR) {
        add(
            &mut services,
            &format!("NEAR{number}"),
            cluster_ip(1, number),
            port,
            policy,
            near,
            "master",
        );
    }
    for tunnel in overlay.carrying(V4) {
        let n = tunnel.number;
        let far = inner(V4, Side::Far, n, Who::Pod);
        let port = FAR + u16::from(n);
        let cluster = ExternalTrafficPolicy::Cluster;
        add(
            &mut services,
            &format!("FAR{n}"),
            cluster_ip(3, n),
            port,
            cluster,
            far,
            "worker1",
        );
    }
    for (number, (_, nic)) in (0..).zip(OUR_PODS) {
        let pod = first_pod(site, nic);
        let (ip, port) = (cluster_ip(2, number), OURS + u16::from(number));
        let local = ExternalTrafficPolicy::Local;
        add(
            &mut services,
            &format!("OURS{number}"),
            ip,
            port,
            local,
            pod,
            "master",
        );
        // Where the policy is DROP, somebody must accept what the host forwards for our pods.
        site.accept(V4, [&format!("-s {pod}/32"), &format!("-d {pod}/32")]);
    }
    let cluster_cidr = vec!["10.210.0.0/15".parse()?];
    proxy::install(
        &site.node,
        "master",
        &Settings {
            cluster_cidr,
            ..Settings::default()
        },
        &services,
    )?;
    ask(site, overlay);
    Ok(())
}

fn add(
    services: &mut Vec<Service>,
    name: &str,
    cluster: IpAddr,
    port: u16,
    policy: ExternalTrafficPolicy,
    backend: IpAddr,
    node: &str,
) {
    services.extend(Protocol::BOTH.map(|protocol| Service {
        name: format!("{name}{protocol}"),
        protocol,
        cluster: SocketAddr::new(cluster, PORT),
        node_port: Some(port),
        policy,
        masquerade: true,
        backends: vec![Backend {
            address: SocketAddr::new(backend, POD_PORT),
            node: node.into(),
        }],
    }));
}

/// Adds the cells of Services without Ebbtide's pods.
fn ask(site: &mut Site, overlay: &Overlay) {
    let (node, far_host) = (site.node.clone(), site.far.clone());
    let group = "Services of others";
    let to_near = (cluster_ip(1, 1), PORT);
    for (client, name) in [(&node, "node"), (&overlay.cali, "Calico pod")] {
        let name = format!("{name} → ClusterIP of the near pod");
        site.ask(&Asking::new(group, name, client, to_near), &By::WITH_PORTS);
    }
    for nic in ["ens5", "ens6"] {
        let at = site.near_address(nic, V4);
        for (policy, port) in NEAR {
            let name = format!("far host → NodePort ({policy:?}) at {nic} of the near pod");
            site.ask(
                &Asking::new(group, name, &far_host, (at, port)),
                &By::WITH_PORTS,
            );
        }
    }
    for tunnel in overlay.carrying(V4) {
        let (n, title) = (tunnel.number, &tunnel.title);
        let service = (cluster_ip(3, n), PORT);
        let own = inner(V4, Side::Near, n, Who::Pod);
        let asking = Asking::new(
            title,
            "pod → ClusterIP of the far pod",
            &overlay.pod,
            service,
        );
        site.ask(&asking.from(own), &[By::Tcp]);
        if !tunnel.takes_all {
            // This policy does not accept what the proxy masquerades.
            continue;
        }
        let asking = Asking::new(title, "node → ClusterIP of the far pod", &node, service);
        site.ask(&asking, &[By::Tcp]);
        for nic in ["ens5", "ens6"] {
            let at = (site.near_address(nic, V4), FAR + u16::from(n));
            let name = format!("far host → NodePort at {nic} of the far pod");
            site.ask(&Asking::new(title, name, &far_host, at), &[By::Tcp]);
        }
    }
}

/// Returns the cells of Ebbtide's pods, which must work, and the pods' servers.
pub(super) fn ours(site: &Site, overlay: &Overlay, pods: &[Pod]) -> Result<(Vec<Cell>, Servers)> {
    let group = "pods of ours";
    let (mut cells, mut sockets) = (Vec::new(), Vec::new());
    for (number, pod) in (0..).zip(pods) {
        let (own, name) = (pod.address(V4), &pod.name);
        ensure!(
            own == first_pod(site, &pod.nic),
            "the pool gave {name} {own}"
        );
        for protocol in Protocol::BOTH {
            let address = SocketAddr::new(own, POD_PORT);
            let bound = pod.netns.run(|| bind(protocol, address))?;
            sockets.push((protocol, bound));
        }
        let straight = (own, POD_PORT);
        let service = (cluster_ip(2, number), PORT);
        let mut ask = |asking: Asking<'_>, by: &[By]| cells.extend(asking.cells(by));
        for (client, who) in [
            (&site.far, "far host"),
            (&site.node, "node"),
            (&overlay.pod, "overlay pod"),
            (&overlay.cali, "Calico pod"),
        ] {
            ask(
                Asking::new(group, format!("{who} → {name}"), client, straight),
                &By::ALL,
            );
        }
        for (client, who) in [
            (&site.node, "node"),
            (&overlay.pod, "overlay pod"),
            (&overlay.cali, "Calico pod"),
        ] {
            ask(
                Asking::new(
                    group,
                    format!("{who} → ClusterIP of {name}"),
                    client,
                    service,
                ),
                &By::WITH_PORTS,
            );
        }
        for nic in ["ens5", "ens6"] {
            let at = site.near_address(nic, V4);
            let node_port = (at, OURS + u16::from(number));
            ask(
                Asking::new(
                    group,
                    format!("far host → NodePort at {nic} of {name}"),
                    &site.far,
                    node_port,
                ),
                &By::WITH_PORTS,
            );
            ask(
                Asking::new(
                    group,
                    format!("{name} → node, {nic}"),
                    &pod.netns,
                    (at, HOST_PORT),
                ),
                &By::ALL,
            );
        }
        let far = (site.far_address(V4), HOST_PORT);
        ask(
            Asking::new(group, format!("{name} → far host"), &pod.netns, far),
            &By::ALL,
        );
        let near = (cluster_ip(1, 1), PORT);
        ask(
            Asking::new(
                group,
                format!("{name} → ClusterIP of the near overlay pod"),
                &pod.netns,
                near,
            ),
            &By::WITH_PORTS,
        );
        for tunnel in overlay.carrying(V4) {
            let (n, title) = (tunnel.number, &tunnel.title);
            if !tunnel.takes_all {
                continue;
            }
            let far_pod = inner(V4, Side::Far, n, Who::Pod);
            let far_service = (cluster_ip(3, n), PORT);
            ask(
                Asking::new(
                    group,
                    format!("{name} → ClusterIP of the far pod by {title}"),
                    &pod.netns,
                    far_service,
                ),
                &By::WITH_PORTS,
            );
            for (what, to) in [("", straight), ("ClusterIP of ", service)] {
                let asking = Asking::new(
                    group,
                    format!("far pod by {title} → {what}{name}"),
                    &overlay.far,
                    to,
                );
                ask(asking.from(far_pod), &By::WITH_PORTS);
            }
        }
    }
    Ok((cells, Servers::start(sockets)?))
}
