//! Each eBPF program of the host alone: verdict, mark, packet, flows and counters. Runs in any kernel that lets root
//! load programs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    ops::Range,
};

use ebbtide_kernel::datapath::{HOST_PROGRAMS, key};
use ebbtide_layout::{DEFAULT_NIC_MARKS, HOST_MAC, HostHook};
use ebbtide_programs::{
    Bench, CLIENT, CLIENT6, FAR_POD, LOST, MARK, NODE, NODE6, OTHER, OTHER_POD, PASS, POD, POD6,
    REDIRECT, REPLY, THAT_MARK, THAT_NIC, THIS_NIC, ip,
    packets::{echo, flow, from_host, from_pod, tcp, udp},
    random,
};
use ebbtide_vpc::{
    random::Random,
    skip::{Need, skip},
};

/// Bits of a mark that are not Ebbtide's.
const OTHERS: u32 = 0xffff_c091;

/// Whether the kernel accepts test runs of packets that came in by a link; otherwise prints the reason.
fn takes_what_came_in(bench: &Bench) -> bool {
    let takes = bench.takes_passed_on("host_veth_egress", &udp((CLIENT, 5000), (POD, 53)));
    if !takes {
        let reason = "this kernel's BPF_PROG_TEST_RUN refuses an ingress_ifindex";
        skip(Need::Ingress, reason);
    }
    takes
}

#[test]
fn nothing_that_comes_in_by_a_nic_is_marked() {
    let bench = Bench::lent();
    for (name, packet) in [
        ("the node", tcp((CLIENT, 5000), (NODE, 30080))),
        ("the node's other NIC", udp((CLIENT, 5000), (OTHER, 53))),
        ("a pod", tcp((CLIENT, 5000), (POD, 80))),
        ("somebody else", tcp((CLIENT, 5000), ("10.9.9.9", 80))),
    ] {
        for mark in [0, OTHERS, THAT_MARK] {
            let outcome = bench.run("host_nic_ingress", &packet, mark);
            assert_eq!(outcome.verdict, PASS, "{name}");
            assert_eq!(outcome.mark, mark, "{name}");
            assert_eq!(outcome.packet, packet, "{name}");
        }
    }
    let counted = bench.counted_at_nic().hooks[HostHook::NicIngress as usize];
    assert_eq!((counted.seen, counted.marked, counted.passed), (9, 0, 9));
}

/// Opens a UDP socket at the first free port of these; nothing is sent to it.
fn held(address: impl Into<IpAddr>, mut ports: Range<u16>) -> (UdpSocket, u16) {
    let address = address.into();
    let bound = ports.find_map(|port| Some((UdpSocket::bind((address, port)).ok()?, port)));
    bound.expect("all of these ports are taken")
}

