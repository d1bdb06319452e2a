//! Pods do not affect each other: spoofed addresses, and floods.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ebbtide_kernel::netlink::model::Direction;
use ebbtide_layout::{BUCKETS_PER_POD, FLOWS_PER_BUCKET};
use ebbtide_programs::{
    Bench, CLIENT, CLIENT6, NODE, NODE6, OTHER_POD, PASS, POD, POD_NUMBER, POD6, REDIRECT,
    THAT_NIC,
    links::Pair,
    packets::{
        arp, between_macs, echo, extended, flow, fragments, in_vlan, neighbour, tcp, udp,
        with_ethertype, with_protocol, wrapped,
    },
};
use ebbtide_vpc::random::Random;

const IP: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;

/// The MAC of the test's pod, as in the bench.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// An address that the programs do not know.
const GATEWAY: &str = "172.31.16.1";

/// The default number of new flows in the flood.
const FLOOD: u32 = 20_000;

/// Returns frames, each with the protocol that the sender's socket declares, and whether it may pass.
fn frames() -> Vec<(&'static str, Vec<u8>, u16, bool)> {
    let to = (CLIENT, 2);
    vec![
        ("its own", udp((POD, 1), to), IP, true),
        ("its own, TCP", tcp((POD, 1), to), IP, true),
        ("its own, IPv6", udp((POD6, 1), (CLIENT6, 2)), IPV6, true),
        // An unknown address may be a gateway's.
        (
            "link-local",
            udp(("fe80::1", 1), ("ff02::2", 2)),
            IPV6,
            false,
        ),
        (
            "none yet, IPv6",
            echo("::", "ff02::1:ff00:4", true),
            IPV6,
            false,
        ),
        (
            "none yet, DHCPv6",
            udp(("fe80::4", 546), ("ff02::1:2", 547)),
            IPV6,
            true,
        ),
        (
            "none yet, to a host",
            udp(("0.0.0.0", 68), (CLIENT, 67)),
            IP,
            false,
        ),
        (
            "none yet, DHCP",
            udp(("0.0.0.0", 68), ("255.255.255.255", 67)),
            IP,
            true,
        ),
        ("no IP", vec![0xff; 60], ARP, false),
        ("in a VLAN", in_vlan(udp((POD, 1), to), 7), VLAN, false),
        (
            "with a priority, twice",
            wrapped(udp((OTHER_POD, 1), to), &[(VLAN, 0), (VLAN, 0)]),
            VLAN,
            false,
        ),
        ("nobody's", tcp(("10.9.9.9", 1), to), IP, false),
        (
            "nobody's, IPv6",
            echo("2001:db8::1", CLIENT6, true),
            IPV6,
            false,
        ),
        ("another pod's", udp((OTHER_POD, 1), to), IP, false),
        ("the node's", udp((NODE, 1), to), IP, false),
        (
            "mapped into IPv6",
            udp(("::ffff:10.9.9.9", 1), (CLIENT6, 2)),
            IPV6,
            false,
        ),
    ]
    .into_iter()
    .chain(to_neighbours())
    .chain(in_tunnels())
    .collect()
}

