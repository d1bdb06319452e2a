//! Links of others under the names of a pod's: which are told apart.

use ebbtide_types::IpvlanMode;

use super::{network, planned, v4};
use crate::{
    netlink::link::Link,
    podnet::{
        PodNet,
        ours::{in_place_of_child, in_place_of_pair},
    },
};

fn link(name: &str, ifindex: u32, kind: &str) -> Link {
    Link {
        mtu: 1500,
        up: true,
        kind: Some(kind.into()),
        ..Link::named(name, ifindex)
    }
}

const MASTER: u32 = 2;

fn child() -> Link {
    Link {
        iflink: Some(MASTER),
        iflink_in_other_netns: true,
        ipvlan_mode: Some(IpvlanMode::L3),
        ..link("eth0", 5, "ipvlan")
    }
}

#[test]
fn what_stands_in_place_of_the_child_is_named() {
    let rows = [
        (child(), None),
        (
            Link {
                ipvlan_mode: Some(IpvlanMode::L3s),
                ..child()
            },
            None,
        ),
        (
            link("eth0", 5, "dummy"),
            Some("it is a link of kind dummy,"),
        ),
        (
            Link {
                iflink: Some(4),
                iflink_in_other_netns: true,
                ..link("eth0", 5, "veth")
            },
            Some("it is a link of kind veth,"),
        ),
        (
            Link {
                kind: Some("macvlan".into()),
                ipvlan_mode: None,
                ..child()
            },
            Some("it is a link of kind macvlan on the node's link number 2,"),
        ),
        (
            Link {
                iflink: Some(3),
                ..child()
            },
            Some("it is a link of kind ipvlan on the node's link number 3,"),
        ),
        (
            Link {
                iflink_in_other_netns: false,
                ..child()
            },
            Some("it is a link of kind ipvlan on the pod's own link number 2,"),
        ),
    ];
    for (found, expected) in rows {
        let named = in_place_of_child(&found, &planned(&network(), &[v4()]), Some(MASTER));
        match (&named, expected) {
            (None, None) => {}
            (Some(named), Some(expected)) => {
                assert!(named.contains(expected), "{named}");
                assert!(named.contains("ip link del eth0"), "{named}");
            }
            _ => panic!("{found:?}: {named:?}"),
        }
    }
}

#[test]
fn without_the_nic_only_the_kind_is_compared() {
    let other = Link {
        iflink: Some(9),
        ..child()
    };
    assert_eq!(
        in_place_of_child(&other, &planned(&network(), &[v4()]), None),
        None
    );
    let dummy = link("eth0", 5, "dummy");
    assert!(in_place_of_child(&dummy, &planned(&network(), &[v4()]), None).is_some());
}

#[test]
fn what_another_plugin_made_may_be_of_any_kind() {
    let chained = PodNet {
        ipvlan: None,
        ..planned(&network(), &[v4()])
    };
    for kind in ["macvlan", "veth", "dummy"] {
        let found = link("eth0", 5, kind);
        assert_eq!(in_place_of_child(&found, &chained, None), None, "{kind}");
    }
}

fn end(name: &str, ifindex: u32, peer: u32) -> Link {
    Link {
        iflink: Some(peer),
        iflink_in_other_netns: true,
        ..link(name, ifindex, "veth")
    }
}

#[test]
fn what_stands_in_place_of_the_pair_is_named() {
    let net = planned(&network(), &[v4()]);
    let pair = net.host_veth().unwrap();
    let (pod, host) = (end("veth0", 6, 7), end(&pair.host_name, 7, 6));
    let within = Link {
        iflink_in_other_netns: false,
        ..pod.clone()
    };
    let named = |pod: Option<&Link>, host: Option<&Link>| in_place_of_pair(&net, pair, pod, host);
    assert_eq!(named(Some(&pod), Some(&host)), None);
    assert_eq!(named(None, Some(&host)), None);
    assert_eq!(named(Some(&pod), None), None);
    for (pod, host, expected) in [
        (
            &link("veth0", 6, "dummy"),
            &host,
            "link veth0 in the pod is not",
        ),
        (&within, &host, "link veth0 in the pod is not"),
        (
            &pod,
            &link(&pair.host_name, 7, "bridge"),
            "in the host is not the end of the pair",
        ),
        (&end("veth0", 6, 8), &host, "two different pairs"),
        (&pod, &end(&pair.host_name, 7, 9), "two different pairs"),
    ] {
        let said = named(Some(pod), Some(host)).expect(expected);
        assert!(said.contains(expected), "{said}");
        assert!(said.contains("ip link del"), "{said}");
    }
}
