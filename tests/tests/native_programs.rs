//! Each eBPF program alone, by BPF_PROG_TEST_RUN: packet and flow table in; verdict, mark, packet,
//! flow table and counters out. Runs in any kernel that lets root load programs.

#![expect(
    clippy::unwrap_used,
    reason = "a bench whose every step must succeed; clippy knows tests only by their attribute"
)]

use std::net::IpAddr;

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, HashOfMaps, Map, MapData, PerCpuHashMap, PerCpuValues},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use ebbtide_agent::datapath::{FlowTables, key};
use ebbtide_layout::{
    Address, Counters, DEFAULT_MARK, Flow, FlowKey, HOST_MAC, Hook, POD_MAC, PodCounters,
};
use ebbtide_tests::workspace;
use etherparse::PacketBuilder;

const POD: &str = "172.31.16.4";
const CLIENT: &str = "198.51.100.7";
const POD6: &str = "fd00:16::4";
const CLIENT6: &str = "2001:db8::7";

/// Verdicts (include/uapi/linux/pkt_cls.h).
const PASS: u32 = u32::MAX;
const REDIRECT: u32 = 7;

/// Where `mark` and `ifindex` are in `struct __sk_buff` (include/uapi/linux/bpf.h).
const SKB_LEN: usize = 192;
const SKB_MARK: usize = 8;

/// The loopback: the device of a test run in any namespace.
const THIS: u32 = 1;
const VETH: u32 = 77;

struct Bench {
    object: Ebpf,
    flows: HashMap<MapData, FlowKey, Flow>,
}

struct Outcome {
    verdict: u32,
    mark: u32,
    packet: Vec<u8>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Bench {
    fn new() -> Self {
        let path = workspace::EBPF.file("ebbtide").unwrap();
        let mut object = EbpfLoader::new()
            .load_file(&path)
            .unwrap_or_else(|e| panic!("load {} (are you root?): {e}", path.display()));
        for name in ["veth_ingress", "nic_egress", "nic_ingress"] {
            let program: &mut SchedClassifier =
                object.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let program = object.program("veth_ingress").unwrap().try_into().unwrap();
        let tables = FlowTables::new(&std::fs::read(&path).unwrap(), program).unwrap();
        let table = tables.make().unwrap();
        let id = table.info().unwrap().id();
        let mut outer: HashOfMaps<_, Address, MapData> =
            HashOfMaps::try_from(object.take_map("FLOWS").unwrap()).unwrap();
        let mut counters: PerCpuHashMap<_, Address, PodCounters> =
            object.map_mut("COUNTERS").unwrap().try_into().unwrap();
        let cpus = aya::util::nr_cpus().unwrap();
        for address in [POD, POD6] {
            outer.insert(key(ip(address)), &table, 0).unwrap();
            let zero = PerCpuValues::try_from(vec![PodCounters::default(); cpus]).unwrap();
            counters.insert(key(ip(address)), zero, 0).unwrap();
        }
        let flows = HashMap::try_from(Map::LruHashMap(MapData::from_id(id).unwrap())).unwrap();
        Self { object, flows }
    }

    fn run(&self, program: &str, packet: &[u8], mark: u32) -> Outcome {
        self.try_run(program, packet, mark).unwrap()
    }

    /// `None` if the kernel does not take such a frame for a test run.
    fn try_run(&self, program: &str, packet: &[u8], mark: u32) -> Option<Outcome> {
        let program: &SchedClassifier = self.object.program(program).unwrap().try_into().unwrap();
        let mut ctx_in = [0; SKB_LEN];
        ctx_in[SKB_MARK..SKB_MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        let mut ctx_out = [0; SKB_LEN];
        let mut data_out = vec![0; packet.len() + 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut data_out),
                ctx_in: Some(&ctx_in),
                ctx_out: Some(&mut ctx_out),
                ..TestRunOptions::default()
            })
            .ok()?;
        data_out.truncate(result.data_size_out as usize);
        Some(Outcome {
            verdict: result.return_value,
            mark: u32::from_ne_bytes(ctx_out[SKB_MARK..SKB_MARK + 4].try_into().unwrap()),
            packet: data_out,
        })
    }

    fn counted(&self, address: &str, hook: Hook) -> Counters {
        let map: PerCpuHashMap<_, Address, PodCounters> =
            self.object.map("COUNTERS").unwrap().try_into().unwrap();
        let mut sum = Counters::default();
        for cpu in map.get(&key(ip(address)), 0).unwrap().iter() {
            let part = cpu.hooks[hook as usize];
            sum.seen += part.seen;
            sum.marked += part.marked;
            sum.learned += part.learned;
            sum.redirected += part.redirected;
            sum.passed += part.passed;
        }
        sum
    }

    fn remember(&mut self, flow: FlowKey, ifindex: u32) {
        self.flows
            .insert(flow, Flow { ifindex, pad: 0 }, 0)
            .unwrap();
    }

    fn remembered(&self) -> Vec<(FlowKey, u32)> {
        let all = self.flows.iter();
        all.map(|entry| entry.map(|(key, flow)| (key, flow.ifindex)).unwrap())
            .collect()
    }
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2; 6], [4; 6])
}

