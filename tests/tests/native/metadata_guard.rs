//! Pods are kept from the clouds' metadata services, and from nothing else at the same addresses. The programs alone, in any
//! kernel that lets root load programs; with pods: `lab::metadata`.

use std::net::Ipv6Addr;

use ebbtide_layout::{
    DEFAULT_HOST_BYPASS_MARK, DEFAULT_MARK, HOST_BYPASS_MAC, METADATA, POD_METADATA,
    POD_METADATA_SHIFT, POD_NO_METADATA,
};
use ebbtide_programs::{
    Bench, CLIENT, CLIENT6, DROP, PASS, POD, POD_NUMBER, POD6, REDIRECT,
    packets::{echo, extended, fragments, from_pod, tcp, udp, with_protocol},
};

const AZURE: &str = "168.63.129.16";
const AWS: &str = "169.254.169.254";
const AWS6: &str = "fd00:ec2::254";

/// Returns the pod's address of the same family.
fn pod(to: &str) -> &'static str {
    if to.contains(':') { POD6 } else { POD }
}

fn asks(to: &str, port: u16) -> Vec<u8> {
    tcp((pod(to), 40_000), (to, port))
}

/// Returns the services' addresses as text, in the order of their flags.
fn services() -> Vec<String> {
    let texts = METADATA.map(|address| Ipv6Addr::from(address).to_canonical().to_string());
    texts.to_vec()
}

/// Returns packets, and whether they pass.
fn packets() -> Vec<(String, Vec<u8>, bool)> {
    let mut all = Vec::new();
    for to in services() {
        let from = pod(&to);
        all.push((format!("{to}, a request"), asks(&to, 80), false));
        for port in [53, 79, 81, 123, 443, 8080, 20_480] {
            all.push((format!("{to}, port {port}"), asks(&to, port), true));
        }
        let agent = to != AZURE;
        all.push((format!("{to}, port 32526"), asks(&to, 32_526), agent));
        for port in [53, 80, 123, 32_526] {
            let packet = udp((from, 40_000), (&to, port));
            all.push((format!("{to}, UDP, port {port}"), packet, true));
        }
        let ping = echo(from, &to, true);
        all.push((format!("{to}, a ping"), ping, true));
        let other = with_protocol(asks(&to, 80), 132);
        all.push((format!("{to}, SCTP"), other, true));
        for (n, part) in fragments(&asks(&to, 53), 7).into_iter().enumerate() {
            all.push((format!("{to}, fragment {n} of TCP"), part, false));
        }
        let datagram = udp((from, 40_000), (&to, 53));
        for (n, part) in fragments(&datagram, 7).into_iter().enumerate() {
            all.push((format!("{to}, fragment {n} of UDP"), part, true));
        }
        let mut short = asks(&to, 53);
        short.truncate(if from == POD { 36 } else { 56 });
        all.push((format!("{to}, without ports"), short, false));
        if from == POD6 {
            for headers in [&[60][..], &[0, 60], &[43], &[51], &[0, 60, 43, 60, 60, 60]] {
                let name = |port| format!("{to}, port {port} behind {headers:?}");
                let behind = |port| extended(&asks(&to, port), headers);
                all.push((name(80), behind(80), false));
                all.push((name(53), behind(53), true));
            }
            let far = extended(&asks(&to, 53), &[60; 7]);
            all.push((format!("{to}, behind too many headers"), far, false));
            let datagram = extended(&datagram, &[60]);
            all.push((format!("{to}, UDP behind a header"), datagram, true));
        }
    }
    // Others, also such as end like a service's address.
    for to in [
        CLIENT,
        CLIENT6,
        "169.254.169.253",
        "169.254.170.254",
        "10.254.169.254",
        "169.254.170.23",
        "100.100.2.136",
        "168.63.129.80",
        "fd00:ec2::253",
        "fd00:ec3::254",
    ] {
        all.push((format!("{to}, port 80"), asks(to, 80), true));
    }
    let mapped = "::ffff:169.254.169.254";
    all.push(("mapped into IPv6".into(), asks(mapped, 80), false));
    // In IPv4, options move the header: a port 80 where it is without them.
    let mut options = asks(AWS, 53);
    options[14] = 0x46;
    options.splice(34..34, [1, 1, 0, 80]);
    all.push(("behind options, port 53".into(), options.clone(), true));
    options[40..42].copy_from_slice(&80_u16.to_be_bytes());
    all.push(("behind options, port 80".into(), options, false));
    all
}

