//! The sender address of a NIC's ARP requests and neighbour solicitations, by BPF_PROG_TEST_RUN of the programs that
//! set it.

use ebbtide_programs::{
    Bench, CLIENT, FAR_POD, NODE, NODE6, OTHER, PASS, POD, POD6, ip,
    packets::{in_vlan, neighbour},
};

const ASKER: [u8; 6] = [0x02, 0xc1, 0x0d, 0, 0xff, 0x15];
const GATEWAY: &str = "172.31.16.1";
const NOBODY: &str = "0.0.0.0";

#[derive(Clone, Copy)]
enum Operation {
    Request = 1,
    Reply = 2,
}

fn octets(address: &str) -> Vec<u8> {
    match ip(address) {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Builds an ARP frame to the loopback's own address: the loopback is the device of the test run.
fn arp(operation: Operation, sender: &str, target: &str) -> Vec<u8> {
    let start = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation as u8];
    let mut frame = [&[0; 6][..], &ASKER, &start, &ASKER].concat();
    frame.extend(octets(sender));
    frame.extend([0; 6]);
    frame.extend(octets(target));
    frame
}

#[test]
fn a_nic_asks_in_its_own_name_for_what_has_another_nics_address() {
    use Operation::{Reply, Request};
    let mut bench = Bench::lent();
    let tagged = in_vlan(arp(Request, OTHER, GATEWAY), 7);
    // `NODE` and `POD` are addresses of the NIC; `OTHER` and `FAR_POD` are behind another one.
    for (name, name_to_ask_in, frame, sender) in [
        (
            "another NIC's address",
            NODE,
            arp(Request, OTHER, GATEWAY),
            NODE,
        ),
        (
            "another NIC's pod",
            NODE,
            arp(Request, FAR_POD, GATEWAY),
            NODE,
        ),
        (
            "a NIC without an address",
            POD,
            arp(Request, OTHER, GATEWAY),
            POD,
        ),
        ("its own", NODE, arp(Request, NODE, GATEWAY), NODE),
        ("its pod's", NODE, arp(Request, POD, GATEWAY), POD),
        (
            "nobody's that we know",
            NODE,
            arp(Request, CLIENT, GATEWAY),
            CLIENT,
        ),
        ("a probe", NODE, arp(Request, NOBODY, OTHER), NOBODY),
        ("a notification", NODE, arp(Request, OTHER, OTHER), OTHER),
        ("an answer", NODE, arp(Reply, OTHER, GATEWAY), OTHER),
        (
            "nobody to ask as",
            NOBODY,
            arp(Request, OTHER, GATEWAY),
            OTHER,
        ),
    ] {
        bench.asks_as(name_to_ask_in);
        let outcome = bench.run("host_nic_egress", &frame, 0);
        let mut expected = frame.clone();
        expected[28..32].copy_from_slice(&octets(sender));
        assert_eq!(outcome.verdict, PASS, "{name}");
        assert_eq!(outcome.packet, expected, "{name}");
    }
    bench.asks_as(NODE);
    let outcome = bench.run("host_nic_egress", &tagged, 0);
    assert_eq!(outcome.packet, tagged, "in a VLAN: another network's");
}

#[test]
fn an_answer_to_a_pod_in_whose_name_was_asked_is_made_one_to_nobody() {
    use Operation::{Reply, Request};
    let mut bench = Bench::lent();
    for (name, asked_as, frame, target) in [
        ("the pod's", POD, arp(Reply, GATEWAY, POD), NOBODY),
        ("the node's own", NODE, arp(Reply, GATEWAY, NODE), NODE),
        ("another pod's", POD, arp(Reply, GATEWAY, FAR_POD), FAR_POD),
        ("a question", POD, arp(Request, GATEWAY, POD), POD),
    ] {
        bench.asks_as(asked_as);
        let outcome = bench.run("host_nic_ingress", &frame, 0);
        let mut expected = frame.clone();
        expected[38..42].copy_from_slice(&octets(target));
        assert_eq!(outcome.verdict, PASS, "{name}");
        assert_eq!(outcome.packet, expected, "{name}");
    }
}

/// The offset of an ICMPv6 message in a frame.
const ICMP: usize = 14 + 40;

/// Returns the checksum of the ICMPv6 message of a frame, with its field as it is: zero if it is right (RFC 4443, 2.3).
fn sum(frame: &[u8]) -> u16 {
    let length = u32::try_from(frame.len() - ICMP).unwrap_or_default();
    let mut summed = frame[14 + 8..ICMP].to_vec();
    summed.extend(length.to_be_bytes());
    summed.extend([0, 0, 0, 58]);
    summed.extend(&frame[ICMP..]);
    let words = summed
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Builds an advertisement of the gateway to an address, as an answer to a solicitation.
fn advertisement(to: &str) -> Vec<u8> {
    let mut frame = neighbour(136, "fe80::1", to, "fe80::1", ASKER);
    // The loopback's own address: the loopback is the device of the test run.
    frame[..6].fill(0);
    frame[ICMP + 4] = 0x60;
    let right = sum(&frame).to_be_bytes();
    frame[ICMP + 2..ICMP + 4].copy_from_slice(&right);
    frame
}

#[test]
fn an_answer_to_a_pod_that_resolves_nothing_is_the_hosts() {
    use Operation::Reply;
    let mut bench = Bench::lent();
    bench.asks_as(NODE);
    for (name, is_l3, frame, target) in [
        ("l3", true, arp(Reply, GATEWAY, POD), NOBODY),
        ("l3, another's", true, arp(Reply, GATEWAY, FAR_POD), FAR_POD),
        ("l2: it asked itself", false, arp(Reply, GATEWAY, POD), POD),
    ] {
        bench.is_followed(is_l3);
        let outcome = bench.run("host_nic_ingress", &frame, 0);
        let mut expected = frame.clone();
        expected[38..42].copy_from_slice(&octets(target));
        assert_eq!(outcome.packet, expected, "ARP, {name}");
    }
    let mut far = advertisement(POD6);
    far[14 + 7] = 254;
    let mut other = advertisement(POD6);
    other[ICMP] = 129;
    for (name, is_l3, frame, is_hosts) in [
        ("l3", true, advertisement(POD6), true),
        ("l2", false, advertisement(POD6), false),
        ("the node's", true, advertisement(NODE6), false),
        ("from afar", true, far, false),
        ("an echo", true, other, false),
    ] {
        bench.is_followed(is_l3);
        let outcome = bench.run("host_nic_ingress", &frame, 0);
        assert_eq!(outcome.verdict, PASS, "ND, {name}");
        if !is_hosts {
            assert_eq!(outcome.packet, frame, "ND, {name}");
            continue;
        }
        // As one that nobody asked for: to all nodes, or the kernel would drop it (`ndisc_recv_na`).
        assert_eq!(
            outcome.packet[14 + 24..14 + 40],
            octets("ff02::1"),
            "{name}"
        );
        assert_eq!(
            outcome.packet[ICMP + 4],
            0x20,
            "{name}: overrides, unsolicited"
        );
        assert_eq!(sum(&outcome.packet), 0, "{name}: the checksum is right");
        assert_eq!(outcome.packet[ICMP + 8..], frame[ICMP + 8..], "{name}");
    }
}
