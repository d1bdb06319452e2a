//! Each eBPF program of the host alone, by BPF_PROG_TEST_RUN: packet, mark and maps in; verdict,
//! mark, packet, flows and counters out. Runs in any kernel that lets root load programs.
#![expect(
    clippy::unwrap_used,
    reason = "the bench is made by helpers, and a test has nothing better to do than to stop"
)]

use std::net::IpAddr;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuHashMap, PerCpuValues},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use ebbtide_agent::datapath::{FlowTables, HOST_PROGRAMS, key};
use ebbtide_layout::{
    Address, DEFAULT_NIC_MARKS, FlowKey, HOST_MAC, HostConfig, HostFlow, HostHook, Nic,
    NicCounters, NodeAddress, OWNER_HAS_GATEWAY, OWNER_IS_POD, reply_bit,
};
use ebbtide_tests::workspace;
use etherparse::PacketBuilder;

const POD: &str = "172.31.16.4";
const POD6: &str = "fd00:16::4";
/// The node on the NIC of the test run, and on another one, with and without a gateway there.
const NODE: &str = "172.31.22.228";
const OTHER: &str = "210.22.16.10";
const LOST: &str = "192.168.7.7";
const CLIENT: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8::7";

/// Verdicts (include/uapi/linux/pkt_cls.h).
const PASS: u32 = u32::MAX;
const REDIRECT: u32 = 7;

/// Where `mark` is in `struct __sk_buff` (include/uapi/linux/bpf.h).
const SKB_LEN: usize = 192;
const SKB_MARK: usize = 8;

/// The loopback: the device of a test run in any namespace.
const THIS: u32 = 1;
const THAT: u32 = 77;
const STEER: u32 = 78;
/// The two NICs' marks.
const MARK: u32 = 0x02;
const THAT_MARK: u32 = 0x04;
const REPLY: u32 = reply_bit(DEFAULT_NIC_MARKS);

const TO_POD: HostFlow = HostFlow {
    mark: THAT_MARK | REPLY,
    forwarded: 0,
};
const FORWARDED: HostFlow = HostFlow {
    mark: 0,
    forwarded: 1,
};

struct Bench {
    object: Ebpf,
    flows: HashMap<MapData, FlowKey, HostFlow>,
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
        for program in HOST_PROGRAMS {
            let program: &mut SchedClassifier = object
                .program_mut(program.name)
                .unwrap()
                .try_into()
                .unwrap();
            program.load().unwrap();
        }
        let program = object
            .program("host_nic_ingress")
            .unwrap()
            .try_into()
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let table = FlowTables::of(&bytes, program, "HOST_FLOWS")
            .unwrap()
            .make()
            .unwrap();
        let id = table.info().unwrap().id();
        let mut outer: HashOfMaps<_, Address, MapData> =
            HashOfMaps::try_from(object.take_map("HOST_FLOWS").unwrap()).unwrap();
        for address in [POD, POD6, NODE] {
            outer.insert(key(ip(address)), &table, 0).unwrap();
        }
        let mut addresses: HashMap<_, Address, NodeAddress> =
            object.map_mut("ADDRESSES").unwrap().try_into().unwrap();
        for (address, ifindex, flags) in [
            (POD, THIS, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (POD6, THAT, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (NODE, THIS, OWNER_HAS_GATEWAY),
            (OTHER, THAT, OWNER_HAS_GATEWAY),
            (LOST, THAT, 0),
        ] {
            let owner = NodeAddress { ifindex, flags };
            addresses.insert(key(ip(address)), owner, 0).unwrap();
        }
        let mut nics: HashMap<_, u32, Nic> = object.map_mut("NICS").unwrap().try_into().unwrap();
        nics.insert(THIS, Nic { mark: MARK, pad: 0 }, 0).unwrap();
        let mut counters: PerCpuHashMap<_, u32, NicCounters> =
            object.map_mut("NIC_COUNTERS").unwrap().try_into().unwrap();
        let cpus = aya::util::nr_cpus().unwrap();
        for index in [THIS, 1 << 31 | THAT_MARK] {
            let zero = PerCpuValues::try_from(vec![NicCounters::default(); cpus]).unwrap();
            counters.insert(index, zero, 0).unwrap();
        }
        let mut host: Array<_, HostConfig> = object.map_mut("HOST").unwrap().try_into().unwrap();
        let config = HostConfig {
            steer: STEER,
            pad: 0,
        };
        host.set(0, config, 0).unwrap();
        let flows = HashMap::try_from(Map::LruHashMap(MapData::from_id(id).unwrap())).unwrap();
        Self { object, flows }
    }

    fn run(&self, program: &str, packet: &[u8], mark: u32) -> Outcome {
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
            .unwrap();
        data_out.truncate(result.data_size_out as usize);
        Outcome {
            verdict: result.return_value,
            mark: u32::from_ne_bytes(ctx_out[SKB_MARK..SKB_MARK + 4].try_into().unwrap()),
            packet: data_out,
        }
    }

    fn counted(&self) -> NicCounters {
        let map: PerCpuHashMap<_, u32, NicCounters> =
            self.object.map("NIC_COUNTERS").unwrap().try_into().unwrap();
        let mut sum = NicCounters::default();
        for cpu in map.get(&THIS, 0).unwrap().iter() {
            for (total, part) in sum.hooks.iter_mut().zip(cpu.hooks) {
                total.seen += part.seen;
                total.marked += part.marked;
                total.learned += part.learned;
                total.redirected += part.redirected;
                total.passed += part.passed;
            }
            sum.wrong_nic += cpu.wrong_nic;
            sum.wrong_nic_passed += cpu.wrong_nic_passed;
        }
        sum
    }

    fn remember(&mut self, key: FlowKey, flow: HostFlow) {
        self.flows.insert(key, flow, 0).unwrap();
    }

    fn remembered(&self) -> Vec<(FlowKey, HostFlow)> {
        self.flows.iter().map(Result::unwrap).collect()
    }
}

fn addressed(from: &str, to: &str) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [0; 6]);
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
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

