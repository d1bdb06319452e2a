//! Each eBPF program of the pod alone: verdict, mark, packet, flow table and counters. Runs in any kernel that lets
//! root load programs.

use ebbtide_layout::{
    DEFAULT_HOST_BYPASS_MARK, DEFAULT_MARK, DEFAULT_POD_NICS, HOST_BYPASS_MAC, HOST_MAC, Hook,
    POD_MAC, RECENT_SECONDS,
};
use ebbtide_programs::{
    Bench, CLIENT, CLIENT6, FAR_POD, NODE, OTHER_POD, OTHER_POD6, Outcome, PASS, POD, POD6,
    REDIRECT, THAT_NIC,
    packets::{ECHO_ID, echo, flow, from_host, from_pod, tcp, udp, with_flags},
    random,
};
use ebbtide_vpc::{
    random::Random,
    skip::{Need, skip},
};

#[test]
fn what_comes_in_by_the_veth_is_marked_with_our_bit_and_others_bits_stay() {
    let bench = Bench::lent();
    for packet in [
        tcp((CLIENT, 5000), (POD, 80)),
        udp((CLIENT6, 5000), (POD6, 53)),
        echo(CLIENT, POD, true),
    ] {
        for others in [0, 0x4000, 0xffff_0539] {
            let outcome = bench.run("veth_ingress", &packet, others);
            assert_eq!(outcome.verdict, PASS);
            assert_eq!(outcome.mark, others | DEFAULT_MARK);
            assert_eq!(outcome.packet, packet, "the packet itself is not changed");
        }
    }
}

#[test]
fn the_number_of_the_nic_is_in_the_mark_of_what_the_host_sends_by_the_veth() {
    let bench = Bench::lent();
    for (name, packet) in [
        ("tcp", tcp((CLIENT, 5000), (POD, 80))),
        ("udp", udp((CLIENT6, 5000), (POD6, 53))),
    ] {
        for (nic, bits) in [(0, 0), (1, 0x0100_0000), (15, 0x0f00_0000), (16, 0)] {
            let packet = from_host(packet.clone(), nic);
            let outcome = bench.run("veth_ingress", &packet, THEIRS);
            assert_eq!(outcome.mark, THEIRS | DEFAULT_MARK | bits, "{name}, {nic}");
        }
        let others = bench.run("veth_ingress", &from_pod(packet, 1), 0);
        assert_eq!(others.mark, DEFAULT_MARK, "{name}, another's MAC");
    }
}

#[test]
fn what_has_the_mark_leaves_by_the_veth_with_the_number_of_its_nic() {
    let mut bench = Bench::lent();
    let rows = [
        ("TCP", with_flags(tcp((POD, 80), (CLIENT, 5000)), ACK)),
        ("IPv6", with_flags(tcp((POD6, 80), (CLIENT6, 5000)), ACK)),
        ("a reset", with_flags(tcp((POD, 80), (CLIENT, 5000)), RST)),
        ("an echo reply", echo(POD, CLIENT, false)),
        (
            "UDP, with a mark of its own",
            udp((POD, 53), (CLIENT, 5000)),
        ),
    ];
    for is_l3 in [true, false] {
        bench.is_l3(is_l3);
        for (name, packet) in &rows {
            for (mark, nic) in [(0, 0), (0x0200_0000, 2), (0x0f00_0000, 15)] {
                let outcome = bench.run("nic_egress", packet, THEIRS | DEFAULT_MARK | mark);
                assert_eq!(outcome.verdict, REDIRECT, "{name}");
                let sent = from_pod(packet.clone(), nic);
                assert_eq!(outcome.packet[6..], sent[6..], "{name}, {nic}");
                assert_eq!(outcome.packet[..6], HOST_MAC, "{name}");
            }
            let unmarked = bench.run("nic_egress", packet, THEIRS | 0x0f00_0000);
            assert_eq!(unmarked.verdict, PASS, "{name}");
        }
        assert_eq!(bench.remembered(), [], "nothing is remembered for it");
    }
    let forwarded = with_flags(tcp((POD, 80), (CLIENT, 5000)), ACK);
    if bench.takes_passed_on("nic_egress", &forwarded) {
        let outcome = bench.run_marked_and_passed_on("nic_egress", &forwarded, DEFAULT_MARK);
        assert_eq!(outcome.verdict, PASS, "the mark is that of its request");
    } else {
        let reason = "BPF_PROG_TEST_RUN refuses an ingress_ifindex in its context";
        skip(Need::Ingress, reason);
    }
}

