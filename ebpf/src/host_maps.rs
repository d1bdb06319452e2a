//! The maps of the programs in the host's namespace.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, HashOfMaps, PerCpuHashMap},
    macros::btf_map,
};
use ebbtide_layout::{
    Address, DEFAULT_NIC_MARKS, DEFAULT_NODE_PORTS, HostConfig, HostFlow, MAX_ADDRESSES, MAX_NICS,
    Nic, NicCounters, NodeAddress, reply_bit,
};

use crate::flow::Table;

/// The flows of one address that the host handles.
pub(crate) type HostFlows = Table<HostFlow>;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): uses memory for existing entries only.
const NO_PREALLOC: usize = 1;

/// A flow table for each pod address. Separate from the pods' own tables: TCP is here too, and a flood of it must not
/// evict what a pod's UDP needs.
#[btf_map]
static HOST_FLOWS: HashOfMaps<Address, HostFlows, { MAX_ADDRESSES as usize }, NO_PREALLOC> =
    HashOfMaps::new();

/// The NIC that an address belongs to.
#[btf_map]
static ADDRESSES: HashMap<Address, NodeAddress, { MAX_ADDRESSES as usize }, NO_PREALLOC> =
    HashMap::new();

/// The NICs, by index.
#[btf_map]
static NICS: HashMap<u32, Nic, { MAX_NICS as usize }, NO_PREALLOC> = HashMap::new();

/// Counters by NIC. For the veths' hooks, which have only the NIC's bits of the mark, the key is those bits with the
/// highest bit of the word set: no interface has such an index.
#[btf_map]
static NIC_COUNTERS: PerCpuHashMap<u32, NicCounters, { 2 * MAX_NICS as usize }, NO_PREALLOC> =
    PerCpuHashMap::new();

/// The host's configuration, a single entry.
#[btf_map]
static HOST: Array<HostConfig, 1> = Array::new();

/// Ebbtide's bits of the mark in the host.
#[unsafe(no_mangle)]
static NIC_MARKS: Global<u32> = Global::new(DEFAULT_NIC_MARKS);

/// The one of them for replies. It could be computed, but the kernel's instruction set cannot count zeros.
#[unsafe(no_mangle)]
static NIC_REPLY: Global<u32> = Global::new(reply_bit(DEFAULT_NIC_MARKS));

/// The ports of Services on the node, the first in the upper half.
#[unsafe(no_mangle)]
static NODE_PORTS: Global<u32> = Global::new(DEFAULT_NODE_PORTS);

/// Whether a port of the node is in the Services' range.
#[inline(always)]
pub(crate) fn is_node_port(port: u16) -> bool {
    let ports = NODE_PORTS.load();
    let port = u32::from(port);
    ports >> 16 <= port && port <= ports & 0xffff
}

/// Returns the bit of Ebbtide's mark for "came out of a pod's veth".
#[inline(always)]
pub(crate) fn reply() -> u32 {
    NIC_REPLY.load()
}

/// Returns Ebbtide's bits of the mark in the host.
#[inline(always)]
pub(crate) fn nic_marks() -> u32 {
    NIC_MARKS.load()
}

/// Returns the index of the redirect device, whose ingress is in the host's stack past ipvlan; zero without one.
#[inline(always)]
pub(crate) fn redirect_device() -> u32 {
    HOST.get(0).map_or(0, |host| host.redirect_device)
}

/// Returns the owner of an address.
#[inline(always)]
pub(crate) fn owner(address: &Address) -> Option<NodeAddress> {
    // SAFETY: with BPF_F_NO_PREALLOC what is removed while we look is freed after a grace period.
    unsafe { ADDRESSES.get(address) }.copied()
}

/// Returns a NIC's configuration.
#[inline(always)]
pub(crate) fn nic(ifindex: u32) -> Option<Nic> {
    // SAFETY: as in `owner`.
    unsafe { NICS.get(ifindex) }.copied()
}

/// Returns a NIC's bits of the mark; zero if it has none.
#[inline(always)]
pub(crate) fn nic_mark(ifindex: u32) -> u32 {
    nic(ifindex).map_or(0, |nic| nic.mark)
}

/// Returns the flow table of an address.
#[inline(always)]
pub(crate) fn flows(address: &Address) -> Option<&'static HostFlows> {
    // SAFETY: as in `owner`.
    unsafe { HOST_FLOWS.get(address) }
}

/// Returns a NIC's counters on this CPU.
#[inline(always)]
pub(crate) fn counters(ifindex: u32) -> Option<&'static mut NicCounters> {
    let counters = NIC_COUNTERS.get_ptr_mut(ifindex)?;
    // SAFETY: the kernel keeps a looked-up value alive until the program ends, this CPU's slot is
    // only written by programs on this CPU, which cannot preempt each other at tc, and no other
    // reference to it is made.
    Some(unsafe { &mut *counters })
}