/// Bits that are not ours.
const OTHERS: u32 = 0xffff_c091;

#[test]
fn what_is_for_the_node_gets_its_nics_mark_and_others_bits_stay() {
    let bench = Bench::new();
    for (name, packet, marked) in [
        ("the node", tcp((CLIENT, 5000), (NODE, 30080)), MARK),
        (
            "the node's other NIC",
            udp((CLIENT, 5000), (OTHER, 53)),
            MARK,
        ),
        ("a pod", tcp((CLIENT, 5000), (POD, 80)), 0),
        ("somebody else", tcp((CLIENT, 5000), ("10.9.9.9", 80)), 0),
    ] {
        let outcome = bench.run("host_nic_ingress", &packet, OTHERS);
        assert_eq!(outcome.verdict, PASS, "{name}");
        assert_eq!(outcome.mark, OTHERS | marked, "{name}");
        assert_eq!(outcome.packet, packet, "{name}");
    }
    let counted = bench.counted().hooks[HostHook::NicIngress as usize];
    assert_eq!((counted.seen, counted.marked, counted.passed), (3, 2, 3));
}

#[test]
fn a_far_backends_answer_gets_the_mark_of_the_requests_nic() {
    let mut bench = Bench::new();
    let far = ("180.17.16.11", 8080);
    let request = tcp((NODE, 6000), far);
    bench.run("host_nic_egress", &request, OTHERS | THAT_MARK);
    let key = flow((NODE, 6000), far, 6);
    assert_eq!(bench.remembered(), [(key, TO_POD)]);
    let answer = tcp(far, (NODE, 6000));
    let outcome = bench.run("host_nic_ingress", &answer, 0);
    assert_eq!(outcome.mark, THAT_MARK | REPLY);
    // In by the NIC of the request itself it is marked as a request is.
    bench.remember(
        key,
        HostFlow {
            mark: MARK | REPLY,
            forwarded: 0,
        },
    );
    assert_eq!(bench.run("host_nic_ingress", &answer, 0).mark, MARK);
}

#[test]
fn a_request_is_remembered_on_its_way_to_the_pod_and_its_reply_marked() {
    for (protocol, request, reply) in [
        (
            6,
            tcp((CLIENT, 5000), (POD, 80)),
            tcp((POD, 80), (CLIENT, 5000)),
        ),
        (
            17,
            udp((CLIENT, 5000), (POD, 80)),
            udp((POD, 80), (CLIENT, 5000)),
        ),
    ] {
        let bench = Bench::new();
        let unmarked = bench.run("host_veth_egress", &request, OTHERS);
        assert_eq!((unmarked.verdict, unmarked.mark), (PASS, OTHERS));
        assert_eq!(bench.remembered(), [], "the node's own traffic");
        bench.run("host_veth_egress", &request, OTHERS | THAT_MARK);
        let key = flow((POD, 80), (CLIENT, 5000), protocol);
        assert_eq!(bench.remembered(), [(key, TO_POD)]);
        let outcome = bench.run("host_veth_ingress", &reply, OTHERS);
        assert_eq!(outcome.verdict, PASS);
        assert_eq!(outcome.mark, OTHERS | THAT_MARK | REPLY);
        assert_eq!(outcome.packet, reply);
    }
}

