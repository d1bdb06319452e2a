//! Packets other than plain TCP and UDP, for each program alone: fragments, IPv6 extension headers, ICMP errors, SCTP,
//! VLANs. Runs in any kernel that lets root load programs.

use ebbtide_layout::{FlowKey, WHOLE};
use ebbtide_programs::{
    Bench, CLIENT, CLIENT6, PASS, POD, POD6, REDIRECT, REPLY, THAT_MARK, THAT_NIC,
    packets::{
        End, echo, extended, flow, fragments, from_pod, icmp_error, in_vlan, tcp, udp,
        with_protocol,
    },
};

const FAR: End<'_> = ("180.17.16.11", 8080);
const FAR6: End<'_> = ("fd00:17::11", 8080);

/// Client and pod, of each family.
const PAIRS: [(End<'_>, End<'_>); 2] = [((CLIENT, 5000), (POD, 53)), ((CLIENT6, 5000), (POD6, 53))];

/// Returns the flows without the records of fragments.
fn whole(flows: Vec<(FlowKey, u8)>) -> Vec<(FlowKey, u8)> {
    flows
        .into_iter()
        .filter(|(key, _)| key.kind == WHOLE)
        .collect()
}

#[test]
fn the_later_fragments_of_a_reply_leave_by_the_way_of_the_first() {
    let mut bench = Bench::lent();
    for (client, pod) in PAIRS {
        bench.reset();
        bench.remember(flow(pod, client, 17), THAT_NIC);
        for part in fragments(&udp(pod, client), 7) {
            assert_eq!(
                bench.run("nic_egress", &part, 0).verdict,
                REDIRECT,
                "{pod:?}"
            );
        }
        let left = bench.remembered();
        assert_eq!(left.len(), 1, "nothing is left of the fragments: {left:?}");
        // Fragments of an unknown flow with the same identification.
        for part in fragments(&udp(pod, (client.0, 5001)), 7) {
            assert_eq!(bench.run("nic_egress", &part, 0).verdict, PASS, "{pod:?}");
        }
    }
}

#[test]
fn a_later_fragment_without_its_first_follows_the_routing_table() {
    let mut bench = Bench::lent();
    for (client, pod) in PAIRS {
        bench.reset();
        bench.remember(flow(pod, client, 17), THAT_NIC);
        let [_lost, second, third] = fragments(&udp(pod, client), 8);
        for part in [third, second] {
            let outcome = bench.run("nic_egress", &part, 0);
            assert_eq!((outcome.verdict, outcome.packet), (PASS, part));
        }
    }
}

#[test]
fn a_packet_that_was_cut_short_leaves_no_note_for_the_next_one_of_its_number() {
    let [(client, pod), _] = PAIRS;
    let mut bench = Bench::lent();
    bench.remember(flow(pod, client, 17), THAT_NIC);
    let [first, ..] = fragments(&udp(pod, client), 9);
    assert_eq!(bench.run("nic_egress", &first, 0).verdict, REDIRECT);
    let [first, second, _] = fragments(&udp(pod, (client.0, 5001)), 9);
    for part in [first, second] {
        assert_eq!(bench.run("nic_egress", &part, 0).verdict, PASS);
    }
}

#[test]
fn every_fragment_that_comes_by_the_veth_is_marked_and_the_first_one_learned() {
    let mut bench = Bench::lent();
    for (client, pod) in PAIRS {
        bench.reset();
        for part in fragments(&udp(client, pod), 7) {
            let outcome = bench.run("veth_ingress", &part, 0);
            assert_eq!(outcome.mark, ebbtide_layout::DEFAULT_MARK);
        }
        assert_eq!(bench.remembered(), [(flow(pod, client, 17), 0)]);
    }
}

#[test]
fn fragments_of_an_answer_to_what_the_host_forwards_follow_the_first_in_any_order() {
    let mut bench = Bench::lent();
    for (far, pod) in [(FAR, (POD, 5000)), (FAR6, (POD6, 5000))] {
        for order in [[0, 1, 2], [0, 2, 1]] {
            bench.reset();
            bench.remember_forwarded(flow(pod, far, 17));
            let parts = fragments(&udp(far, pod), 7);
            for number in order {
                let outcome = bench.run("host_nic_ingress", &parts[number], 0);
                assert_eq!(outcome.verdict, REDIRECT, "{order:?}: {number}");
            }
            // The same identification again, directly to the pod: nothing of the old packet is remembered for it.
            for part in fragments(&udp(far, (pod.0, 5001)), 7) {
                assert_eq!(bench.run("host_nic_ingress", &part, 0).verdict, PASS);
            }
        }
    }
}

