//! Runs the eBPF programs alone, by BPF_PROG_TEST_RUN.
//! The input is a packet, a mark and maps; the output is a verdict, the mark, the packet, maps and counters. This needs
//! root and a kernel that allows it to load programs, but no network.
#![expect(
    clippy::unwrap_used,
    reason = "a bench whose every step must succeed; it has nothing better to do than to stop"
)]

pub mod links;
pub mod packets;
pub mod random;
pub mod reset;

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuHashMap, PerCpuValues},
    programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions},
};
use ebbtide_kernel::datapath::{FlowTables, HOST_PROGRAMS, PROGRAMS, key, uptime};
use ebbtide_layout::{
    Address, Answer, Counters, DEFAULT_NIC_MARKS, Flow, FlowKey, Hook, HostConfig, HostFlow,
    NIC_IS_STRICT, NIC_IS_STRICT6, Nic, NicCounters, NodeAddress, OWNER_HAS_GATEWAY, OWNER_IS_POD,
    POD_FOLLOWS_TCP, POD_IN_L3, POD_IS_EXEMPT, PodCounters, RECENT_PLACES, Spoofed, mac_words,
    reply_bit,
};
use ebbtide_vpc::workspace;

/// A pod on the NIC [`THIS`].
pub const POD: &str = "172.31.16.4";
/// The same pod; the NIC of this address is [`THAT`].
pub const POD6: &str = "fd00:16::4";
/// The number by which the programs identify the pod.
pub const POD_NUMBER: u16 = 4242;
/// Another pod, on [`THIS`].
pub const OTHER_POD: &str = "172.31.16.5";
/// The node's address on [`THIS`].
pub const NODE: &str = "172.31.22.228";
/// The node's IPv6 address on [`THIS`].
pub const NODE6: &str = "fd00:16::228";
/// The node's address on [`THAT`], which has a gateway.
pub const OTHER: &str = "210.22.16.10";
/// The node's address on [`THAT`] in a network without a gateway.
pub const LOST: &str = "192.168.7.7";
/// A pod on [`THAT`].
pub const FAR_POD: &str = "172.31.16.6";
/// A client outside.
pub const CLIENT: &str = "198.51.100.7";
/// The IPv6 address of [`CLIENT`].
pub const CLIENT6: &str = "2001:db8::7";

/// The loopback: the device of a test run in any namespace.
pub const THIS: u32 = 1;
/// Another NIC.
pub const THAT: u32 = 77;
/// The redirect device.
pub const REDIRECT_DEVICE: u32 = 78;
/// The pod's end of its veth pair.
pub const VETH: u32 = 79;
/// The mark of [`THIS`].
pub const MARK: u32 = 0x02;
/// The mark of [`THAT`].
pub const THAT_MARK: u32 = 0x04;
/// The bit of replies, in the host.
pub const REPLY: u32 = reply_bit(DEFAULT_NIC_MARKS);

/// `TC_ACT_UNSPEC` (include/uapi/linux/pkt_cls.h): the next filter decides.
pub const PASS: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
pub const DROP: u32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: u32 = 7;

/// Size of `struct __sk_buff` (include/uapi/linux/bpf.h), and the offsets of fields in it.
const SKB_LEN: usize = 192;
const SKB_MARK: usize = 8;
const SKB_INGRESS_IFINDEX: usize = 36;

/// All programs, loaded, with a pod and two NICs in their maps.
pub struct Bench {
    object: Ebpf,
    /// The flow table of the pod, and that of [`OTHER_POD`].
    flows: Map,
    flows_of_other: Map,
    /// The host's flow table of the pod and the node, and that of [`OTHER_POD`].
    host_flows: Map,
    host_flows_of_other: Map,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").finish_non_exhaustive()
    }
}

/// The result of a program's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its verdict.
    pub verdict: u32,
    /// The packet's mark after it.
    pub mark: u32,
    /// The packet after it.
    pub packet: Vec<u8>,
}

