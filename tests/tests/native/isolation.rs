//! One pod's trouble is no other's: addresses that are not its own, and floods.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ebbtide_agent::netlink::model::Direction;
use ebbtide_layout::HostFlow;
use ebbtide_tests::programs::{
    Bench, CLIENT, CLIENT6, NODE, OTHER_POD, PASS, POD, POD_NUMBER, POD6, REDIRECT, REPLY, THAT,
    THAT_MARK,
    links::Pair,
    packets::{echo, flow, in_vlan, tcp, udp},
};

const IP: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

/// New flows of the flood, unless the environment says another number.
const FLOOD: u32 = 20_000;

/// Frames, with what the sender's socket says that they are, and whether they may pass.
fn frames() -> Vec<(&'static str, Vec<u8>, u16, bool)> {
    let to = (CLIENT, 2);
    vec![
        ("its own", udp((POD, 1), to), IP, true),
        ("its own, TCP", tcp((POD, 1), to), IP, true),
        ("its own, IPv6", udp((POD6, 1), (CLIENT6, 2)), IPV6, true),
        (
            "link-local",
            udp(("fe80::1", 1), ("ff02::2", 2)),
            IPV6,
            true,
        ),
        (
            "none yet, IPv6",
            echo("::", "ff02::1:ff00:4", true),
            IPV6,
            true,
        ),
        (
            "none yet, DHCP",
            udp(("0.0.0.0", 68), ("255.255.255.255", 67)),
            IP,
            true,
        ),
        ("no IP", vec![0xff; 60], ARP, true),
        ("in a VLAN", in_vlan(udp((POD, 1), to), 7), 0x8100, true),
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
            // The kernel believes the socket, which only here can say something else than the frame.
            let mut disguised = bad.clone();
            disguised[12..14].copy_from_slice(&ARP.to_be_bytes());
            frames.push(("a frame in disguise", disguised, IP, false));
        }
        for (name, frame, ethertype, passes) in frames {
            pair.send(&frame, ethertype)?;
            if passes {
                // What comes behind it is counted, and nothing before.
                pair.send(&bad, IP)?;
            }
            if is_nic {
                expected.0 += 1;
            } else {
                expected.1 += 1;
            }
            wait_for(expected, &format!("{program}: {name}"))?;
        }
        // Behind another plugin, or with the guard off.
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
    let known = HostFlow {
        mark: THAT_MARK | REPLY,
        ..HostFlow::default()
    };
    let mut bench = Bench::new();
    bench.remember_of_other(flow((OTHER_POD, 53), client, 17), THAT);
    bench.remember(flow((POD, 53), client, 17), THAT);
    bench.remember_in_host(flow((POD, 80), client, 6), known);
    let steered = |pod: &str| {
        let reply = udp((pod, 53), client);
        bench.run("nic_egress", &reply, 0).verdict == REDIRECT
    };
    let marked = || {
        let reply = tcp((POD, 80), client);
        bench.run("host_veth_ingress", &reply, 0).mark == known.mark
    };
    let (mut alive, mut connected) = (0, 0);
    for source in 0..number {
        let [_, a, b, c] = source.to_be_bytes();
        let address = format!("100.{a}.{b}.{c}");
        let outcome = bench.run("veth_ingress", &udp((&address, 1), (POD, 53)), 0);
        assert_eq!(outcome.verdict, PASS);
        let syn = tcp((&address, 1), (POD, 80));
        let outcome = bench.run("host_veth_egress", &syn, THAT_MARK);
        assert_eq!(outcome.verdict, PASS);
        // A flow and a connection of the flooded pod that say something now and then.
        if source % 256 == 0 {
            alive += u32::from(steered(POD));
            connected += u32::from(marked());
        }
    }
    let asked = number.div_ceil(256);
    println!(
        "{number} sources: of {asked} replies of the flooded pod's live UDP flow {alive} were \
         steered, of its live TCP connection {connected} were marked; \
         {} of its flows are remembered",
        bench.remembered().len()
    );
    assert!(steered(OTHER_POD), "another pod's flow");
    assert_eq!((alive, connected), (asked, asked));
}