#[test]
fn where_filtering_is_strict_requests_are_marked_and_nothing_that_carries_another_packet() {
    let mut bench = Bench::lent();
    let (_socket, tunnel) = held(Ipv4Addr::UNSPECIFIED, 20_000..30_000);
    let (_socket, tunnel6) = held(Ipv6Addr::UNSPECIFIED, 20_000..30_000);
    // kube-proxy before 1.24 holds a socket for each node port.
    let (_socket, held_port) = held(Ipv4Addr::UNSPECIFIED, 30_000..32_768);
    let (_socket, held_port6) = held(Ipv6Addr::UNSPECIFIED, 30_000..32_768);
    let with_protocol = |protocol: u8| {
        let mut packet = udp((CLIENT, 5000), (NODE, 53));
        packet[14 + 9] = protocol;
        packet
    };
    let tunnels = [4, 41, 47, 50, 51, 94, 97, 98, 115, 137].map(with_protocol);
    let mut rows = vec![
        ("a connection", tcp((CLIENT, 5000), (NODE, 30080)), MARK),
        ("a datagram", udp((CLIENT, 5000), (NODE, 30053)), MARK),
        ("SCTP", with_protocol(132), MARK),
        ("a host's socket", udp((CLIENT, 5000), (NODE, tunnel)), 0),
        ("a held port", udp((CLIENT, 5000), (NODE, held_port)), MARK),
        ("an echo request", echo(CLIENT, NODE, true), MARK),
        ("a neighbour's", tcp((FAR_POD, 5000), (NODE, 30080)), 0),
        ("a pod's", tcp((CLIENT, 5000), (POD, 80)), 0),
        ("somebody else's", tcp((CLIENT, 5000), ("10.9.9.9", 80)), 0),
    ];
    rows.extend(tunnels.map(|packet| ("another packet inside", packet, 0)));
    let with_header = |header: u8| {
        let mut packet = udp((CLIENT6, 5000), (NODE6, 53));
        packet[14 + 6] = header;
        packet
    };
    let mut rows6 = vec![
        ("a connection", tcp((CLIENT6, 5000), (NODE6, 30080)), MARK),
        ("a datagram", udp((CLIENT6, 5000), (NODE6, 30053)), MARK),
        ("a host's socket", udp((CLIENT6, 5000), (NODE6, tunnel6)), 0),
        (
            "a held port",
            udp((CLIENT6, 5000), (NODE6, held_port6)),
            MARK,
        ),
        ("an echo request", echo(CLIENT6, NODE6, true), MARK),
        ("a pod's", tcp((CLIENT6, 5000), (POD6, 80)), 0),
    ];
    let tunnels = [4, 41, 47, 50, 97, 137].map(with_header);
    rows6.extend(tunnels.map(|packet| ("another packet inside", packet, 0)));
    for (v4, v6) in [(true, false), (false, true), (true, true), (false, false)] {
        bench.is_strict(v4, v6);
        let all = rows.iter().map(|row| (v4, row));
        for (is_strict, (name, packet, marked)) in all.chain(rows6.iter().map(|row| (v6, row))) {
            let outcome = bench.run("host_nic_ingress", packet, OTHERS);
            let marked = if is_strict { *marked } else { 0 };
            assert_eq!(outcome.verdict, PASS, "{name} {packet:02x?}");
            assert_eq!(outcome.mark, OTHERS | marked, "{name} {packet:02x?}");
            assert_eq!(outcome.packet, *packet, "{name} {packet:02x?}");
        }
    }
}

#[test]
fn a_request_carries_the_number_of_the_nic_it_came_in_by_and_its_reply_the_nics_mark() {
    let bench = Bench::lent();
    if !takes_what_came_in(&bench) {
        return;
    }
    let to_pod = |frame| from_host(frame, 0);
    for request in [
        to_pod(tcp((CLIENT, 5000), (POD, 80))),
        to_pod(udp((CLIENT6, 5000), (POD6, 80))),
    ] {
        for mark in [0, OTHERS, MARK] {
            // Packets that are sent here, or came out of a tunnel, whatever mark the outer packet had.
            let own = bench.run("host_veth_egress", &request, mark);
            assert_eq!((own.verdict, own.mark), (PASS, mark));
            assert_eq!(own.packet, request, "the node's own traffic");
            let outcome = bench.run_marked_and_passed_on("host_veth_egress", &request, mark);
            assert_eq!((outcome.verdict, outcome.mark), (PASS, mark));
            assert_eq!(outcome.packet, from_host(request.clone(), THAT_NIC));
        }
    }
    for reply in [
        tcp((POD, 80), (CLIENT, 5000)),
        udp((POD, 80), (CLIENT, 5000)),
    ] {
        for (nic, bits) in [(THIS_NIC, MARK), (THAT_NIC, THAT_MARK), (0, 0), (77, 0)] {
            let reply = from_pod(reply.clone(), nic);
            let outcome = bench.run("host_veth_ingress", &reply, OTHERS);
            assert_eq!(outcome.verdict, PASS);
            assert_eq!(outcome.mark, OTHERS | bits | REPLY, "{nic}");
            assert_eq!(outcome.packet, reply);
        }
    }
    assert_eq!(bench.flows(), [], "nothing is remembered");
}

#[test]
fn what_a_pod_sends_by_its_veth_without_being_asked_is_marked_as_forwarded() {
    let bench = Bench::lent();
    for (name, packet, mark) in [
        ("a pod", udp((POD6, 5000), (CLIENT6, 53)), REPLY),
        ("no pod of ours", udp(("10.9.9.9", 1), (CLIENT, 2)), 0),
    ] {
        let outcome = bench.run("host_veth_ingress", &packet, 0);
        assert_eq!((outcome.verdict, outcome.mark), (PASS, mark), "{name}");
    }
    assert_eq!(bench.flows(), []);
}

