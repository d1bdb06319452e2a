//! Whether a link under the name of one of Ebbtide's is that one. A name says nothing: whoever has `CAP_NET_ADMIN` in the
//! pod can put another link in its place.

use crate::netlink::link::{Link, Veth};

use super::PodNet;

/// Whether a link of the pod is an ipvlan child of the host's link of index `master`. The pod may have a link of its own
/// with that index.
pub(super) fn is_child_of(link: &Link, master: Option<u32>) -> bool {
    link.kind.as_deref() == Some("ipvlan")
        && link.iflink_in_other_netns
        && master.is_some()
        && link.iflink == master
}

/// Whether a link is an end of a pair to another namespace.
fn is_end_of_pair(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && link.iflink_in_other_netns
}

/// Describes a link for people: its kind, and its owner, if its alias names one. `master`: the index of the interface's
/// NIC.
pub(super) fn described(link: &Link, net: &PodNet, master: Option<u32>) -> String {
    let kind = link.kind.as_deref().unwrap_or("physical");
    let below = match (kind, link.iflink, net.master()) {
        ("ipvlan" | "macvlan", Some(index), _) if !link.iflink_in_other_netns => {
            format!(" on the pod's own link number {index}")
        }
        ("ipvlan", below, Some(name)) if below == master => format!(" on {name}"),
        ("ipvlan" | "macvlan", Some(index), _) => format!(" on the node's link number {index}"),
        _ => String::new(),
    };
    let whose = match &link.alias {
        Some(alias) => format!("with the alias {alias:?}"),
        None => "which another plugin or somebody else made".to_owned(),
    };
    format!("a link of kind {kind}{below}, {whose}")
}

/// Says what `link` is, if it is not the interface of `net` on its NIC. `master`: the NIC's index; without it (the NIC is
/// gone, or has another name) only the kind is compared.
pub(super) fn in_place_of_child(link: &Link, net: &PodNet, master: Option<u32>) -> Option<String> {
    let nic = net.master()?;
    let is_it = match master {
        Some(_) => is_child_of(link, master),
        None => link.kind.as_deref() == Some("ipvlan"),
    };
    (!is_it).then(|| {
        format!(
            "link {name} in the pod is not the ipvlan interface on {nic} any more: it is {}; delete it (`ip link del \
             {name}` in the pod's network namespace), or the pod",
            described(link, net, master),
            name = link.name,
        )
    })
}

/// Says what is wrong, if these links are not the two ends of one pair. One that is missing is not compared.
pub(super) fn in_place_of_pair(
    net: &PodNet,
    pair: &Veth,
    in_pod: Option<&Link>,
    in_host: Option<&Link>,
) -> Option<String> {
    let Veth {
        pod_name,
        host_name,
        ..
    } = pair;
    let ends = [(in_pod, "in the pod"), (in_host, "in the host")];
    for (link, place) in ends {
        if let Some(link) = link.filter(|link| !is_end_of_pair(link)) {
            return Some(format!(
                "link {name} {place} is not the end of the pair {pod_name} and {host_name} any more: it is {}; delete it \
                 (`ip link del {name}`), or the pod",
                described(link, net, None),
                name = link.name,
            ));
        }
    }
    let (in_pod, in_host) = (in_pod?, in_host?);
    let is_pair = in_pod.iflink == Some(in_host.ifindex) && in_host.iflink == Some(in_pod.ifindex);
    (!is_pair).then(|| {
        format!(
            "link {pod_name} in the pod and link {host_name} in the host are ends of two different pairs: delete both \
             (`ip link del NAME`), or the pod"
        )
    })
}