fn addressed(from: &str, to: &str) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet().ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet().ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    }
}

fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let mut packet = Vec::new();
    addressed(from.0, to.0)
        .udp(from.1, to.1)
        .write(&mut packet, b"hello")
        .unwrap();
    packet
}

fn tcp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let mut packet = Vec::new();
    addressed(from.0, to.0)
        .tcp(from.1, to.1, 1, 1024)
        .syn()
        .write(&mut packet, &[])
        .unwrap();
    packet
}

fn echo(from: &str, to: &str, request: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = addressed(from, to);
    match (ip(from).is_ipv4(), request) {
        (true, true) => step.icmpv4_echo_request(9, 1).write(&mut packet, b"x"),
        (true, false) => step.icmpv4_echo_reply(9, 1).write(&mut packet, b"x"),
        (false, true) => step.icmpv6_echo_request(9, 1).write(&mut packet, b"x"),
        (false, false) => step.icmpv6_echo_reply(9, 1).write(&mut packet, b"x"),
    }
    .unwrap();
    packet
}

fn flow(local: (&str, u16), remote: (&str, u16), protocol: u8) -> FlowKey {
    FlowKey {
        local: key(ip(local.0)),
        remote: key(ip(remote.0)),
        local_port: local.1.to_be_bytes(),
        remote_port: remote.1.to_be_bytes(),
        protocol,
        pad: [0; 3],
    }
}

const ECHO_ID: u16 = 9;

#[test]
fn what_comes_in_by_the_veth_is_marked_with_our_bit_and_others_bits_stay() {
    let bench = Bench::new();
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
fn tcp_is_not_remembered_and_everything_else_is() {
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
        let bench = Bench::new();
        bench.run("veth_ingress", &packet, 0);
        let expected: Vec<_> = expected.map(|flow| (flow, THIS)).into_iter().collect();
        assert_eq!(bench.remembered(), expected, "{name}");
        let pod = if name.ends_with('6') { POD6 } else { POD };
        let counted = bench.counted(pod, Hook::VethIngress);
        assert_eq!(counted.seen, counted.marked, "{name}");
        assert_eq!(counted.learned, expected.len() as u64, "{name}");
    }
}

#[test]
fn a_known_flow_is_not_written_again() {
    let bench = Bench::new();
    let packet = udp((CLIENT, 5000), (POD, 53));
    for _ in 0..3 {
        bench.run("veth_ingress", &packet, 0);
    }
    let counted = bench.counted(POD, Hook::VethIngress);
    assert_eq!((counted.seen, counted.learned), (3, 1));
}

#[test]
fn a_reply_of_a_remembered_flow_leaves_by_the_way_it_came_in() {
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
        let mut bench = Bench::new();
        bench.remember(key, VETH);
        let outcome = bench.run("nic_egress", &reply, 0);
        assert_eq!(outcome.verdict, REDIRECT, "{name}");
        assert_eq!(outcome.packet[..6], HOST_MAC, "{name}: to the host's end");
        assert_eq!(outcome.packet[6..12], POD_MAC, "{name}: from the pod's end");
        assert_eq!(outcome.packet[12..], reply[12..], "{name}: else as it was");
        assert_eq!(bench.counted(pod, Hook::NicEgress).redirected, 1, "{name}");
    }
}