#[test]
fn what_a_pod_sends_by_its_veth_without_being_asked_is_marked_as_forwarded() {
    let bench = Bench::new();
    for (name, packet, mark) in [
        ("a pod", udp((POD6, 5000), (CLIENT6, 53)), REPLY),
        ("no pod of ours", udp(("10.9.9.9", 1), (CLIENT, 2)), 0),
    ] {
        let outcome = bench.run("host_veth_ingress", &packet, 0);
        assert_eq!((outcome.verdict, outcome.mark), (PASS, mark), "{name}");
    }
    assert_eq!(bench.remembered(), []);
}

#[test]
fn answers_to_what_the_host_forwards_for_a_pod_are_steered_into_the_host() {
    let far = ("180.17.16.11", 8080);
    for (protocol, request, answer) in [
        (6, tcp((POD, 5000), far), tcp(far, (POD, 5000))),
        (17, udp((POD, 5000), far), udp(far, (POD, 5000))),
    ] {
        let bench = Bench::new();
        let key = flow((POD, 5000), far, protocol);
        let direct = bench.run("host_nic_ingress", &answer, 0);
        assert_eq!((direct.verdict, direct.mark), (PASS, 0), "nothing known");
        assert_eq!(bench.run("host_nic_egress", &request, REPLY).verdict, PASS);
        assert_eq!(bench.remembered(), [(key, FORWARDED)]);
        let steered = bench.run("host_nic_ingress", &answer, 0);
        assert_eq!(steered.verdict, REDIRECT);
        assert_eq!(steered.packet[..6], HOST_MAC, "for the link itself");
        assert_eq!(steered.packet[6..], answer[6..], "else as it was");
        assert_eq!(steered.mark, DEFAULT_NIC_MARKS);
        // The pod uses the same ports without the host: no mark, so the answer is its own.
        assert_eq!(bench.run("host_nic_egress", &request, 0).verdict, PASS);
        assert_eq!(bench.remembered(), []);
        assert_eq!(bench.run("host_nic_ingress", &answer, 0).verdict, PASS);
        let counted = bench.counted().hooks[HostHook::NicIngress as usize];
        assert_eq!(counted.redirected, 1);
    }
}

#[test]
fn only_what_has_another_nics_address_is_sent_out_there() {
    for (name, packet, verdict, wrong, passed) in [
        ("this NIC's", udp((NODE, 53), (CLIENT, 5000)), PASS, 0, 0),
        (
            "the other's",
            udp((OTHER, 53), (CLIENT, 5000)),
            REDIRECT,
            1,
            0,
        ),
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
        let bench = Bench::new();
        let outcome = bench.run("host_nic_egress", &packet, OTHERS);
        assert_eq!(outcome.verdict, verdict, "{name}");
        assert_eq!(outcome.mark, OTHERS, "{name}");
        assert_eq!(outcome.packet, packet, "{name}");
        let counted = bench.counted();
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
    let bench = Bench::new();
    let request = udp((POD, 5000), ("180.17.16.11", 53));
    for _ in 0..3 {
        bench.run("host_nic_egress", &request, REPLY);
    }
    let counted = bench.counted().hooks[HostHook::NicEgress as usize];
    assert_eq!((counted.seen, counted.learned), (3, 1));
}

#[test]
fn a_packet_cut_off_anywhere_passes_and_teaches_nothing_untrue() {
    let bench = Bench::new();
    for (whole, protocol) in [
        (udp((CLIENT6, 5000), (POD6, 53)), 17),
        (tcp((CLIENT6, 5000), (POD6, 53)), 6),
    ] {
        let known = flow((POD6, 53), (CLIENT6, 5000), protocol);
        // Newer kernels refuse to test-run a frame that ends within its IP header.
        for length in 14 + 40..whole.len() {
            for program in HOST_PROGRAMS {
                let outcome = bench.run(program.name, &whole[..length], THAT_MARK);
                assert_eq!(outcome.verdict, PASS, "{} at {length}", program.name);
                assert_eq!(outcome.packet, &whole[..length]);
            }
        }
        assert!(
            bench
                .remembered()
                .iter()
                .all(|(key, _)| *key == known || key.protocol != protocol)
        );
    }
}
