//! The responder to ARP requests and neighbour solicitations, by BPF_PROG_TEST_RUN of its program.

use std::net::{IpAddr, Ipv6Addr};

use ebbtide_programs::{
    Bench, NODE, PASS, POD, POD6, REDIRECT, THAT, THIS, ip, random, reset::Lent,
};
use ebbtide_vpc::random::Random;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

const PROGRAM: &str = "host_nic_ingress";
const OURS: [u8; 6] = [0x02, 0xc1, 0x0d, 0, 0, 0x15];
const ASKER: [u8; 6] = [0x02, 0xc1, 0x0d, 0, 0xff, 0x15];
const BROADCAST: [u8; 6] = [0xff; 6];
/// The loopback's own address, as the loopback is the device of the test run.
const TO_NIC: [u8; 6] = [0; 6];
const SOLICITED_NODE: [u8; 6] = [0x33, 0x33, 0xff, 0, 0, 4];
const ROUTER: &str = "172.31.16.1";
const ROUTER6: &str = "fd00:16::1";
/// A pod behind another NIC than that of the test run.
const BEHIND_THAT: &str = "210.22.16.11";

fn bench() -> Lent {
    let mut bench = Bench::lent();
    bench.answer_for(POD, THIS, OURS);
    bench.answer_for(POD6, THIS, OURS);
    bench.answer_for(BEHIND_THAT, THAT, OURS);
    bench
}

fn octets(address: &str) -> Vec<u8> {
    match ip(address) {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn arp(to: [u8; 6], operation: u8, sender: &str, target: &str) -> Vec<u8> {
    let mut frame = [
        &to[..],
        &ASKER,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
        &ASKER,
    ]
    .concat();
    frame.extend(octets(sender));
    frame.extend([0; 6]);
    frame.extend(octets(target));
    frame
}

/// Pads a frame shorter than 60 bytes, as Ethernet does.
fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(60, 0);
    frame
}

fn solicitation(to: [u8; 6], sender: &str, target: &str, hops: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(octets(target));
    message.extend(options);
    let length = u8::try_from(message.len()).unwrap_or(u8::MAX);
    let mut frame = [
        &to[..],
        &ASKER,
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 58, hops],
    ]
    .concat();
    frame.extend(octets(sender));
    frame.extend(octets(target));
    frame.extend(message);
    frame
}

/// The option "source link-layer address".
const FROM_ASKER: &[u8] = &[1, 1, 0x02, 0xc1, 0x0d, 0, 0xff, 0x15];
const NONCE: &[u8] = &[14, 1, 1, 2, 3, 4, 5, 6];

#[test]
fn who_asks_by_arp_for_a_pod_is_answered_with_the_nics_address() {
    let bench = bench();
    for (name, question, sender) in [
        ("broadcast", arp(BROADCAST, 1, ROUTER, POD), ROUTER),
        ("padded", padded(arp(BROADCAST, 1, ROUTER, POD)), ROUTER),
        ("to the NIC alone", arp(TO_NIC, 1, ROUTER, POD), ROUTER),
        ("a probe", arp(BROADCAST, 1, "0.0.0.0", POD), "0.0.0.0"),
    ] {
        let answer = bench.run(PROGRAM, &question, 0);
        assert_eq!(answer.verdict, REDIRECT, "{name}");
        let mut expected = [&ASKER[..], &OURS, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &OURS].concat();
        expected.extend(octets(POD));
        expected.extend(ASKER);
        expected.extend(octets(sender));
        assert_eq!(answer.packet[..42], expected, "{name}");
        assert_eq!(answer.packet.len(), question.len(), "{name}");
    }
    assert_eq!(bench.answered(POD), 4);
}