#[test]
fn answers_to_what_the_host_forwards_for_a_pod_are_redirected_into_the_host() {
    let far = ("180.17.16.11", 8080);
    let mut bench = Bench::lent();
    for (protocol, request, answer) in [
        (6, tcp((POD, 5000), far), tcp(far, (POD, 5000))),
        (17, udp((POD, 5000), far), udp(far, (POD, 5000))),
    ] {
        bench.reset();
        let key = flow((POD, 5000), far, protocol);
        let direct = bench.run("host_nic_ingress", &answer, 0);
        assert_eq!((direct.verdict, direct.mark), (PASS, 0), "nothing known");
        for (what, mark) in [("by the host-stack bypass", 0), ("a reply", MARK | REPLY)] {
            let sent = bench.run("host_nic_egress", &request, mark);
            assert_eq!(sent.verdict, PASS, "{what}");
            assert_eq!(bench.flows(), [], "{what}");
        }
        assert_eq!(bench.run("host_nic_egress", &request, REPLY).verdict, PASS);
        assert_eq!(bench.forwarded(), [key]);
        let redirected = bench.run("host_nic_ingress", &answer, 0);
        assert_eq!(redirected.verdict, REDIRECT);
        assert_eq!(redirected.packet[..6], HOST_MAC, "for the link itself");
        assert_eq!(redirected.packet[6..], answer[6..], "else as it was");
        assert_eq!(redirected.mark, DEFAULT_NIC_MARKS);
        // The pod uses the same ports without the host: no mark, so the answer is its own.
        assert_eq!(bench.run("host_nic_egress", &request, 0).verdict, PASS);
        assert_eq!(bench.flows(), []);
        assert_eq!(bench.run("host_nic_ingress", &answer, 0).verdict, PASS);
        let counted = bench.counted_at_nic().hooks[HostHook::NicIngress as usize];
        assert_eq!(counted.redirected, 1);
    }
}

#[test]
fn only_what_has_another_nics_address_is_sent_out_there() {
    let mut bench = Bench::lent();
    let other = udp((OTHER, 53), (CLIENT, 5000));
    if !takes_what_came_in(&bench) {
        return;
    }
    // Packets of the node itself: foreign marks may have led them here, and no route has. What a pod's veth brought, and the
    // host gave the node's address, answers a request by the other NIC, wherever routes lead it.
    for (mark, verdict, wrong) in [
        (OTHERS, PASS, 0),
        (0, REDIRECT, 1),
        (OTHERS | REPLY, REDIRECT, 1),
    ] {
        bench.reset();
        let own = bench.run("host_nic_egress", &other, mark);
        assert_eq!(own.verdict, verdict, "the node's own, {mark:#x}");
        assert_eq!(
            bench.counted_at_nic().wrong_nic,
            wrong,
            "the node's own, {mark:#x}"
        );
    }
    for (name, packet, verdict, wrong, passed) in [
        ("this NIC's", udp((NODE, 53), (CLIENT, 5000)), PASS, 0, 0),
        ("a far backend's answer", other.clone(), REDIRECT, 1, 0),
        ("no gateway", udp((LOST, 53), (CLIENT, 5000)), PASS, 0, 1),
        ("a group", udp((OTHER, 53), ("224.0.0.251", 53)), PASS, 0, 0),
        ("its own pod", tcp((POD, 80), (CLIENT, 5000)), PASS, 0, 0),
        (
            "other's pod",
            tcp((POD6, 80), (CLIENT6, 5000)),
            REDIRECT,
            0,
            0,
        ),
        ("nobody's", udp(("10.9.9.9", 1), (CLIENT, 2)), PASS, 0, 0),
    ] {
        bench.reset();
        let outcome = bench.run_marked_and_passed_on("host_nic_egress", &packet, OTHERS);
        assert_eq!(outcome.verdict, verdict, "{name}");
        // A packet with the node's own address needs its mark to be routed by the table of the NIC that it is
        // redirected to.
        let mark = if wrong > 0 { THAT_MARK | REPLY } else { 0 };
        assert_eq!(outcome.mark, OTHERS | mark, "{name}");
        assert_eq!(outcome.packet, packet, "{name}");
        let counted = bench.counted_at_nic();
        assert_eq!(counted.wrong_nic, wrong, "{name}");
        assert_eq!(counted.wrong_nic_passed, passed, "{name}");
        let redirected = u64::from(verdict == REDIRECT);
        assert_eq!(
            counted.hooks[HostHook::NicEgress as usize].redirected,
            redirected,
            "{name}"
        );
    }
}