/// Parses an address that is written in the source.
///
/// # Panics
/// If it is not an address.
#[must_use]
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Returns the names of all programs, the pod's first.
pub fn names() -> impl Iterator<Item = &'static str> {
    let pod = PROGRAMS.iter().map(|program| program.name);
    pod.chain(HOST_PROGRAMS.iter().map(|program| program.name))
}

impl Bench {
    /// Loads the programs and fills their maps.
    ///
    /// # Panics
    /// If the object is not there, or the kernel refuses it (are you root?).
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it asks much of the kernel")]
    pub fn new() -> Self {
        let path = workspace::EBPF.file("ebbtide").unwrap();
        let mut object = EbpfLoader::new()
            .load_file(&path)
            .unwrap_or_else(|e| panic!("load {} (are you root?): {e}", path.display()));
        for name in names() {
            let program: &mut SchedClassifier =
                object.program_mut(name).unwrap().try_into().unwrap();
            program
                .load()
                .unwrap_or_else(|e| panic!("load the program {name} (are you root?): {e}"));
        }
        let bytes = std::fs::read(&path).unwrap();
        let [flows, flows_of_other] = tables(&mut object, &bytes, "FLOWS", &[POD, POD6]);
        let [host_flows, host_flows_of_other] =
            tables(&mut object, &bytes, "HOST_FLOWS", &[POD, POD6, NODE]);
        let mut bench = Self {
            object,
            flows,
            flows_of_other,
            host_flows,
            host_flows_of_other,
        };
        bench.fill();
        bench
    }

    fn fill(&mut self) {
        let object = &mut self.object;
        let mut counters: PerCpuHashMap<_, Address, PodCounters> =
            object.map_mut("COUNTERS").unwrap().try_into().unwrap();
        for (address, pod) in [
            (POD, POD_NUMBER),
            (POD6, POD_NUMBER),
            (OTHER_POD, POD_NUMBER + 1),
        ] {
            let fresh = PodCounters {
                pod,
                flags: POD_IN_L3,
                veth: VETH,
                ..PodCounters::default()
            };
            patiently(|| counters.insert(key(ip(address)), on_each_cpu(fresh), 0));
        }
        let mut addresses: HashMap<_, Address, NodeAddress> =
            object.map_mut("ADDRESSES").unwrap().try_into().unwrap();
        for (address, ifindex, flags) in [
            (POD, THIS, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (POD6, THAT, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (OTHER_POD, THIS, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (FAR_POD, THAT, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (NODE, THIS, OWNER_HAS_GATEWAY),
            (NODE6, THIS, OWNER_HAS_GATEWAY),
            (OTHER, THAT, OWNER_HAS_GATEWAY),
            (LOST, THAT, 0),
        ] {
            let owner = NodeAddress { ifindex, flags };
            patiently(|| addresses.insert(key(ip(address)), owner, 0));
        }
        let mut nics: HashMap<_, u32, Nic> = object.map_mut("NICS").unwrap().try_into().unwrap();
        for (index, mark) in [(THIS, MARK), (THAT, THAT_MARK)] {
            patiently(|| {
                nics.insert(
                    index,
                    Nic {
                        mark,
                        flags: 0,
                        asks_as: 0,
                        gateway4: 0,
                        gateway6: [0; 4],
                    },
                    0,
                )
            });
        }
        let mut counters: PerCpuHashMap<_, u32, NicCounters> =
            object.map_mut("NIC_COUNTERS").unwrap().try_into().unwrap();
        for index in [THIS, 1 << 31 | THAT_MARK] {
            patiently(|| counters.insert(index, on_each_cpu(NicCounters::default()), 0));
        }
        let mut host: Array<_, HostConfig> = object.map_mut("HOST").unwrap().try_into().unwrap();
        let config = HostConfig {
            redirect_device: REDIRECT_DEVICE,
            pad: 0,
        };
        host.set(0, config, 0).unwrap();
    }

    fn program(&self, name: &str) -> &SchedClassifier {
        self.object.program(name).unwrap().try_into().unwrap()
    }

    /// Returns the descriptor of a program, for a tc filter.
    ///
    /// # Panics
    /// If there is no such program.
    #[must_use]
    pub fn fd(&self, name: &str) -> RawFd {
        self.program(name).fd().unwrap().as_fd().as_raw_fd()
    }

    /// Runs a program once.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn run(&self, program: &str, packet: &[u8], mark: u32) -> Outcome {
        self.try_run(program, packet, mark).unwrap()
    }

    /// Runs a program once; returns `None` if the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn try_run(&self, program: &str, packet: &[u8], mark: u32) -> Option<Outcome> {
        self.run_from(program, packet, mark, 0)
    }

    /// Runs a program once for a packet that came in by [`THAT`] and was forwarded.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn run_passed_on(&self, program: &str, packet: &[u8]) -> Outcome {
        self.run_marked_and_passed_on(program, packet, 0)
    }

    /// As [`Bench::run_passed_on`], with a mark.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn run_marked_and_passed_on(&self, program: &str, packet: &[u8], mark: u32) -> Outcome {
        self.run_from(program, packet, mark, THAT).unwrap()
    }

