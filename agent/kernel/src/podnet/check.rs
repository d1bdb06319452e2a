//! Compares a plan with the kernel.

use std::collections::HashMap;

use ebbtide_types::Mac;

use crate::{
    datapath::Datapath,
    netlink::{
        Netlink,
        link::Link,
        model::NamespacePlan,
        netns::{Evidence, Netns},
        state::{NamespaceState, differing_sysctls},
    },
};

use super::{
    Error, PodNet,
    ours::{in_place_of_child, in_place_of_pair},
};

/// Returns all differences from `net` (and `nic`, the host's routing for its master), each as a sentence with the
/// object's name. Empty if there are none.
///
/// # Errors
/// If the kernel does not answer.
pub async fn check(
    net: &PodNet,
    nic: &NamespacePlan,
    host: &Netlink,
    datapath: &Datapath,
) -> Result<Vec<String>, Error> {
    let mut damage = Vec::new();
    match net.namespace()? {
        Evidence::Gone => {
            damage.push(format!(
                "the network namespace {} is gone",
                net.netns.display()
            ));
            return Ok(damage);
        }
        Evidence::Present(netns) => {
            let host = state_of_host(net, nic, host, datapath).await?;
            damage.extend(in_pod(net, &netns, &host.links).await?);
            damage.extend(in_host(net, nic, &host));
        }
    }
    for address in datapath.unregistered(&net.ips()) {
        damage.push(format!(
            "{address} has no flow table in {}",
            "the eBPF map FLOWS"
        ));
    }
    if let Some(bandwidth) = net.bandwidth()
        && !datapath.limits.are(net.number(), &bandwidth)
    {
        damage.push(format!(
            "the limit {bandwidth} is missing in the eBPF map LIMITS"
        ));
    }
    Ok(damage)
}

/// Whether all programs are attached to the pod's interfaces, and what they pace has its queueing discipline.
///
/// # Errors
/// If the pod's namespace no longer exists, or the kernel does not answer.
pub async fn is_attached(net: &PodNet) -> Result<bool, Error> {
    let Evidence::Present(netns) = net.namespace()? else {
        return Err(Error::NamespaceGone(net.netns.clone()));
    };
    let wanted = NamespacePlan {
        filters: net.in_pod.filters.clone(),
        queues: net.in_pod.queues.clone(),
        ..NamespacePlan::default()
    };
    let place = format!("in {}", netns.path().display());
    let netlink = netns.run(|| Netlink::open(place))??;
    let state = NamespaceState::read(&netlink, &wanted).await?;
    Ok(state.missing(&wanted).is_empty())
}

fn wrong(link: &Link, mtu: u32, mac: Option<Mac>, place: &str) -> Option<String> {
    let what = link.differs(mtu, mac)?;
    Some(format!("link {} {what} {place}", link.name))
}

/// Compares the pod's half, and whether its links lead to those of the host, `in_host`.
async fn in_pod(
    net: &PodNet,
    netns: &Netns,
    in_host: &HashMap<String, Link>,
) -> Result<Vec<String>, Error> {
    let place = format!("in {}", netns.path().display());
    let (netlink, settings) = netns
        .run(|| Netlink::open(place).map(|netlink| (netlink, differing_sysctls(&net.in_pod))))??;
    let pair = net.host_veth();
    let names = pair.map(|veth| veth.pod_name.as_str());
    let names: Vec<&str> = names.into_iter().chain([net.interface.as_str()]).collect();
    let state = NamespaceState::read_with(&netlink, &net.in_pod, &names).await?;
    let mut damage = Vec::new();
    match state.links.get(&net.interface) {
        None => damage.push(format!("link {} is missing in the pod", net.interface)),
        Some(link) => damage.extend(interface(net, link, in_host)),
    }
    if let Some(veth) = pair {
        let end = state.links.get(&veth.pod_name);
        let other_end = in_host.get(&veth.host_name);
        match (end, in_place_of_pair(net, veth, end, other_end)) {
            (None, _) => damage.push(format!("link {} is missing in the pod", veth.pod_name)),
            (Some(_), Some(what)) => damage.push(what),
            (Some(link), None) => {
                damage.extend(wrong(link, veth.mtu, Some(veth.pod_mac), "in the pod"));
            }
        }
    }
    let missing = settings.into_iter().chain(state.missing(&net.in_pod));
    damage.extend(missing.map(|object| format!("{object} in the pod")));
    Ok(damage)
}

/// Compares the pod's interface itself.
fn interface(net: &PodNet, link: &Link, in_host: &HashMap<String, Link>) -> Vec<String> {
    // The MTU of another plugin's interface is that plugin's, as its kind is.
    let Some(ipvlan) = &net.ipvlan else {
        return wrong(link, link.mtu, None, "in the pod")
            .into_iter()
            .collect();
    };
    let master = in_host.get(&ipvlan.master).map(|nic| nic.ifindex);
    if let Some(what) = in_place_of_child(link, net, master) {
        return vec![what];
    }
    let other_mode = link.ipvlan_mode.filter(|mode| *mode != ipvlan.mode);
    let other_mode = other_mode.map(|_| {
        format!(
            "link {} is in another mode than {}: a child of another mode was added to {}",
            ipvlan.name, ipvlan.mode, ipvlan.master
        )
    });
    let wrong = wrong(link, ipvlan.mtu, None, "in the pod");
    other_mode.into_iter().chain(wrong).collect()
}

/// Reads the host's half, with the pair's end and the NIC.
async fn state_of_host(
    net: &PodNet,
    nic: &NamespacePlan,
    host: &Netlink,
    datapath: &Datapath,
) -> Result<NamespaceState, Error> {
    let mut wanted = net.in_host.clone();
    wanted.extend(nic);
    let pair = net.host_veth().map(|veth| veth.host_name.as_str());
    let names: Vec<&str> = pair.into_iter().chain(net.master()).collect();
    Ok(datapath.state_of_host(host, &wanted, &names).await?)
}

fn in_host(net: &PodNet, nic: &NamespacePlan, state: &NamespaceState) -> Vec<String> {
    let mut damage = Vec::new();
    if let Some(veth) = net.host_veth() {
        match state.links.get(&veth.host_name) {
            None => damage.push(format!("link {} is missing in the host", veth.host_name)),
            Some(link) => damage.extend(wrong(link, veth.mtu, Some(veth.host_mac), "in the host")),
        }
    }
    let missing = differing_sysctls(&net.in_host)
        .into_iter()
        .chain(state.missing(&net.in_host))
        .chain(state.missing(nic));
    damage.extend(missing.map(|object| format!("{object} in the host")));
    damage
}