#[test]
fn who_solicits_a_pod_is_answered_with_the_nics_address() {
    let bench = bench();
    let all_nodes = "ff02::1";
    let to_all = [0x33, 0x33, 0, 0, 0, 1];
    for (name, question, to, to_mac, flags) in [
        (
            "multicast",
            solicitation(SOLICITED_NODE, ROUTER6, POD6, 255, FROM_ASKER),
            ROUTER6,
            ASKER,
            0x60,
        ),
        (
            "to the NIC alone",
            solicitation(TO_NIC, ROUTER6, POD6, 255, FROM_ASKER),
            ROUTER6,
            ASKER,
            0x60,
        ),
        (
            "two options",
            solicitation(
                SOLICITED_NODE,
                ROUTER6,
                POD6,
                255,
                &[FROM_ASKER, NONCE].concat(),
            ),
            ROUTER6,
            ASKER,
            0x60,
        ),
        (
            "duplicate address detection",
            solicitation(SOLICITED_NODE, "::", POD6, 255, &[]),
            all_nodes,
            to_all,
            0x20,
        ),
    ] {
        let answer = bench.run(PROGRAM, &question, 0);
        assert_eq!(answer.verdict, REDIRECT, "{name}");
        let packet = &answer.packet;
        assert_eq!(packet.len(), 86, "{name}");
        assert_eq!(
            packet[..14],
            [&to_mac[..], &OURS, &[0x86, 0xdd]].concat(),
            "{name}"
        );
        let sliced = SlicedPacket::from_ethernet(packet).expect(name);
        let Some(NetSlice::Ipv6(ip6)) = &sliced.net else {
            panic!("{name}: {sliced:?}");
        };
        let header = ip6.header();
        assert_eq!(
            header.source_addr(),
            POD6.parse::<Ipv6Addr>().expect(POD6),
            "{name}"
        );
        assert_eq!(
            header.destination_addr(),
            to.parse::<Ipv6Addr>().expect(to),
            "{name}"
        );
        assert_eq!(header.hop_limit(), 255, "{name}");
        let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else {
            panic!("{name}: {sliced:?}");
        };
        assert!(
            icmp.is_checksum_valid(header.source(), header.destination()),
            "{name}"
        );
        let mut message = vec![136, 0, packet[56], packet[57], flags, 0, 0, 0];
        message.extend(octets(POD6));
        message.extend([2, 1]);
        message.extend(OURS);
        assert_eq!(packet[54..], message, "{name}");
    }
    assert_eq!(bench.answered(POD6), 4);
}

#[test]
fn what_is_no_question_for_a_pod_of_this_nic_passes_unchanged() {
    let bench = bench();
    let mut of_another_kind = arp(BROADCAST, 1, ROUTER, POD);
    of_another_kind[15] = 6;
    let mut another_message = solicitation(SOLICITED_NODE, ROUTER6, POD6, 255, FROM_ASKER);
    another_message[54] = 133;
    for (name, packet) in [
        ("ARP for the node", arp(BROADCAST, 1, ROUTER, NODE)),
        ("ARP for nobody", arp(BROADCAST, 1, ROUTER, "172.31.16.99")),
        (
            "ARP for a pod elsewhere",
            arp(BROADCAST, 1, ROUTER, BEHIND_THAT),
        ),
        ("an ARP reply", arp(BROADCAST, 2, ROUTER, POD)),
        ("a notification", arp(BROADCAST, 1, POD, POD)),
        ("ARP of no Ethernet", of_another_kind),
        (
            "a solicitation for nobody",
            solicitation(SOLICITED_NODE, ROUTER6, "fd00:16::99", 255, FROM_ASKER),
        ),
        (
            "a solicitation that was routed",
            solicitation(SOLICITED_NODE, ROUTER6, POD6, 64, FROM_ASKER),
        ),
        ("a router solicitation", another_message),
    ] {
        let outcome = bench.run(PROGRAM, &packet, 0);
        assert_eq!((outcome.verdict, outcome.packet), (PASS, packet), "{name}");
    }
}

#[test]
fn a_question_cut_off_anywhere_is_none() {
    let bench = bench();
    for (whole, enough) in [
        (arp(BROADCAST, 1, ROUTER, POD), 42),
        (
            solicitation(SOLICITED_NODE, ROUTER6, POD6, 255, FROM_ASKER),
            78,
        ),
    ] {
        for length in 14..whole.len() {
            let Some(outcome) = bench.try_run(PROGRAM, &whole[..length], 0) else {
                continue;
            };
            let expected = if length < enough { PASS } else { REDIRECT };
            assert_eq!(outcome.verdict, expected, "{length}");
        }
    }
}

/// Whether another parser finds a request for one of our addresses in the packet.
fn asks(packet: &[u8]) -> bool {
    let at = |offset: usize, bytes: &[u8]| packet.get(offset..offset + bytes.len()) == Some(bytes);
    let arp = at(12, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]) && at(38, &octets(POD));
    let solicited =
        at(12, &[0x86, 0xdd]) && at(20, &[58, 255]) && at(54, &[135, 0]) && at(62, &octets(POD6));
    arp || solicited
}

#[test]
fn whatever_arrives_only_questions_are_answered() {
    let bench = bench();
    let whole = [
        padded(arp(BROADCAST, 1, ROUTER, POD)),
        arp(TO_NIC, 1, ROUTER, POD),
        solicitation(SOLICITED_NODE, ROUTER6, POD6, 255, FROM_ASKER),
        solicitation(TO_NIC, "::", POD6, 255, NONCE),
    ];
    let mut random = Random::default();
    let mut answered = 0;
    for _ in 0..random::number() {
        let packet = random::packet(&mut random, &whole);
        let Some(outcome) = bench.try_run(PROGRAM, &packet, 0) else {
            continue;
        };
        match outcome.verdict {
            REDIRECT => {
                assert!(asks(&packet), "{packet:02x?}");
                answered += 1;
            }
            verdict => {
                assert_eq!(verdict, PASS, "{packet:02x?}");
                assert_eq!(outcome.packet, packet);
            }
        }
    }
    assert!(answered > 0, "no packet was a question");
}