#[test]
fn nothing_else_is_redirected() {
    let known = flow((POD, 53), (CLIENT, 5000), 17);
    for (name, packet) in [
        ("another client port", udp((POD, 53), (CLIENT, 5001))),
        ("another server port", udp((POD, 54), (CLIENT, 5000))),
        ("another client", udp((POD, 53), ("198.51.100.8", 5000))),
        ("another pod", udp(("172.31.16.5", 53), (CLIENT, 5000))),
        ("tcp on the same ports", tcp((POD, 53), (CLIENT, 5000))),
        ("the pod's own ping", echo(POD, CLIENT, true)),
        ("the other family", udp((POD6, 53), (CLIENT6, 5000))),
    ] {
        let mut bench = Bench::new();
        bench.remember(known, VETH);
        let outcome = bench.run("nic_egress", &packet, 0);
        assert_eq!(outcome.verdict, PASS, "{name}");
        assert_eq!(outcome.packet, packet, "{name}");
        assert_eq!(outcome.mark, 0, "{name}");
    }
}

#[test]
fn the_last_way_in_wins() {
    let mut bench = Bench::new();
    let key = flow((POD, 53), (CLIENT, 5000), 17);
    bench.remember(key, VETH);
    let direct = udp((CLIENT, 5000), (POD, 53));
    assert_eq!(bench.run("nic_ingress", &direct, 0).verdict, PASS);
    assert_eq!(bench.remembered(), []);
    let reply = udp((POD, 53), (CLIENT, 5000));
    assert_eq!(bench.run("nic_egress", &reply, 0).verdict, PASS);
    bench.run("veth_ingress", &direct, 0);
    assert_eq!(bench.remembered(), [(key, THIS)], "and back again");
}

#[test]
fn a_packet_cut_off_anywhere_passes_and_teaches_nothing_untrue() {
    let whole = udp((CLIENT6, 5000), (POD6, 53));
    let bench = Bench::new();
    // Newer kernels refuse to test-run a frame that ends within its IP header.
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

/// Random packets for each program, unless the environment says another number.
const RANDOM_PACKETS: u32 = 20_000;

/// Xorshift (Marsaglia 2003): the same packets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Something like a packet: a whole one with a few bytes changed, often cut off, sometimes noise.
fn random_packet(random: &mut Random, whole: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = whole[random.below(whole.len())].clone();
    if random.below(8) == 0 {
        for byte in &mut packet[12..] {
            *byte = random.next() as u8;
        }
    }
    for _ in 0..random.below(5) {
        let place = random.below(packet.len());
        packet[place] = random.next() as u8;
    }
    if random.below(3) == 0 {
        packet.truncate(14 + random.below(packet.len() - 13));
    }
    packet
}

/// Whether this is, by another parser, an unfragmented UDP packet of the flow.
fn is_of_flow(packet: &[u8], flow: &FlowKey) -> bool {
    use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
    let Ok(sliced) = LaxSlicedPacket::from_ethernet(packet) else {
        return false;
    };
    let (source, destination) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(v4)) => (
            IpAddr::from(v4.header().source_addr()),
            IpAddr::from(v4.header().destination_addr()),
        ),
        Some(LaxNetSlice::Ipv6(v6)) => (
            IpAddr::from(v6.header().source_addr()),
            IpAddr::from(v6.header().destination_addr()),
        ),
        _ => return false,
    };
    // Ports are read as they stand: a length field that lies changes nothing about whose they are.
    let ports = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    };
    let ours = (
        u16::from_be_bytes(flow.local_port),
        u16::from_be_bytes(flow.remote_port),
    );
    key(source) == flow.local
        && key(destination) == flow.remote
        && ports.is_none_or(|ports| ports == ours)
}

#[test]
fn whatever_arrives_the_verdict_is_allowed_and_only_learned_flows_are_redirected() {
    let number = std::env::var("EBBTIDE_RANDOM_PACKETS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(RANDOM_PACKETS);
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
    let mut random = Random(0x0eb8_71de);
    for program in ["veth_ingress", "nic_egress", "nic_ingress"] {
        let mut bench = Bench::new();
        let (mut ran, mut redirected) = (0, 0);
        for _ in 0..number {
            if program == "nic_egress" && ran % 1024 == 0 {
                bench.remember(known, VETH);
            }
            let packet = random_packet(&mut random, &whole);
            let others = random.next() as u32 & !DEFAULT_MARK;
            let Some(outcome) = bench.try_run(program, &packet, others) else {
                continue;
            };
            ran += 1;
            let marked = if program == "veth_ingress" {
                DEFAULT_MARK
            } else {
                0
            };
            assert_eq!(outcome.mark, others | marked, "{program}: {packet:02x?}");
            match outcome.verdict {
                PASS => assert_eq!(outcome.packet, packet, "{program}"),
                REDIRECT if program == "nic_egress" => {
                    assert!(is_of_flow(&packet, &known), "redirected: {packet:02x?}");
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
