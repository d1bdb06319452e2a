use super::*;

const ENS5: u32 = 2;
const ENS6: u32 = 3;
const CNI0: u32 = 10;
const PEER: u32 = 20;
const OTHER: u32 = 30;

fn nic(name: &str, ifindex: u32, addresses: &[&str]) -> Nic {
    Nic {
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..Nic::named(name, ifindex)
    }
}

fn link(name: &str, ifindex: u32, kind: Option<&str>) -> Link {
    Link {
        mtu: 1500,
        up: true,
        kind: kind.map(str::to_owned),
        ..Link::named(name, ifindex)
    }
}

fn bridge(ifindex: u32, is_open: bool) -> Option<Switch> {
    Some(Switch { ifindex, is_open })
}

fn by(ifindex: u32) -> FibResult {
    FibResult::Via { ifindex, via: None }
}

#[test]
fn an_address_is_a_pod_s_where_its_network_is_or_where_the_node_leads_to_it_already() {
    let links = [
        nic("ens5", ENS5, &["172.31.22.228/20", "fd00:16::228/64"]),
        nic("ens6", ENS6, &["210.22.16.10/24"]),
        nic("cni0", CNI0, &["10.88.0.1/24"]),
    ];
    let pools: Vec<IpNet> = ["210.22.16.0/24", "172.31.48.0/20"]
        .map(|net| net.parse().unwrap())
        .to_vec();
    let routers = [ByGateway {
        destination: "10.0.0.0/8".parse().unwrap(),
        via: "172.31.16.9".parse().unwrap(),
        ifindex: ENS5,
    }];
    let pair = |switch| InterfaceKind::Veth { peer: PEER, switch };
    let default = FibResult::Via {
        ifindex: ENS5,
        via: Some([172, 31, 16, 1].into()),
    };
    let ens5 = || link("ens5", ENS5, None);
    for (what, address, place, way, out, whole, accepted) in [
        (
            "the NIC's network",
            "172.31.16.77/20",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            false,
            true,
        ),
        (
            "the NIC's network, whole",
            "172.31.16.77/20",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            true,
            true,
        ),
        (
            "one address of it",
            "172.31.16.77/32",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            true,
            true,
        ),
        (
            "more than it has",
            "172.31.16.77/16",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            true,
            false,
        ),
        (
            "half of all",
            "172.31.16.77/1",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            true,
            false,
        ),
        (
            "the pod's own matter",
            "172.31.16.77/16",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            false,
            true,
        ),
        (
            "IPv6",
            "fd00:16::77/64",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            true,
            true,
        ),
        (
            "outside",
            "198.51.100.9/32",
            InterfaceKind::Child(ENS5),
            default,
            ens5(),
            false,
            false,
        ),
        (
            "another NIC's",
            "210.22.16.77/24",
            InterfaceKind::Child(ENS5),
            by(ENS6),
            ens5(),
            false,
            false,
        ),
        (
            "a pool's subnet that no NIC has",
            "172.31.48.9/20",
            InterfaceKind::Child(ENS5),
            default,
            ens5(),
            true,
            true,
        ),
        (
            "a router",
            "172.31.16.9/20",
            InterfaceKind::Child(ENS5),
            by(ENS5),
            ens5(),
            false,
            false,
        ),
        (
            "below a link that is gone",
            "172.31.16.77/20",
            InterfaceKind::Child(99),
            by(ENS5),
            ens5(),
            false,
            false,
        ),
        (
            "hardware",
            "210.22.16.77/24",
            InterfaceKind::Hardware,
            by(ENS6),
            ens5(),
            false,
            true,
        ),
        (
            "hardware, a bridge's network",
            "10.88.0.9/24",
            InterfaceKind::Hardware,
            by(CNI0),
            ens5(),
            false,
            false,
        ),
        (
            "hardware, outside",
            "198.51.100.9/32",
            InterfaceKind::Hardware,
            default,
            ens5(),
            false,
            false,
        ),
        (
            "listed",
            "192.0.2.9/32",
            InterfaceKind::Child(ENS5),
            default,
            ens5(),
            true,
            true,
        ),
        (
            "listed, and more",
            "192.0.2.9/8",
            InterfaceKind::Child(ENS5),
            default,
            ens5(),
            true,
            false,
        ),
        (
            "listed, anywhere",
            "192.0.2.9/32",
            InterfaceKind::Unconnected,
            default,
            ens5(),
            false,
            true,
        ),
        (
            "a dummy",
            "172.31.16.77/20",
            InterfaceKind::Unconnected,
            by(ENS5),
            ens5(),
            false,
            false,
        ),
        (
            "ptp, Calico, AWS: a route of its own",
            "10.1.2.3/32",
            pair(None),
            by(PEER),
            link("cali1", PEER, Some("veth")),
            false,
            true,
        ),
        (
            "a bridge's network",
            "10.88.0.9/24",
            pair(bridge(CNI0, false)),
            by(CNI0),
            link("cni0", CNI0, Some("bridge")),
            false,
            true,
        ),
        (
            "behind another bridge",
            "10.88.0.9/24",
            pair(bridge(11, false)),
            by(CNI0),
            link("cni0", CNI0, Some("bridge")),
            false,
            false,
        ),
        (
            "a bridge that is no way",
            "198.51.100.9/24",
            pair(bridge(11, false)),
            default,
            ens5(),
            false,
            false,
        ),
        (
            "a pair that is there for the pod alone, without a route yet",
            "10.88.0.9/24",
            pair(None),
            default,
            ens5(),
            false,
            true,
        ),
        (
            "a pair, a neighbour's address",
            "172.31.16.77/20",
            pair(None),
            by(ENS5),
            ens5(),
            false,
            false,
        ),
        (
            "a pair, the NIC itself a pair",
            "172.31.16.77/20",
            pair(None),
            by(ENS5),
            link("ens5", ENS5, Some("veth")),
            false,
            false,
        ),
        (
            "another pod's pair, behind a bridge",
            "10.1.2.3/32",
            pair(bridge(11, false)),
            by(OTHER),
            link("cali2", OTHER, Some("veth")),
            false,
            false,
        ),
        (
            "Cilium",
            "10.0.1.7/32",
            pair(None),
            by(OTHER),
            link("cilium_host", OTHER, Some("veth")),
            false,
            true,
        ),
        (
            "a tunnel's network",
            "10.244.2.7/24",
            pair(None),
            by(OTHER),
            link("flannel.1", OTHER, Some("vxlan")),
            false,
            false,
        ),
        (
            "a VPN's network",
            "10.8.0.7/24",
            pair(None),
            by(OTHER),
            link("wg0", OTHER, Some("wireguard")),
            false,
            false,
        ),
        (
            "Antrea, OVN",
            "10.244.1.7/24",
            pair(bridge(12, true)),
            by(OTHER),
            link("antrea-gw0", OTHER, Some(OPEN)),
            false,
            true,
        ),
        (
            "Antrea, another node's",
            "10.244.2.7/24",
            pair(bridge(12, true)),
            FibResult::Via {
                ifindex: OTHER,
                via: Some([10, 244, 2, 1].into()),
            },
            link("antrea-gw0", OTHER, Some(OPEN)),
            false,
            false,
        ),
        (
            "the same, on a node without a default route",
            "10.1.2.3/32",
            pair(None),
            FibResult::Unreachable,
            ens5(),
            false,
            true,
        ),
    ] {
        let ground = CheckInput {
            place: &place,
            links: &links,
            nics: &[ENS5, ENS6],
            pools: &pools,
            listed: &["192.0.2.0/24".parse().unwrap()],
            routers: &routers,
            whole,
        };
        let looked = check(&address.parse().unwrap(), way, Some(&out), ground);
        assert_eq!(looked.is_ok(), accepted, "{what}: {looked:?}");
    }
}