    /// Sets whether the NIC [`THIS`] filters reverse paths strictly, for each family.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn is_strict(&mut self, v4: bool, v6: bool) {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        self.know_nic(Nic {
            mark: MARK,
            flags: flag(v4, NIC_IS_STRICT) | flag(v6, NIC_IS_STRICT6),
            asks_as: 0,
            gateway4: 0,
            gateway6: [0; 4],
        });
    }

    /// Sets the IPv4 sender of ARP requests at the NIC [`THIS`].
    ///
    /// # Panics
    /// If it is not one, or the kernel refuses.
    pub fn asks_as(&mut self, address: &str) {
        let address: std::net::Ipv4Addr = address.parse().unwrap();
        self.know_nic(Nic {
            mark: MARK,
            flags: 0,
            asks_as: u32::from_ne_bytes(address.octets()),
            gateway4: 0,
            gateway6: [0; 4],
        });
    }

    fn know_nic(&mut self, nic: Nic) {
        let mut nics: HashMap<_, u32, Nic> =
            self.object.map_mut("NICS").unwrap().try_into().unwrap();
        patiently(|| nics.insert(THIS, nic, 0));
    }

    /// Whether this kernel allows test runs of forwarded packets: 5.10 refuses any `ingress_ifindex`.
    ///
    /// # Panics
    /// If it refuses test runs at all.
    #[must_use]
    pub fn takes_passed_on(&self, program: &str, packet: &[u8]) -> bool {
        let _sent = self.run(program, packet, 0);
        self.run_from(program, packet, 0, THAT).is_some()
    }

    /// Runs a program once. `ingress` is the interface that the packet came in by; zero for packets that a socket
    /// sends.
    fn run_from(&self, program: &str, packet: &[u8], mark: u32, ingress: u32) -> Option<Outcome> {
        let mut ctx_in = [0; SKB_LEN];
        for (at, value) in [(SKB_MARK, mark), (SKB_INGRESS_IFINDEX, ingress)] {
            ctx_in[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut ctx_out = [0; SKB_LEN];
        let mut data_out = vec![0; packet.len() + 64];
        let result = self
            .program(program)
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

    /// Measures how long a program takes for a packet: the mean of `repeat` runs, by the kernel.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn time(&self, program: &str, packet: &[u8], mark: u32, repeat: u32) -> Duration {
        let mut ctx_in = [0; SKB_LEN];
        ctx_in[SKB_MARK..SKB_MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        let result = self.program(program).test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&ctx_in),
            repeat,
            ..TestRunOptions::default()
        });
        result.unwrap().duration
    }

    /// Returns the kernel's information about a program.
    ///
    /// # Panics
    /// If the kernel has none.
    #[must_use]
    pub fn info(&self, program: &str) -> ProgramInfo {
        self.program(program).info().unwrap()
    }

    /// Returns the counters of a hook for a pod's address.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn counted(&self, address: &str, hook: Hook) -> Counters {
        let map: PerCpuHashMap<_, Address, PodCounters> =
            self.object.map("COUNTERS").unwrap().try_into().unwrap();
        let mut sum = Counters::default();
        for cpu in map.get(&key(ip(address)), 0).unwrap().iter() {
            sum.add(&cpu.hooks[hook as usize]);
        }
        sum
    }

    /// Returns the counters of the NIC [`THIS`].
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn counted_at_nic(&self) -> NicCounters {
        let map: PerCpuHashMap<_, u32, NicCounters> =
            self.object.map("NIC_COUNTERS").unwrap().try_into().unwrap();
        let mut sum = NicCounters::default();
        for cpu in map.get(&THIS, 0).unwrap().iter() {
            sum.add(cpu);
        }
        sum
    }

    /// Returns the counters of what a pod sent with foreign addresses.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn spoofed(&self, pod: u16) -> Spoofed {
        let map: HashMap<_, u32, Spoofed> = self.object.map("SPOOFED").unwrap().try_into().unwrap();
        map.get(&pod.into(), 0).unwrap_or_default()
    }

    /// Sets whether the pod's packets pass the host's stack (ipvlan l3).
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn is_l3(&mut self, is_l3: bool) {
        self.know(PodCounters {
            pod: POD_NUMBER,
            flags: if is_l3 { POD_IN_L3 } else { 0 },
            veth: VETH,
            ..PodCounters::default()
        });
    }

    /// Makes the pod's interface an l2 one, whose frames have this link-layer address.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn is_l2_with(&mut self, mac: [u8; 6]) {
        self.know(PodCounters {
            pod: POD_NUMBER,
            veth: VETH,
            mac: mac_words(mac),
            ..PodCounters::default()
        });
    }

    /// As [`Bench::is_l3`], for a pod whose sockets do not take marks.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn follows_tcp(&mut self, is_l3: bool) {
        self.know(PodCounters {
            pod: POD_NUMBER,
            flags: POD_FOLLOWS_TCP | if is_l3 { POD_IN_L3 } else { 0 },
            veth: VETH,
            ..PodCounters::default()
        });
    }

    /// Exempts the pod from the host's netfilter (`exemptFromMasquerade`).
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn exempt(&mut self) {
        self.know(PodCounters {
            pod: POD_NUMBER,
            flags: POD_IN_L3 | POD_IS_EXEMPT,
            veth: VETH,
            ..PodCounters::default()
        });
    }

    fn know(&mut self, entry: PodCounters) {
        let map = self.object.map_mut("COUNTERS").unwrap();
        let mut counters: PerCpuHashMap<_, Address, PodCounters> = map.try_into().unwrap();
        for address in [POD, POD6] {
            counters
                .insert(key(ip(address)), on_each_cpu(entry), 0)
                .unwrap();
        }
    }

    /// Sets the age of all records of TCP connections to `age` seconds.
    ///
    /// # Panics
    /// If the map cannot be read or written.
    pub fn age_connections(&mut self, age: u32) {
        let map = self.object.map_mut("RECENT").unwrap();
        let mut recent: Array<_, u64> = map.try_into().unwrap();
        // The programs' clock wraps, too: the machine may not have been up for that long.
        let then = u64::from((uptime().as_secs() as u32).wrapping_sub(age));
        for place in 0..RECENT_PLACES {
            let noted = recent.get(&place, 0).unwrap();
            if noted != 0 {
                let which = noted >> 32 << 32;
                recent.set(place, which | then, 0).unwrap();
            }
        }
    }

    /// Adds a flow to the pod's table.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn remember(&mut self, key: FlowKey, ifindex: u32) {
        put_flow(&mut self.flows, key, ifindex);
    }

    /// Adds a flow to the table of [`OTHER_POD`].
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn remember_of_other(&mut self, key: FlowKey, ifindex: u32) {
        put_flow(&mut self.flows_of_other, key, ifindex);
    }

    /// Returns the pod's flows, each with the interface that it came in by.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn remembered(&self) -> Vec<(FlowKey, u32)> {
        let flows: HashMap<_, FlowKey, Flow> = (&self.flows).try_into().unwrap();
        let all = flows.iter().map(Result::unwrap);
        all.map(|(key, flow)| (key, flow.ifindex)).collect()
    }

    /// Adds a flow to the host's table of the pod and the node.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn remember_in_host(&mut self, key: FlowKey, flow: HostFlow) {
        let mut flows: HashMap<_, FlowKey, HostFlow> = (&mut self.host_flows).try_into().unwrap();
        flows.insert(key, flow, 0).unwrap();
    }

    /// Makes the responder answer for an address, at the NIC `ifindex` and with `mac`.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn answer_for(&mut self, address: &str, ifindex: u32, mac: [u8; 6]) {
        let mut map: HashMap<_, Address, Answer> =
            self.object.map_mut("ANSWERS").unwrap().try_into().unwrap();
        let answer = Answer {
            ifindex,
            mac,
            ..Answer::default()
        };
        map.insert(key(ip(address)), answer, 0).unwrap();
    }

    /// Returns how often the responder answered for an address.
    ///
    /// # Panics
    /// If it is not told to answer for it.
    #[must_use]
    pub fn answered(&self, address: &str) -> u64 {
        let map: HashMap<_, Address, Answer> =
            self.object.map("ANSWERS").unwrap().try_into().unwrap();
        map.get(&key(ip(address)), 0).unwrap().count
    }

    /// Returns the host's flows of the pod and the node, without their times and packet counts.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn remembered_in_host(&self) -> Vec<(FlowKey, HostFlow)> {
        let flows: HashMap<_, FlowKey, HostFlow> = (&self.host_flows).try_into().unwrap();
        let all = flows.iter().map(Result::unwrap);
        let timeless = |flow| HostFlow {
            since: 0,
            packets: 0,
            ..flow
        };
        all.map(|(key, flow)| (key, timeless(flow))).collect()
    }
}