/// Returns messages of neighbour discovery: about link-layer addresses, routers and assignable addresses.
fn to_neighbours() -> Vec<(&'static str, Vec<u8>, u16, bool)> {
    let all = "ff02::1";
    let about = |kind, from, target| neighbour(kind, from, all, target, MAC);
    vec![
        ("ARP, its own", arp(2, (MAC, POD), POD), ARP, true),
        ("ARP, asks", arp(1, (MAC, POD), NODE), ARP, true),
        (
            "ARP, is mine free",
            arp(1, (MAC, "0.0.0.0"), POD),
            ARP,
            true,
        ),
        (
            "ARP, is his free",
            arp(1, (MAC, "0.0.0.0"), NODE),
            ARP,
            false,
        ),
        (
            "ARP, another pod's",
            arp(2, (MAC, OTHER_POD), OTHER_POD),
            ARP,
            false,
        ),
        ("ARP, the node's", arp(1, (MAC, NODE), CLIENT), ARP, false),
        (
            "ARP, the gateway's",
            arp(1, (MAC, GATEWAY), GATEWAY),
            ARP,
            false,
        ),
        (
            "ARP, another's frame",
            between_macs(arp(2, (MAC, POD), POD), [2, 0, 0, 0, 0, 9], [0xff; 6]),
            ARP,
            false,
        ),
        ("ARP, of another kind", arp(3, (MAC, POD), POD), ARP, false),
        (
            "ARP, cut",
            arp(2, (MAC, POD), POD)[..40].to_vec(),
            ARP,
            false,
        ),
        ("ND, its own", about(136, POD6, POD6), IPV6, true),
        ("ND, asks", about(135, POD6, NODE6), IPV6, true),
        ("ND, is mine free", about(135, "::", POD6), IPV6, true),
        ("ND, is his free", about(135, "::", NODE6), IPV6, false),
        ("ND, another's", about(136, POD6, NODE6), IPV6, false),
        (
            "ND, the gateway's",
            about(136, "fe80::1", "fe80::1"),
            IPV6,
            false,
        ),
        (
            "ND, asks as the gateway",
            about(135, "fe80::1", POD6),
            IPV6,
            false,
        ),
        (
            "ND, behind a header",
            extended(&about(136, POD6, NODE6), &[60]),
            IPV6,
            false,
        ),
        (
            "ND, behind too many headers",
            extended(&about(136, POD6, NODE6), &[60; 9]),
            IPV6,
            false,
        ),
        (
            "ND, in fragments",
            fragments(&about(136, POD6, NODE6), 7)[0].clone(),
            IPV6,
            false,
        ),
        ("a router", about(134, "fe80::1", POD6), IPV6, false),
        ("a router, its own", about(134, POD6, POD6), IPV6, false),
        ("a redirect", about(137, "fe80::1", POD6), IPV6, false),
        ("for routers", about(133, "::", POD6), IPV6, true),
        ("for a group", about(143, "::", POD6), IPV6, true),
        (
            "for a group, link-local",
            about(143, "fe80::4", POD6),
            IPV6,
            true,
        ),
    ]
}

/// Returns packets that the node would decapsulate.
fn in_tunnels() -> Vec<(&'static str, Vec<u8>, u16, bool)> {
    let to_node = |protocol| with_protocol(udp((POD, 1), (NODE, 2)), protocol);
    let to_node6 = |protocol| with_protocol(udp((POD6, 1), (NODE6, 2)), protocol);
    let away = |protocol| with_protocol(udp((POD, 1), (CLIENT, 2)), protocol);
    vec![
        ("IPIP to the node", to_node(4), IP, false),
        ("6in4 to the node", to_node(41), IP, false),
        ("GRE to the node", to_node(47), IP, false),
        ("4in6 to the node", to_node6(4), IPV6, false),
        ("6in6 to the node", to_node6(41), IPV6, false),
        ("GRE over IPv6 to the node", to_node6(47), IPV6, false),
        (
            "6in6 to the node, behind a header",
            extended(&to_node6(41), &[60]),
            IPV6,
            false,
        ),
        ("IPIP elsewhere", away(4), IP, true),
        ("GRE elsewhere", away(47), IP, true),
        ("ESP to the node", to_node(50), IP, true),
    ]
}

#[test]
fn a_pod_sends_with_its_own_addresses_only() -> Result<()> {
    let bench = Bench::new();
    let spoofed = || {
        let spoofed = bench.spoofed(POD_NUMBER);
        (spoofed.by_nic, spoofed.by_veth)
    };
    // It was dropped, and nothing else was.
    let wait_for = |expected, name: &str| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while spoofed() != expected && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        ensure!(
            spoofed() == expected,
            "{name}: {:?} is not {expected:?}",
            spoofed()
        );
        Ok(())
    };
    let bad = udp(("10.9.9.9", 1), (CLIENT, 2));
    let mut expected = (0, 0);
    for (program, direction) in [
        ("nic_egress", Direction::Egress),
        ("host_veth_ingress", Direction::Ingress),
    ] {
        let pair = Pair::new(&bench, program, direction, Some(POD_NUMBER))?;
        let is_nic = direction == Direction::Egress;
        let mut frames = frames();
        if is_nic {
            // The kernel uses the socket's protocol, which only here can differ from the frame's.
            let mut disguised = bad.clone();
            disguised[12..14].copy_from_slice(&ARP.to_be_bytes());
            frames.push(("a frame in disguise", disguised, IP, false));
        }
        for (name, frame, ethertype, passes) in frames {
            pair.send(&frame, ethertype)?;
            if passes {
                // The next packet is counted, and none before it.
                pair.send(&bad, IP)?;
            }
            if is_nic {
                expected.0 += 1;
            } else {
                expected.1 += 1;
            }
            wait_for(expected, &format!("{program}: {name}"))?;
        }
        // After another plugin, or with the guard off.
        let unguarded = Pair::new(&bench, program, direction, None)?;
        unguarded.send(&bad, IP)?;
        pair.send(&bad, IP)?;
        if is_nic {
            expected.0 += 1;
        } else {
            expected.1 += 1;
        }
        wait_for(expected, &format!("{program}: unguarded"))?;
    }
    Ok(())
}