#[test]
fn links_in_pods_are_known_for_what_they_are() {
    for (kind, iflink, elsewhere, place) in [
        (
            Some("macvlan"),
            Some(ENS5),
            true,
            InterfaceKind::Child(ENS5),
        ),
        (Some("ipvlan"), Some(ENS5), true, InterfaceKind::Child(ENS5)),
        (Some("ipoib"), Some(ENS5), true, InterfaceKind::Child(ENS5)),
        // Made on a link in the pod: unrelated to the node.
        (Some("macvlan"), Some(5), false, InterfaceKind::Unconnected),
        (None, None, false, InterfaceKind::Hardware),
        (Some("bond"), None, false, InterfaceKind::Hardware),
        (Some("dummy"), None, false, InterfaceKind::Unconnected),
        (Some("wireguard"), None, false, InterfaceKind::Unconnected),
        (Some("tun"), None, false, InterfaceKind::Unconnected),
    ] {
        let found = Link {
            iflink,
            iflink_in_other_netns: elsewhere,
            ..link("eth0", 7, kind)
        };
        assert_eq!(kind_of(&found), place, "{kind:?}");
        assert!(!is_veth_like(&found), "{kind:?}");
    }
    assert!(is_veth_like(&link("eth0", 7, Some("veth"))));
}

#[test]
fn what_can_be_no_pod_s_is_told() {
    for (address, why_unassignable) in [
        ("0.0.0.0", true),
        ("0.9.9.9", true),
        ("127.0.0.1", true),
        ("169.254.169.254", true),
        ("224.0.0.1", true),
        ("255.255.255.255", true),
        ("::", true),
        ("::1", true),
        ("::10.0.0.1", true),
        ("::ffff:10.0.0.1", true),
        ("fe80::1", true),
        ("ff02::1", true),
        ("10.0.0.1", false),
        ("100.64.0.1", false),
        ("240.0.0.1", false),
        ("198.51.100.9", false),
        ("fd00::1", false),
        ("2001:db8::1", false),
    ] {
        let why = special_purpose(address.parse().unwrap());
        assert_eq!(why.is_some(), why_unassignable, "{address}: {why:?}");
    }
}