#[test]
fn all_fragments_of_a_pods_reply_have_the_number_of_the_requests_nic() {
    let mut bench = Bench::lent();
    for (client, pod) in PAIRS {
        bench.reset();
        bench.remember(flow(pod, client, 17), THAT_NIC);
        for part in fragments(&udp(pod, client), 7) {
            let outcome = bench.run("nic_egress", &part, 0);
            let sent = from_pod(part, THAT_NIC);
            assert_eq!(outcome.packet[6..], sent[6..]);
            let outcome = bench.run("host_veth_ingress", &outcome.packet, 0);
            assert_eq!((outcome.verdict, outcome.mark), (PASS, THAT_MARK | REPLY));
        }
    }
}

#[test]
fn an_error_follows_the_flow_that_it_quotes() {
    let mut bench = Bench::lent();
    for (protocol, packet) in [(6, tcp as fn(End<'_>, End<'_>) -> Vec<u8>), (17, udp)] {
        for ((_, pod), far) in PAIRS.into_iter().zip([FAR, FAR6]) {
            bench.reset();
            bench.remember_forwarded(flow(pod, far, protocol));
            // An error by a router or by the backend, about a packet that the host forwarded for the pod.
            for complainer in [
                far.0,
                if pod.0 == POD {
                    "10.1.1.1"
                } else {
                    "fd00:99::1"
                },
            ] {
                let error = icmp_error(complainer, pod.0, &packet(pod, far));
                let outcome = bench.run("host_nic_ingress", &error, 0);
                assert_eq!(outcome.verdict, REDIRECT, "{complainer} {protocol}");
            }
            // An error about a packet of the pod itself is for the pod.
            let error = icmp_error(far.0, pod.0, &packet((pod.0, 1), far));
            assert_eq!(bench.run("host_nic_ingress", &error, 0).verdict, PASS);
        }
    }
}

#[test]
fn an_error_about_a_remembered_flow_leaves_the_pod_by_the_flows_way() {
    let mut bench = Bench::lent();
    for (client, pod) in PAIRS {
        bench.reset();
        bench.remember(flow(pod, client, 17), THAT_NIC);
        let error = icmp_error(pod.0, client.0, &udp(client, pod));
        let outcome = bench.run("nic_egress", &error, 0);
        assert_eq!(outcome.verdict, REDIRECT);
        assert_eq!(outcome.packet[6..12], from_pod(error, THAT_NIC)[6..12]);
        let other = icmp_error(pod.0, client.0, &udp((client.0, 5001), pod));
        assert_eq!(bench.run("nic_egress", &other, 0).verdict, PASS);
        // An error does not begin a flow.
        let news = icmp_error(client.0, pod.0, &udp((pod.0, 9), client));
        let outcome = bench.run("veth_ingress", &news, 0x80);
        assert_eq!(outcome.verdict, PASS);
        assert_eq!(bench.remembered().len(), 1);
        // An error is not answered, and the MTU in it is not for the veth's route only.
        assert_eq!(outcome.mark, 0x80);
    }
}

#[test]
fn errors_that_quote_nonsense_are_nobodys() {
    let mut bench = Bench::lent();
    bench.remember_forwarded(flow((POD, 5000), FAR, 17));
    let whole = icmp_error(FAR.0, POD, &udp((POD, 5000), FAR));
    assert_eq!(bench.run("host_nic_ingress", &whole, 0).verdict, REDIRECT);
    let quoted = 14 + 20 + 8;
    for (name, at, byte) in [
        ("no IP version", quoted, 0x05),
        ("a header of no length", quoted, 0x40),
        ("a header longer than all", quoted, 0x4f),
        ("a later fragment", quoted + 7, 1),
        ("another protocol", quoted + 9, 47),
    ] {
        let mut error = whole.clone();
        error[at] = byte;
        assert_eq!(
            bench.run("host_nic_ingress", &error, 0).verdict,
            PASS,
            "{name}"
        );
    }
    for length in 34..quoted + 24 {
        let outcome = bench.run("host_nic_ingress", &whole[..length], 0);
        assert_eq!(outcome.verdict, PASS, "cut off at {length}");
    }
}