#[test]
fn a_flood_to_one_pod_breaks_no_flow_of_another_and_none_of_its_own_that_is_alive() {
    let number = std::env::var("EBBTIDE_FLOOD")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(FLOOD);
    let client = (CLIENT, 5000);
    let mut bench = Bench::new();
    let far = ("180.17.16.11", 8080);
    bench.remember_of_other(flow((OTHER_POD, 53), client, 17), THAT_NIC);
    bench.remember(flow((POD, 53), client, 17), THAT_NIC);
    bench.remember_forwarded(flow((POD, 5000), far, 6));
    let redirected = |pod: &str| {
        let reply = udp((pod, 53), client);
        bench.run("nic_egress", &reply, 0).verdict == REDIRECT
    };
    let reversed = || {
        let answer = tcp(far, (POD, 5000));
        bench.run("host_nic_ingress", &answer, 0).verdict == REDIRECT
    };
    let (mut alive, mut connected) = (0, 0);
    for source in 0..number {
        let [_, a, b, c] = source.to_be_bytes();
        let address = format!("100.{a}.{b}.{c}");
        let outcome = bench.run("veth_ingress", &udp((&address, 1), (POD, 53)), 0);
        assert_eq!(outcome.verdict, PASS);
        let syn = tcp((&address, 1), (POD, 80));
        let outcome = bench.run("veth_ingress", &syn, 0);
        assert_eq!(outcome.verdict, PASS);
        // A flow of the flooded pod, and one that the host forwards for it, with a packet now and then.
        if source % 256 == 0 {
            alive += u32::from(redirected(POD));
            connected += u32::from(reversed());
        }
    }
    let asked = number.div_ceil(256);
    println!(
        "{number} sources: of {asked} replies of the flooded pod's live UDP flow {alive} were \
         redirected, of its forwarded connection's answers {connected}; \
         {} of its flows are remembered",
        bench.remembered().len()
    );
    assert!(redirected(OTHER_POD), "another pod's flow");
    let most = BUCKETS_PER_POD as usize * FLOWS_PER_BUCKET + 1;
    assert!(
        bench.remembered().len() <= most,
        "the pod's share of the memory"
    );
    assert_eq!((alive, connected), (asked, asked));
}

/// Frames of an l2 interface reach switches unchanged, so they must have the NIC's link-layer address and must not be
/// those of a DHCP server.
#[test]
fn a_pod_on_the_link_sends_with_its_nic_s_link_layer_address_and_serves_no_dhcp() -> Result<()> {
    let mut bench = Bench::new();
    bench.is_l2_with(MAC);
    let own = |frame| between_macs(frame, MAC, [0xff; 6]);
    let away = |frame| between_macs(frame, [2, 0, 0, 0, 0, 9], [0xff; 6]);
    let to = (CLIENT, 2);
    let rows = [
        ("its own", own(udp((POD, 1), to)), IP, true),
        ("its own, TCP", own(tcp((POD, 1), to)), IP, true),
        (
            "its own, IPv6",
            own(udp((POD6, 1), (CLIENT6, 2))),
            IPV6,
            true,
        ),
        ("another's frame", away(udp((POD, 1), to)), IP, false),
        ("another's frame, TCP", away(tcp((POD, 1), to)), IP, false),
        (
            "another's frame, IPv6",
            away(udp((POD6, 1), (CLIENT6, 2))),
            IPV6,
            false,
        ),
        (
            "ARP in another's name",
            arp(2, ([2, 0, 0, 0, 0, 9], POD), POD),
            ARP,
            false,
        ),
        (
            "a DHCP server",
            own(udp((POD, 67), ("255.255.255.255", 68))),
            IP,
            false,
        ),
        (
            "a DHCPv6 server",
            own(udp((POD6, 547), (CLIENT6, 546))),
            IPV6,
            false,
        ),
        ("a DHCP client", own(udp((POD, 68), (CLIENT, 67))), IP, true),
    ];
    let pair = Pair::new(&bench, "nic_egress", Direction::Egress, Some(POD_NUMBER))?;
    for (name, frame, ethertype, passes) in rows {
        let before = bench.spoofed(POD_NUMBER).by_nic;
        pair.send(&frame, ethertype)?;
        let counted = bench.spoofed(POD_NUMBER).by_nic - before;
        ensure!(counted == u64::from(!passes), "{name}: {counted} dropped");
    }
    Ok(())
}