#[test]
fn tcp_is_not_remembered_and_everything_else_is() {
    let mut bench = Bench::lent();
    for (name, packet, expected) in [
        ("tcp", tcp((CLIENT, 5000), (POD, 80)), None),
        ("tcp6", tcp((CLIENT6, 5000), (POD6, 80)), None),
        (
            "udp",
            udp((CLIENT, 5000), (POD, 53)),
            Some(flow((POD, 53), (CLIENT, 5000), 17)),
        ),
        (
            "udp6",
            udp((CLIENT6, 5000), (POD6, 53)),
            Some(flow((POD6, 53), (CLIENT6, 5000), 17)),
        ),
        (
            "echo request",
            echo(CLIENT, POD, true),
            Some(flow((POD, ECHO_ID), (CLIENT, 0), 1)),
        ),
        (
            "echo request, IPv6",
            echo(CLIENT6, POD6, true),
            Some(flow((POD6, ECHO_ID), (CLIENT6, 0), 58)),
        ),
        ("echo reply", echo(CLIENT, POD, false), None),
    ] {
        bench.reset();
        let _outcome = bench.run("veth_ingress", &from_host(packet, THAT_NIC), 0);
        let expected: Vec<_> = expected.map(|flow| (flow, THAT_NIC)).into_iter().collect();
        assert_eq!(bench.remembered(), expected, "{name}");
        let pod = if name.ends_with('6') { POD6 } else { POD };
        let counted = bench.counted(pod, Hook::VethIngress);
        assert_eq!(counted.seen, counted.marked, "{name}");
        assert_eq!(counted.learned, expected.len() as u64, "{name}");
    }
}

#[test]
fn a_known_flow_is_not_written_again() {
    let bench = Bench::lent();
    let packet = udp((CLIENT, 5000), (POD, 53));
    for _ in 0..3 {
        let _outcome = bench.run("veth_ingress", &packet, 0);
    }
    let counted = bench.counted(POD, Hook::VethIngress);
    assert_eq!((counted.seen, counted.learned), (3, 1));
}

#[test]
fn a_reply_of_a_remembered_flow_leaves_by_the_way_it_came_in() {
    let mut bench = Bench::lent();
    for (name, reply, key, pod) in [
        (
            "udp",
            udp((POD, 53), (CLIENT, 5000)),
            flow((POD, 53), (CLIENT, 5000), 17),
            POD,
        ),
        (
            "udp6",
            udp((POD6, 53), (CLIENT6, 5000)),
            flow((POD6, 53), (CLIENT6, 5000), 17),
            POD6,
        ),
        (
            "echo reply",
            echo(POD, CLIENT, false),
            flow((POD, ECHO_ID), (CLIENT, 0), 1),
            POD,
        ),
    ] {
        bench.reset();
        bench.remember(key, THAT_NIC);
        let outcome = bench.run("nic_egress", &reply, 0);
        assert_eq!(outcome.verdict, REDIRECT, "{name}");
        assert_eq!(outcome.packet[..6], HOST_MAC, "{name}: to the host's end");
        let sent = from_pod(reply.clone(), THAT_NIC);
        assert_eq!(outcome.packet[6..12], sent[6..12], "{name}: by that NIC");
        assert_eq!(outcome.packet[12..], reply[12..], "{name}: else as it was");
        assert_eq!(bench.counted(pod, Hook::NicEgress).redirected, 1, "{name}");
    }
}