#[test]
fn a_known_flow_is_not_written_again() {
    let bench = Bench::lent();
    let request = udp((POD, 5000), ("180.17.16.11", 53));
    for _ in 0..3 {
        let _outcome = bench.run("host_nic_egress", &request, REPLY);
    }
    let counted = bench.counted_at_nic().hooks[HostHook::NicEgress as usize];
    assert_eq!((counted.seen, counted.learned), (3, 1));
}

#[test]
fn a_packet_cut_off_anywhere_passes_and_teaches_nothing_untrue() {
    let bench = Bench::lent();
    for (whole, protocol) in [
        (udp((CLIENT6, 5000), (POD6, 53)), 17),
        (tcp((CLIENT6, 5000), (POD6, 53)), 6),
    ] {
        let known = flow((POD6, 53), (CLIENT6, 5000), protocol);
        // Newer kernels refuse test runs of frames that end within the IP header.
        for length in 14 + 40..whole.len() {
            for program in HOST_PROGRAMS {
                let outcome = bench.run(program.name, &whole[..length], THAT_MARK);
                assert_eq!(outcome.verdict, PASS, "{} at {length}", program.name);
                assert_eq!(outcome.packet, &whole[..length]);
            }
        }
        let flows = bench.forwarded().into_iter();
        let mut others = flows.filter(|key| *key != known && key.protocol == protocol);
        assert_eq!(others.next(), None);
    }
}

/// Whether a program may have this verdict on a packet; `known`: the packet belongs to the learned flow.
fn is_allowed(program: &str, packet: &[u8], verdict: u32, known: bool) -> bool {
    let of = |address: &str, from: bool| {
        random::addresses(packet).is_some_and(|(source, destination)| {
            ip(address) == if from { source } else { destination }
        })
    };
    match (program, verdict) {
        (_, PASS) => true,
        ("host_nic_ingress", REDIRECT) => known && of(POD, false),
        ("host_nic_egress", REDIRECT) => of(OTHER, true) || of(FAR_POD, true) || of(POD6, true),
        _ => false,
    }
}

#[test]
fn whatever_arrives_the_verdict_is_allowed_and_only_learned_flows_are_redirected() {
    let far = ("180.17.16.11", 8080);
    let whole = [
        udp((CLIENT, 5000), (NODE, 53)),
        udp(far, (POD, 5000)),
        udp((POD, 5000), far),
        udp((OTHER, 54), (CLIENT, 5000)),
        udp((POD6, 53), (CLIENT6, 5000)),
        udp((CLIENT6, 5000), (POD6, 53)),
        tcp((CLIENT, 5000), (POD, 80)),
        tcp((POD, 80), (CLIENT, 5000)),
        tcp((NODE, 80), (CLIENT, 5000)),
        echo(CLIENT, POD, true),
        echo(POD6, CLIENT6, false),
    ];
    let forwarded = flow((POD, 5000), far, 17);
    let mut random = Random::default();
    let mut bench = Bench::lent();
    for program in HOST_PROGRAMS {
        let name = program.name;
        bench.reset();
        let (mut ran, mut redirected) = (0, 0);
        for _ in 0..random::number() {
            let redirects = name == "host_nic_ingress";
            if redirects && ran % 1024 == 0 {
                bench.remember_forwarded(forwarded);
            }
            let packet = random::packet(&mut random, &whole);
            let mark = random.number() as u32;
            // A packet that came in has no mark of ours, unless other software set it.
            let Some(outcome) = bench.try_run(name, &packet, mark) else {
                continue;
            };
            ran += 1;
            let others = !DEFAULT_NIC_MARKS;
            assert_eq!(
                outcome.mark & others,
                mark & others,
                "{name}: {packet:02x?}"
            );
            let known = random::is_of_flow(&packet, &forwarded, true);
            assert!(
                is_allowed(name, &packet, outcome.verdict, known),
                "{name} answered {} to {packet:02x?}",
                outcome.verdict
            );
            if outcome.verdict == PASS {
                assert_eq!(outcome.packet, packet, "{name}");
            }
            redirected += u32::from(outcome.verdict == REDIRECT);
        }
        let number = random::number();
        assert!(
            ran > number / 2,
            "{name}: the kernel took {ran} of {number}"
        );
        let redirects = ["host_nic_ingress", "host_nic_egress"].contains(&name);
        assert_eq!(redirects, redirected > 0, "{name}");
        // Only flows of addresses with a table are learned.
        let pods = [POD, POD6, OTHER_POD].map(|address| key(ip(address)));
        let flows = bench.forwarded();
        assert!(flows.iter().all(|key| pods.contains(&key.local)));
    }
}