/// EtherTypes of encapsulations: tags (802.1Q, 802.1ad, older ones), MPLS, PPPoE, MACsec, HSR, PRP, NSH, transparent
/// bridging, B.A.T.M.A.N., EtherCAT, the loopback test, RARP, ARP, IP itself, and lengths of LLC.
const AROUND: [u16; 24] = [
    0x8100, 0x8100, 0x8100, 0x88a8, 0x88a8, 0x9100, 0x9200, 0x8847, 0x8848, 0x8863, 0x8864, 0x88e5,
    0x892f, 0x88fb, 0x894f, 0x6558, 0x4305, 0x88a4, 0x9000, 0x8035, 0x0806, 0x0800, 0x86dd, 0x0030,
];

/// In whatever encapsulation a packet has a foreign address, the node's own sockets do not receive it. Without the
/// guard they receive some, which shows that the guard is tested.
#[test]
fn nothing_that_a_stack_unwraps_is_delivered_with_anothers_address() -> Result<()> {
    let bench = Bench::new();
    let guarded = Victim::new(&bench, Some(POD_NUMBER))?;
    let unguarded = Victim::new(&bench, None)?;
    let mut rows: Vec<(String, Vec<u8>)> = Vec::new();
    let spoofed = [
        udp((CLIENT, 1), (NODE, Victim::PORT)),
        udp((CLIENT6, 1), (NODE6, Victim::PORT)),
    ];
    let tags = [0x8100, 0x88a8];
    for frame in &spoofed {
        for depth in 0..4_u32 {
            for kinds in 0..1_usize << depth {
                for id in [0, 0xe000, 7] {
                    let headers: Vec<_> =
                        (0..depth).map(|at| (tags[kinds >> at & 1], id)).collect();
                    rows.push((format!("{headers:04x?}"), wrapped(frame.clone(), &headers)));
                }
            }
        }
        for kind in AROUND {
            rows.push((
                format!("in {kind:04x}"),
                wrapped(frame.clone(), &[(kind, 0)]),
            ));
            rows.push((
                format!("as {kind:04x}"),
                with_ethertype(frame.clone(), kind),
            ));
        }
    }
    let mut random = Random::default();
    let number = std::env::var("EBBTIDE_RANDOM_PACKETS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2000);
    for _ in 0..number {
        let mut frame = spoofed[random.index(spoofed.len())].clone();
        // Options, lengths and protocols, all of them slightly wrong.
        for _ in 0..random.below(3) {
            let at = 14 + random.index(10);
            frame[at] = random.below(256) as u8;
        }
        let headers: Vec<_> = (0..random.below(5))
            .map(|_| {
                let kind = AROUND[random.index(AROUND.len())];
                (kind, (random.below(8) as u16) << 13)
            })
            .collect();
        rows.push((format!("random {headers:04x?}"), wrapped(frame, &headers)));
    }
    let mut delivered = 0;
    for (name, frame) in &rows {
        let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
        delivered += u32::from(unguarded.gets(frame, ethertype)?);
        ensure!(!guarded.gets(frame, ethertype)?, "{name} was delivered");
    }
    println!(
        "{} frames, {delivered} delivered without the guard",
        rows.len()
    );
    // At least the plain packet, and those with one to three priority tags, of each family.
    ensure!(
        delivered >= 16,
        "only {delivered} were delivered without the guard"
    );
    Ok(())
}

/// The node at its end of the pair, with a socket that receives packets for it.
struct Victim {
    pair: Pair,
    sockets: [UdpSocket; 2],
}

impl Victim {
    const PORT: u16 = 4000;

    fn new(bench: &Bench, only_from: Option<u16>) -> Result<Self> {
        let pair = Pair::new(bench, "host_veth_ingress", Direction::Ingress, only_from)?;
        let sockets = pair.near_with(&[NODE, NODE6], || {
            let open = |address: &str| -> Result<UdpSocket> {
                let socket = UdpSocket::bind((address, Self::PORT))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            Ok([open(NODE)?, open(NODE6)?])
        })?;
        Ok(Self { pair, sockets })
    }

    /// Whether a frame reaches a socket. A veth's other end receives it before the send call returns, or soon after.
    fn gets(&self, frame: &[u8], ethertype: u16) -> Result<bool> {
        let frame = between_macs(frame.to_vec(), MAC, [2, 0, 0, 0, 0, 2]);
        self.pair.send(&frame, ethertype)?;
        Ok(self.sockets.iter().any(|socket| {
            let mut got = false;
            while socket.recv(&mut [0; 64]).is_ok() {
                got = true;
            }
            got
        }))
    }
}
