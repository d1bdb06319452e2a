//! What is in the programs' maps: who is known, which flows are remembered, and what was counted.

use std::time::Duration;

use aya::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, PerCpuValues};
use ebbtide_kernel::datapath::{key, uptime};
use ebbtide_layout::{
    Address, Answer, Bucket, BucketKey, Counters, FORWARDED, Flow, FlowKey, Hook, HostConfig,
    NIC_IS_STRICT, NIC_IS_STRICT6, NIC_SUBNET_SHIFT, Nic, NicCounters, NodeAddress, OWNER_FORWARDS,
    OWNER_HAS_GATEWAY, OWNER_IN_L3, OWNER_IS_FOLLOWED, OWNER_IS_POD, POD_FOLLOWS_TCP, POD_IN_L3,
    POD_IS_EXEMPT, PodCounters, RECENT_PLACES, SPARE, Spoofed, TO_METADATA, mac_words, place,
};

use crate::{
    bench::Bench,
    scene::{
        FAR_POD, LOST, MARK, NODE, NODE6, OTHER, OTHER_POD, OTHER_POD6, POD, POD_NUMBER, POD6,
        REDIRECT_DEVICE, THAT, THAT_MARK, THAT_NIC, THIS, THIS_NIC, VETH, ip,
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
            (OTHER_POD6, POD_NUMBER + 1),
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
        let (own, other) = (u32::from(POD_NUMBER), u32::from(POD_NUMBER) + 1);
        for (address, ifindex, nic, pod, flags) in [
            (POD, THIS, THIS_NIC, own, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (POD6, THAT, THAT_NIC, own, OWNER_IS_POD | OWNER_HAS_GATEWAY),
            (
                OTHER_POD,
                THIS,
                THIS_NIC,
                other,
                OWNER_IS_POD | OWNER_HAS_GATEWAY,
            ),
            (
                FAR_POD,
                THAT,
                THAT_NIC,
                other + 1,
                OWNER_IS_POD | OWNER_HAS_GATEWAY,
            ),
            (NODE, THIS, THIS_NIC, 0, OWNER_HAS_GATEWAY),
            (NODE6, THIS, THIS_NIC, 0, OWNER_HAS_GATEWAY),
            (OTHER, THAT, THAT_NIC, 0, OWNER_HAS_GATEWAY),
            (LOST, THAT, THAT_NIC, 0, 0),
        ] {
            let owner = NodeAddress {
                ifindex,
                flags,
                pod,
                nic: nic.into(),
            };
            patiently(|| addresses.insert(key(ip(address)), owner, 0));
        }
        let mut nics: HashMap<_, u32, Nic> = object.map_mut("NICS").unwrap().try_into().unwrap();
        for (index, number, mark) in [(THIS, THIS_NIC, MARK), (THAT, THAT_NIC, THAT_MARK)] {
            let nic = Nic {
                number: number.into(),
                mark,
                flags: 0,
                asks_as: 0,
                gateway4: 0,
                gateway6: [0; 4],
            };
            patiently(|| nics.insert(index, nic, 0));
        }
        let mut marks: Array<_, u32> = object.map_mut("MARKS").unwrap().try_into().unwrap();
        marks.set(THIS_NIC.into(), MARK, 0).unwrap();
        marks.set(THAT_NIC.into(), THAT_MARK, 0).unwrap();
        let mut flows: HashMap<_, BucketKey, Bucket> =
            object.map_mut("FLOWS").unwrap().try_into().unwrap();
        for pod in [own, other] {
            let bucket = SPARE;
            patiently(|| flows.insert(BucketKey { pod, bucket }, Bucket::EMPTY, 0));
        }
        self.configure(0);
    }

    fn configure(&mut self, nic_flags: u32) {
        let map = self.object.map_mut("HOST").unwrap();
        let mut host: Array<_, HostConfig> = map.try_into().unwrap();
        let config = HostConfig {
            redirect_device: REDIRECT_DEVICE,
            several_nics: 1,
            nic_flags,
            pad: 0,
        };
        host.set(0, config, 0).unwrap();
    }

    /// Sets whether the NIC [`THIS`] filters reverse paths strictly, for each family. Its subnet is the one of [`POD`].
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn is_strict(&mut self, v4: bool, v6: bool) {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(v4, NIC_IS_STRICT) | flag(v6, NIC_IS_STRICT6);
        let address: std::net::Ipv4Addr = NODE.parse().unwrap();
        self.configure(flags);
        self.know_nic(Nic {
            number: THIS_NIC.into(),
            mark: MARK,
            flags: flags | 20 << NIC_SUBNET_SHIFT,
            asks_as: u32::from_ne_bytes(address.octets()),
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
            number: THIS_NIC.into(),
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
        let map: PerCpuArray<_, NicCounters> =
            self.object.map("NIC_COUNTERS").unwrap().try_into().unwrap();
        let mut sum = NicCounters::default();
        for cpu in map.get(&THIS_NIC.into(), 0).unwrap().iter() {
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
        self.not_sent(pod.into())
    }

    /// Returns the counters of what a pod sent to metadata services and must not.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn to_metadata(&self, pod: u16) -> Spoofed {
        self.not_sent(u32::from(pod) | TO_METADATA)
    }

    fn not_sent(&self, key: u32) -> Spoofed {
        let map: HashMap<_, u32, Spoofed> = self.object.map("SPOOFED").unwrap().try_into().unwrap();
        map.get(&key, 0).unwrap_or_default()
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

    /// Makes both pods on [`THIS`], with all their addresses there, such as the NIC's program follows
    /// ([`OWNER_IS_FOLLOWED`]), in l3 or l2.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn is_followed(&mut self, is_l3: bool) {
        self.is_l3(is_l3);
        let map = self.object.map_mut("ADDRESSES").unwrap();
        let mut addresses: HashMap<_, Address, NodeAddress> = map.try_into().unwrap();
        let mode = if is_l3 { OWNER_IN_L3 } else { 0 };
        for (address, pod) in [
            (POD, POD_NUMBER),
            (POD6, POD_NUMBER),
            (OTHER_POD, POD_NUMBER + 1),
            (OTHER_POD6, POD_NUMBER + 1),
        ] {
            let owner = NodeAddress {
                ifindex: THIS,
                flags: OWNER_IS_POD | OWNER_HAS_GATEWAY | OWNER_IS_FOLLOWED | mode,
                pod: pod.into(),
                nic: THIS_NIC.into(),
            };
            patiently(|| addresses.insert(key(ip(address)), owner, 0));
        }
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

    /// Gives the pod flags for metadata services (`POD_METADATA`, `POD_NO_METADATA`).
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn keep_from_metadata(&mut self, flags: u16) {
        self.know(PodCounters {
            pod: POD_NUMBER,
            flags: POD_IN_L3 | flags,
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
                // The number of the connection, and that of its NIC.
                let which = noted >> 32 << 32;
                recent.set(place, which | then, 0).unwrap();
            }
        }
    }

    /// Makes the pod's program know a flow that came by the veth and before by the NIC with this number.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn remember(&mut self, key: FlowKey, nic: u8) {
        self.put(POD_NUMBER.into(), key, nic);
    }

    /// As [`Bench::remember`], for [`OTHER_POD`].
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn remember_of_other(&mut self, key: FlowKey, nic: u8) {
        self.put(u32::from(POD_NUMBER) + 1, key, nic);
    }

    /// Makes the host's programs know that the host forwards a flow for the pod.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn remember_forwarded(&mut self, key: FlowKey) {
        let kind = FORWARDED;
        self.put(POD_NUMBER.into(), FlowKey { kind, ..key }, 0);
        let map = self.object.map_mut("ADDRESSES").unwrap();
        let mut addresses: HashMap<_, Address, NodeAddress> = map.try_into().unwrap();
        let mut owner = addresses.get(&key.local, 0).unwrap();
        owner.flags |= OWNER_FORWARDS;
        addresses.insert(key.local, owner, 0).unwrap();
    }

    fn put(&mut self, pod: u32, key: FlowKey, nic: u8) {
        let map = self.object.map_mut("FLOWS").unwrap();
        let mut flows: HashMap<_, BucketKey, Bucket> = map.try_into().unwrap();
        let (bucket, tag) = place(&key);
        let at = BucketKey { pod, bucket };
        let mut bucket = flows.get(&at, 0).unwrap_or(Bucket::EMPTY);
        let found = bucket.find(tag);
        let free = || bucket.flows.len() - 1 - bucket.remembered().count();
        let place = match found {
            0 => free(),
            found => Bucket::place_of(found) as usize,
        };
        bucket.set_tag(place, tag);
        bucket.used[place] = bucket.clock;
        bucket.flows[place] = Flow {
            key,
            nic,
            ..Flow::default()
        };
        patiently(|| flows.insert(at, bucket, 0));
        let map = self.object.map_mut("HAS_FLOWS").unwrap();
        let mut has_flows: Array<_, u32> = map.try_into().unwrap();
        has_flows.set(pod, 1, 0).unwrap();
    }

    /// Returns all remembered flows, in no order.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        let flows: HashMap<_, BucketKey, Bucket> =
            self.object.map("FLOWS").unwrap().try_into().unwrap();
        let buckets = flows.iter().map(|entry| entry.unwrap().1);
        let all = buckets.flat_map(|bucket| bucket.remembered().copied().collect::<Vec<_>>());
        all.collect()
    }

    /// Returns the flows that came in by the veth, each with the number of the NIC that it came by before.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn remembered(&self) -> Vec<(FlowKey, u8)> {
        let flows = self.flows().into_iter();
        let in_pod = flows.filter(|flow| flow.key.kind & FORWARDED == 0);
        in_pod.map(|flow| (flow.key, flow.nic)).collect()
    }

    /// Returns the flows that the host forwards, as the pod's programs would know them.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn forwarded(&self) -> Vec<FlowKey> {
        let flows = self.flows().into_iter();
        let by_host = flows.filter(|flow| flow.key.kind & FORWARDED != 0);
        by_host
            .map(|flow| FlowKey {
                kind: flow.key.kind & !FORWARDED,
                ..flow.key
            })
            .collect()
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

fn on_each_cpu<T: aya::Pod>(value: T) -> PerCpuValues<T> {
    let cpus = aya::util::nr_cpus().unwrap();
    PerCpuValues::try_from(vec![value; cpus]).unwrap()
}