#[test]
fn extension_headers_hide_no_flow() {
    let [_, (client, pod)] = PAIRS;
    let mut bench = Bench::lent();
    for headers in [
        &[0_u8][..],
        &[60],
        &[43],
        &[0, 43, 60],
        &[51],
        &[0, 60, 43, 51, 60, 60],
    ] {
        bench.reset();
        let _outcome = bench.run("veth_ingress", &extended(&udp(client, pod), headers), 0);
        assert_eq!(
            bench.remembered(),
            [(flow(pod, client, 17), 0)],
            "{headers:?}"
        );
        bench.remember(flow(pod, client, 17), THAT_NIC);
        let reply = extended(&udp(pod, client), headers);
        assert_eq!(
            bench.run("nic_egress", &reply, 0).verdict,
            REDIRECT,
            "{headers:?}"
        );
        // TCP stays TCP.
        bench.reset();
        let _outcome = bench.run("veth_ingress", &extended(&tcp(client, pod), headers), 0);
        assert_eq!(bench.remembered(), [], "{headers:?}");
    }
}

#[test]
fn extension_headers_come_before_and_after_a_fragment_header() {
    let [_, (client, pod)] = PAIRS;
    let mut bench = Bench::lent();
    for inside in [false, true] {
        bench.reset();
        bench.remember(flow(pod, client, 17), THAT_NIC);
        let reply = udp(pod, client);
        let parts = if inside {
            fragments(&extended(&reply, &[60]), 7)
        } else {
            fragments(&reply, 7).map(|part| extended(&part, &[0]))
        };
        for part in parts {
            assert_eq!(
                bench.run("nic_egress", &part, 0).verdict,
                REDIRECT,
                "{inside}"
            );
        }
    }
}

#[test]
fn more_extension_headers_than_anybody_sends_are_let_through() {
    let [_, (client, pod)] = PAIRS;
    let mut bench = Bench::lent();
    bench.remember(flow(pod, client, 17), THAT_NIC);
    let reply = extended(&udp(pod, client), &[60; 7]);
    assert_eq!(bench.run("nic_egress", &reply, 0).verdict, PASS);
}

#[test]
fn sctp_is_told_by_its_ports_and_other_protocols_by_their_addresses() {
    let mut bench = Bench::lent();
    for (client, pod) in PAIRS {
        for (protocol, has_ports) in [(132, true), (136, true), (47, false), (50, false)] {
            bench.reset();
            let request = with_protocol(udp(client, pod), protocol);
            let _outcome = bench.run("veth_ingress", &request, 0);
            let expected = if has_ports {
                flow(pod, client, protocol)
            } else {
                flow((pod.0, 0), (client.0, 0), protocol)
            };
            assert_eq!(bench.remembered(), [(expected, 0)], "{protocol}");
        }
    }
}

#[test]
fn a_client_that_moves_to_another_port_or_address_is_another_flow() {
    let bench = Bench::lent();
    let pod = (POD, 443);
    let clients = [(CLIENT, 5000), (CLIENT, 5001), ("198.51.100.8", 5000)];
    for client in clients {
        let _outcome = bench.run("veth_ingress", &udp(client, pod), 0);
    }
    let mut found = whole(bench.remembered());
    found.sort_by_key(|(key, _)| (key.remote, key.remote_port));
    let expected = clients.map(|client| (flow(pod, client, 17), 0));
    assert_eq!(found, expected);
}

#[test]
fn what_is_in_a_vlan_is_another_networks() {
    let mut bench = Bench::lent();
    let [(client, pod), _] = PAIRS;
    bench.remember(flow(pod, client, 17), THAT_NIC);
    bench.remember_forwarded(flow((POD, 5000), FAR, 17));
    for (program, frame) in [
        ("nic_egress", udp(pod, client)),
        ("nic_ingress", udp(client, pod)),
        ("host_nic_ingress", udp(FAR, (POD, 5000))),
        ("host_nic_egress", udp((POD6, 1), (CLIENT6, 2))),
    ] {
        let tagged = in_vlan(frame, 5);
        let outcome = bench.run(program, &tagged, 0x80);
        assert_eq!((outcome.verdict, outcome.mark), (PASS, 0x80), "{program}");
        assert_eq!(outcome.packet, tagged, "{program}");
    }
    assert_eq!(bench.remembered().len(), 1);
}

#[test]
fn the_pods_own_ping_and_its_answer_follow_the_routing_table() {
    let mut bench = Bench::lent();
    for (client, pod) in PAIRS {
        bench.reset();
        let _outcome = bench.run("veth_ingress", &echo(client.0, pod.0, false), 0);
        assert_eq!(bench.remembered(), []);
        let outcome = bench.run("nic_egress", &echo(pod.0, client.0, true), 0);
        assert_eq!(outcome.verdict, PASS);
    }
}