/// Retries inserting into a map that has no memory at this moment: the kernel allocates more soon after a request
/// (kernel/bpf/memalloc.c, by an interrupt to itself, which user-mode Linux has only with the clock's tick).
fn patiently<E: std::fmt::Debug>(mut insert: impl FnMut() -> Result<(), E>) {
    for _ in 0..100 {
        if insert().is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    insert().unwrap();
}

fn put_flow(table: &mut Map, key: FlowKey, ifindex: u32) {
    let flow = Flow {
        ifindex,
        ..Flow::default()
    };
    let mut flows: HashMap<_, FlowKey, Flow> = table.try_into().unwrap();
    flows.insert(key, flow, 0).unwrap();
}

fn on_each_cpu<T: aya::Pod>(value: T) -> PerCpuValues<T> {
    let cpus = aya::util::nr_cpus().unwrap();
    PerCpuValues::try_from(vec![value; cpus]).unwrap()
}

/// Creates a flow table for `addresses` and one for [`OTHER_POD`], in the map of maps `name`.
fn tables(object: &mut Ebpf, bytes: &[u8], name: &'static str, addresses: &[&str]) -> [Map; 2] {
    let program = object.program("veth_ingress").unwrap().try_into().unwrap();
    let tables = FlowTables::of(bytes, program, name).unwrap();
    let mut outer: HashOfMaps<_, Address, MapData> =
        HashOfMaps::try_from(object.take_map(name).unwrap()).unwrap();
    [addresses, &[OTHER_POD]].map(|addresses| {
        let table = tables.make().unwrap();
        for address in addresses {
            patiently(|| outer.insert(key(ip(address)), &table, 0));
        }
        let id = table.info().unwrap().id();
        Map::LruHashMap(MapData::from_id(id).unwrap())
    })
}