#[test]
fn nothing_else_is_redirected() {
    let known = flow((POD, 53), (CLIENT, 5000), 17);
    let mut bench = Bench::lent();
    for (name, packet) in [
        ("another client port", udp((POD, 53), (CLIENT, 5001))),
        ("another server port", udp((POD, 54), (CLIENT, 5000))),
        ("another client", udp((POD, 53), ("198.51.100.8", 5000))),
        ("another pod", udp(("172.31.16.5", 53), (CLIENT, 5000))),
        ("tcp on the same ports", tcp((POD, 53), (CLIENT, 5000))),
        ("the pod's own ping", echo(POD, CLIENT, true)),
        ("the other family", udp((POD6, 53), (CLIENT6, 5000))),
    ] {
        bench.reset();
        bench.remember(known, THAT_NIC);
        let outcome = bench.run("nic_egress", &packet, 0);
        assert_eq!(outcome.verdict, PASS, "{name}");
        assert_eq!(outcome.packet, packet, "{name}");
        assert_eq!(outcome.mark, 0, "{name}");
    }
}

#[test]
fn the_last_way_in_wins() {
    let mut bench = Bench::lent();
    let key = flow((POD, 53), (CLIENT, 5000), 17);
    bench.remember(key, THAT_NIC);
    let direct = udp((CLIENT, 5000), (POD, 53));
    let reply = udp((POD, 53), (CLIENT, 5000));
    // In l2 nothing is between the interface and the wire.
    bench.is_l3(false);
    assert_eq!(bench.run("nic_ingress", &direct, 0).verdict, PASS);
    assert_eq!(bench.remembered(), []);
    assert_eq!(bench.run("nic_egress", &reply, 0).verdict, PASS);
    let _outcome = bench.run("veth_ingress", &direct, 0);
    assert_eq!(bench.remembered(), [(key, 0)], "and back again");
}

/// Returns the source address of a redirected frame, which is one of the two of the host's end.
fn sender(packet: &[u8]) -> &[u8] {
    &packet[6..12]
}

#[test]
fn in_l3_replies_go_past_a_host_that_knows_their_flow_by_the_other_way_in() {
    let mut bench = Bench::lent();
    for (client, pod) in [((CLIENT, 5000), (POD, 53)), ((CLIENT6, 5000), (POD6, 53))] {
        bench.reset();
        let (request, reply) = (udp(client, pod), udp(pod, client));
        bench.remember(flow(pod, client, 17), 0);
        let outcome = bench.run("nic_egress", &reply, 0);
        assert_eq!(
            (outcome.verdict, sender(&outcome.packet)),
            (REDIRECT, &POD_MAC[..])
        );
        assert_eq!(bench.run("nic_ingress", &request, 0).verdict, PASS);
        let outcome = bench.run("nic_egress", &reply, 0);
        let past = (REDIRECT, &HOST_BYPASS_MAC[..]);
        assert_eq!((outcome.verdict, sender(&outcome.packet)), past);
        // The host's end sends it out by the NIC, without a mark that another program would match.
        let outcome = bench.run("host_veth_ingress", &outcome.packet, 0);
        assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, 0));
        let _outcome = bench.run("veth_ingress", &request, 0);
        assert_eq!(bench.remembered(), [(flow(pod, client, 17), 0)]);
        // No flow is known for another port.
        let other = udp(pod, (client.0, 5001));
        assert_eq!(bench.run("nic_egress", &other, 0).verdict, PASS);
    }
}

/// Who may send to a pod directly, and the program that sees it.
const DIRECT: [(&str, &str); 4] = [
    (CLIENT, "host_nic_ingress"),
    (CLIENT6, "host_nic_ingress"),
    (OTHER_POD, "nic_egress"),
    (OTHER_POD6, "nic_egress"),
];

/// Returns the pod's address of the family of `other`.
fn pod_of(other: &str) -> &'static str {
    if other.contains(':') { POD6 } else { POD }
}