#[test]
fn what_is_for_a_metadata_service_is_dropped_and_dns_beside_it_passes() {
    let mut bench = Bench::lent();
    let (mut by_nic, mut by_veth) = (0, 0);
    for (flags, nic_drops, veth_drops) in [
        (0, false, false),
        (POD_METADATA, true, false),
        (POD_METADATA | POD_NO_METADATA, true, true),
    ] {
        bench.keep_from_metadata(flags);
        for (name, packet, passes) in packets() {
            let verdict = bench.run("nic_egress", &packet, 0).verdict;
            let is_dropped = nic_drops && !passes;
            by_nic += u64::from(is_dropped);
            let expected = if is_dropped { DROP } else { PASS };
            assert_eq!(verdict, expected, "{name}, by the NIC, {flags:#x}");

            let frame = from_pod(packet, 0);
            let verdict = bench.run("host_veth_ingress", &frame, 0).verdict;
            let is_dropped = veth_drops && !passes;
            by_veth += u64::from(is_dropped);
            let expected = if is_dropped { DROP } else { PASS };
            assert_eq!(verdict, expected, "{name}, by the veth, {flags:#x}");
        }
        let counted = bench.to_metadata(POD_NUMBER);
        assert_eq!((counted.by_nic, counted.by_veth), (by_nic, by_veth));
    }
    assert_eq!(bench.spoofed(POD_NUMBER).by_nic, 0, "counted as spoofed");
}

#[test]
fn each_service_has_a_flag_of_its_own() {
    let mut bench = Bench::lent();
    for (kept, bit) in services().iter().zip(POD_METADATA_SHIFT..) {
        bench.keep_from_metadata(1 << bit);
        for to in &services() {
            let verdict = bench.run("nic_egress", &asks(to, 80), 0).verdict;
            let expected = if to == kept { DROP } else { PASS };
            assert_eq!(verdict, expected, "{to}, kept from {kept}");
        }
    }
}

/// Marks, and frames that request the bypass, are the pod's own choice.
#[test]
fn no_way_past_the_node_is_open_where_the_nic_s_is_closed() {
    let mut bench = Bench::lent();
    let mut bypass = asks(AWS, 80);
    bypass[6..12].copy_from_slice(&HOST_BYPASS_MAC);
    for (flags, marked) in [(POD_METADATA, PASS), (POD_METADATA | POD_NO_METADATA, DROP)] {
        bench.keep_from_metadata(flags);
        for to in [AWS, AWS6] {
            let packet = asks(to, 80);
            let mark = DEFAULT_HOST_BYPASS_MARK;
            let outcome = bench.run("nic_egress", &packet, mark);
            assert_eq!(outcome.verdict, DROP, "{to}, with the mark for the bypass");
            // It goes to the host's end, which decides.
            let outcome = bench.run("nic_egress", &packet, DEFAULT_MARK);
            assert_eq!(outcome.verdict, REDIRECT, "{to}, with the mark for replies");
            let outcome = bench.run("host_veth_ingress", &outcome.packet, 0);
            assert_eq!(outcome.verdict, marked, "{to}, at the host's end");
        }
        let outcome = bench.run("host_veth_ingress", &bypass, 0);
        assert_eq!(outcome.verdict, DROP, "a frame that requests the bypass");
        let mut dns = bypass.clone();
        dns[36..38].copy_from_slice(&53_u16.to_be_bytes());
        let outcome = bench.run("host_veth_ingress", &dns, 0);
        assert_eq!(outcome.verdict, REDIRECT, "DNS by the bypass");
    }
}
