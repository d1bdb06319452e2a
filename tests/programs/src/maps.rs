//! What is in the programs' maps: who is known, which flows are remembered, and what was counted.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuHashMap, PerCpuValues},
};
use ebbtide_kernel::datapath::{FlowTables, key, uptime};
use ebbtide_layout::{
    Address, Answer, Counters, Flow, FlowKey, Hook, HostConfig, HostFlow, NIC_IS_STRICT,
    NIC_IS_STRICT6, Nic, NicCounters, NodeAddress, OWNER_HAS_GATEWAY, OWNER_IS_POD,
    POD_FOLLOWS_TCP, POD_IN_L3, POD_IS_EXEMPT, PodCounters, RECENT_PLACES, Spoofed, mac_words,
};

use crate::{
    bench::Bench,
    scene::{
        FAR_POD, LOST, MARK, NODE, NODE6, OTHER, OTHER_POD, POD, POD_NUMBER, POD6, REDIRECT_DEVICE,
        THAT, THAT_MARK, THIS, VETH, ip,
    },
};

impl Bench {
    pub(super) fn fill(&mut self) {
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
pub(super) fn patiently<E: std::fmt::Debug>(mut insert: impl FnMut() -> Result<(), E>) {
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
pub(super) fn tables(
    object: &mut Ebpf,
    bytes: &[u8],
    name: &'static str,
    addresses: &[&str],
) -> [Map; 2] {
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