#[test]
fn the_nic_and_the_pods_beside_it_see_that_a_flow_comes_directly_now() {
    let mut bench = Bench::lent();
    for is_l3 in [false, true] {
        for (who, program) in DIRECT {
            let context = format!("{who} by {program}, l3: {is_l3}");
            bench.reset();
            bench.is_followed(is_l3);
            let (client, pod) = ((who, 5000), (pod_of(who), 53));
            let (request, reply) = (udp(client, pod), udp(pod, client));
            let _came = bench.run("veth_ingress", &request, 0);
            let by_veth = bench.run("nic_egress", &reply, 0);
            assert_eq!(by_veth.verdict, REDIRECT, "{context}: first by the veth");
            let other = udp((who, 5001), pod);
            assert_eq!(bench.run(program, &other, 0).verdict, PASS, "{context}");
            let by_veth = bench.run("nic_egress", &reply, 0);
            assert_eq!(
                by_veth.verdict, REDIRECT,
                "{context}: another's changes nothing"
            );
            assert_eq!(
                bench.run(program, &request, THEIRS).mark,
                THEIRS,
                "{context}"
            );
            let direct = bench.run("nic_egress", &reply, 0);
            // What stays on the node does not pass its netfilter.
            let expected = if is_l3 && program == "host_nic_ingress" {
                REDIRECT
            } else {
                PASS
            };
            assert_eq!(direct.verdict, expected, "{context}: then directly");
            if expected == REDIRECT {
                assert_eq!(sender(&direct.packet), HOST_BYPASS_MAC, "{context}");
            }
            let _came = bench.run("veth_ingress", &request, 0);
            let back = bench.run("nic_egress", &reply, 0);
            assert_eq!(
                (back.verdict, sender(&back.packet)),
                (REDIRECT, &POD_MAC[..]),
                "{context}: and back again"
            );
        }
    }
}

#[test]
fn what_the_nic_sees_of_tcp_that_came_by_the_veth_of_late_is_answered_past_the_host() {
    let mut bench = Bench::lent();
    for client in [(CLIENT, 5000), (CLIENT6, 5000)] {
        let pod = (pod_of(client.0), 80);
        let sends = |bench: &Bench, flags| {
            let packet = with_flags(tcp(pod, client), flags);
            let outcome = bench.run("nic_egress", &packet, 0);
            let is_past = sender(&outcome.packet) == HOST_BYPASS_MAC;
            assert_eq!(
                outcome.verdict == REDIRECT,
                is_past,
                "{flags:#x}: never by the veth"
            );
            is_past
        };
        for (name, is_l3, by_veth, expected) in [
            ("l3", true, true, true),
            ("l3, a fresh one", true, false, false),
            ("l2", false, true, false),
        ] {
            let context = format!("{client:?}, {name}");
            bench.reset();
            bench.is_followed(is_l3);
            if by_veth {
                let _came = bench.run("veth_ingress", &tcp(client, pod), 0);
            }
            assert!(
                !sends(&bench, ACK),
                "{context}: data of an older connection"
            );
            let _came = bench.run("host_nic_ingress", &tcp(client, pod), 0);
            assert_eq!(
                sends(&bench, RST | ACK),
                expected,
                "{context}: nobody listens"
            );
            assert_eq!(
                bench.remembered(),
                [],
                "{context}: a refusal is not remembered"
            );
            assert_eq!(sends(&bench, SYN | ACK), expected, "{context}: accepted");
            assert_eq!(sends(&bench, SYN | ACK), expected, "{context}: once more");
            assert_eq!(sends(&bench, ACK), expected, "{context}: its data");
            assert_eq!(sends(&bench, FIN | ACK), expected, "{context}: its end");
            // Of another one, which the veth brings, the socket has the mark.
            let _came = bench.run("veth_ingress", &tcp(client, pod), 0);
            let again = with_flags(tcp(pod, client), SYN | ACK);
            let outcome = bench.run("nic_egress", &again, DEFAULT_MARK);
            assert_eq!(
                (outcome.verdict, sender(&outcome.packet)),
                (REDIRECT, &POD_MAC[..]),
                "{context}: by the veth again"
            );
        }
    }
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// A bit of other software.
const THEIRS: u32 = 0x4000;

#[test]
fn in_l3_a_tcp_connection_that_came_by_the_veth_of_late_is_answered_past_the_host() {
    let mut bench = Bench::lent();
    for (client, pod) in [((CLIENT, 5000), (POD, 80)), ((CLIENT6, 5000), (POD6, 80))] {
        for (name, came, expected) in [
            ("nothing", None, false),
            ("its SYN", Some((client, SYN)), true),
            ("its end", Some((client, FIN | ACK)), true),
            ("its reset", Some((client, RST)), true),
            ("its data", Some((client, ACK)), false),
            ("another's SYN", Some(((client.0, 5001), SYN)), false),
        ] {
            bench.reset();
            if let Some((from, flags)) = came {
                let packet = with_flags(tcp(from, pod), flags);
                let outcome = bench.run("veth_ingress", &packet, THEIRS);
                assert_eq!(outcome.mark, THEIRS | DEFAULT_MARK, "{name}");
            }
            let syn = bench.run("nic_ingress", &tcp(client, pod), THEIRS);
            assert_eq!(syn.verdict, PASS, "{name}");
            let mark = if expected {
                DEFAULT_HOST_BYPASS_MARK
            } else {
                0
            };
            assert_eq!(syn.mark, THEIRS | mark, "{name} came by the veth");
            assert_eq!(bench.remembered(), [], "{name}: TCP has no flow table");
            // Only packets that begin a connection are marked: the socket inherits the mark.
            for flags in [ACK, SYN | ACK, FIN | ACK, RST] {
                let packet = with_flags(tcp(client, pod), flags);
                let outcome = bench.run("nic_ingress", &packet, THEIRS);
                assert_eq!(outcome.mark, THEIRS, "{name}: {flags:#x}");
            }
            let reply = with_flags(tcp(pod, client), SYN | ACK);
            let outcome = bench.run("nic_egress", &reply, syn.mark);
            assert_eq!(outcome.verdict == REDIRECT, expected, "{name}");
            if expected {
                assert_eq!(sender(&outcome.packet), HOST_BYPASS_MAC, "{name}");
            }
        }
    }
}

#[test]
fn connections_are_taken_for_each_other_only_where_two_share_a_place() {
    let bench = Bench::lent();
    let marked = |port| {
        let syn = tcp((CLIENT, port), (POD, 80));
        bench.run("nic_ingress", &syn, 0).mark == DEFAULT_HOST_BYPASS_MARK
    };
    for port in 10_000..20_000 {
        let _outcome = bench.run("veth_ingress", &tcp((CLIENT, port), (POD, 80)), 0);
    }
    assert!(
        (10_000..20_000).all(marked),
        "none is forgotten, however many there are"
    );
    // With 10,000 connections, some 670 of the 65,536 slots are used by two or more.
    let others = (20_000..30_000).filter(|port| marked(*port)).count();
    assert!(others < 300, "{others} of 10,000 others");
}

#[test]
fn a_tcp_connection_is_answered_as_ever_when_the_host_has_forgotten_it_or_is_not_in_between() {
    let (client, pod) = ((CLIENT, 5000), (POD, 80));
    let mut bench = Bench::lent();
    let _outcome = bench.run("veth_ingress", &tcp(client, pod), 0);
    let mark = |bench: &Bench| bench.run("nic_ingress", &tcp(client, pod), 0).mark;
    bench.is_l3(false);
    assert_eq!(mark(&bench), 0, "in l2");
    bench.is_l3(true);
    assert_eq!(mark(&bench), DEFAULT_HOST_BYPASS_MARK, "in l3");
    for (age, expected) in [
        (RECENT_SECONDS - 5, DEFAULT_HOST_BYPASS_MARK),
        (RECENT_SECONDS + 5, 0),
    ] {
        bench.age_connections(age);
        assert_eq!(mark(&bench), expected, "after {age} s");
    }
    let again = bench.run("veth_ingress", &tcp((CLIENT, 5001), pod), 0);
    assert_eq!(again.mark, DEFAULT_MARK);
    assert_eq!(mark(&bench), 0, "nor does another's");
}

#[test]
fn tcp_without_a_marked_socket_follows_the_way_that_its_connection_came() {
    let mut bench = Bench::lent();
    let accepted = with_flags(tcp((POD, 80), (CLIENT, 5000)), SYN | ACK);
    if bench.takes_passed_on("nic_egress", &accepted) {
        let passed_on = |bench: &Bench, packet: &[u8]| bench.run_passed_on("nic_egress", packet);
        tcp_is_followed(&mut bench, Bench::is_l3, passed_on);
    } else {
        let reason = "BPF_PROG_TEST_RUN refuses an ingress_ifindex in its context";
        skip(Need::Ingress, reason);
    }
    let own = |bench: &Bench, packet: &[u8]| bench.run("nic_egress", packet, 0);
    tcp_is_followed(&mut bench, Bench::follows_tcp, own);
}

/// Checks that TCP flows are tracked. `become_l3` makes the pod's interface l3 or l2; `send` runs its program for sent
/// packets.
fn tcp_is_followed(
    bench: &mut Bench,
    become_l3: impl Fn(&mut Bench, bool),
    send: impl Fn(&Bench, &[u8]) -> Outcome,
) {
    for (client, pod) in [((CLIENT, 5000), (POD, 80)), ((CLIENT6, 5000), (POD6, 80))] {
        bench.reset();
        let accepted = with_flags(tcp(pod, client), SYN | ACK);
        let data = with_flags(tcp(pod, client), ACK);
        let goes = |bench: &Bench, packet: &[u8]| {
            let outcome = send(bench, packet);
            (outcome.verdict == REDIRECT).then(|| sender(&outcome.packet).to_vec())
        };
        let syn = |bench: &Bench, program| {
            let _outcome = bench.run(program, &tcp(client, pod), 0);
        };
        assert_eq!(goes(bench, &accepted), None, "nothing is known");
        syn(bench, "veth_ingress");
        assert_eq!(goes(bench, &data), None, "accepted before anybody noted it");
        for packet in [&accepted, &data] {
            let own = bench.run("nic_egress", packet, 0);
            assert_eq!(own.verdict, PASS, "a socket that takes marks");
        }
        become_l3(bench, true);
        for packet in [&accepted, &data] {
            assert_eq!(goes(bench, packet).as_deref(), Some(&POD_MAC[..]));
        }
        assert_eq!(bench.remembered(), [(flow(pod, client, 6), 0)]);
        syn(bench, "nic_ingress");
        for packet in [&accepted, &data] {
            assert_eq!(goes(bench, packet).as_deref(), Some(&HOST_BYPASS_MAC[..]));
        }
        syn(bench, "veth_ingress");
        assert_eq!(goes(bench, &accepted).as_deref(), Some(&POD_MAC[..]));
        let other = with_flags(tcp(pod, (client.0, 5001)), SYN | ACK);
        assert_eq!(goes(bench, &other), None, "another client's");
        syn(bench, "nic_ingress");
        become_l3(bench, false);
        for packet in [&accepted, &data] {
            assert_eq!(goes(bench, packet), None, "straight, in l2");
        }
        assert_eq!(bench.remembered(), []);
    }
}

#[test]
fn what_is_exempt_goes_past_the_host_but_for_what_stays_on_the_node() {
    let mut bench = Bench::lent();
    bench.exempt();
    for (name, packet, expected) in [
        ("TCP", tcp((POD, 80), (CLIENT, 5000)), REDIRECT),
        ("UDP", udp((POD, 53), (CLIENT, 5000)), REDIRECT),
        ("IPv6", tcp((POD6, 80), (CLIENT6, 5000)), REDIRECT),
        ("the node", udp((POD, 53), (NODE, 5000)), PASS),
        ("a pod beside it", tcp((POD, 80), (OTHER_POD, 5000)), PASS),
        (
            "a pod on another NIC",
            tcp((POD, 80), (FAR_POD, 5000)),
            REDIRECT,
        ),
        ("a group", udp((POD, 53), ("239.1.2.3", 5000)), PASS),
        ("link-local", udp(("fe80::1", 53), ("ff02::2", 5000)), PASS),
    ] {
        let outcome = bench.run("nic_egress", &packet, 0);
        assert_eq!(outcome.verdict, expected, "{name}");
        if expected == REDIRECT {
            assert_eq!(sender(&outcome.packet), HOST_BYPASS_MAC, "{name}");
        }
    }
}

#[test]
fn a_packet_cut_off_anywhere_passes_and_teaches_nothing_untrue() {
    let whole = udp((CLIENT6, 5000), (POD6, 53));
    let bench = Bench::lent();
    // Newer kernels refuse test runs of frames that end within the IP header.
    for length in 14 + 40..whole.len() {
        for program in ["veth_ingress", "nic_egress", "nic_ingress"] {
            let outcome = bench.run(program, &whole[..length], 0);
            assert_eq!(outcome.verdict, PASS, "{program} at {length}");
            assert_eq!(outcome.packet, &whole[..length], "{program} at {length}");
        }
    }
    let known = flow((POD6, 53), (CLIENT6, 5000), 17);
    assert!(bench.remembered().iter().all(|(key, _)| *key == known));
}

#[test]
fn whatever_arrives_the_verdict_is_allowed_and_only_learned_flows_are_redirected() {
    let number = random::number();
    let whole = [
        udp((CLIENT, 5000), (POD, 53)),
        udp((POD, 53), (CLIENT, 5000)),
        udp((POD, 54), (CLIENT, 5000)),
        udp((POD6, 53), (CLIENT6, 5000)),
        udp((CLIENT6, 5000), (POD6, 53)),
        tcp((CLIENT, 5000), (POD, 80)),
        tcp((POD, 80), (CLIENT, 5000)),
        echo(CLIENT, POD, true),
        echo(POD6, CLIENT6, false),
    ];
    let known = flow((POD, 53), (CLIENT, 5000), 17);
    let mut random = Random::default();
    let mut bench = Bench::lent();
    for program in ["veth_ingress", "nic_egress", "nic_ingress"] {
        bench.reset();
        let (mut ran, mut redirected) = (0, 0);
        for _ in 0..number {
            if program == "nic_egress" && ran % 1024 == 0 {
                bench.remember(known, THAT_NIC);
            }
            let packet = random::packet(&mut random, &whole);
            let ours = DEFAULT_MARK | DEFAULT_HOST_BYPASS_MARK | DEFAULT_POD_NICS;
            let others = random.number() as u32 & !ours;
            let Some(outcome) = bench.try_run(program, &packet, others) else {
                continue;
            };
            ran += 1;
            let marked = if program == "veth_ingress" {
                DEFAULT_MARK
            } else {
                0
            };
            // Nobody answers an error, so it has no mark.
            if outcome.mark != others || !random::may_be_icmp_error(&packet) {
                assert_eq!(outcome.mark, others | marked, "{program}: {packet:02x?}");
            }
            match outcome.verdict {
                PASS => assert_eq!(outcome.packet, packet, "{program}"),
                REDIRECT if program == "nic_egress" => {
                    let of_flow = random::is_of_flow(&packet, &known, false);
                    assert!(of_flow, "redirected: {packet:02x?}");
                    redirected += 1;
                }
                other => panic!("{program} answered {other} to {packet:02x?}"),
            }
        }
        assert!(
            ran > number / 2,
            "{program}: the kernel took only {ran} of {number}"
        );
        assert_eq!(program == "nic_egress", redirected > 0, "{program}");
    }
}
