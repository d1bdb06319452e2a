//! The maps of the programs in the host's namespace.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, PerCpuArray},
    macros::btf_map,
};
use ebbtide_layout::{
    Address, DEFAULT_NIC_MARKS, DEFAULT_NODE_PORTS, HostConfig, MAX_ADDRESSES, MAX_NICS, Nic,
    NicCounters, NodeAddress, OWNER_FORWARDS, reply_bit,
};

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): uses memory for existing entries only.
const NO_PREALLOC: usize = 1;

/// The NIC that an address belongs to.
#[btf_map]
static ADDRESSES: HashMap<Address, NodeAddress, { MAX_ADDRESSES as usize }, NO_PREALLOC> =
    HashMap::new();

/// The NICs, by index.
#[btf_map]
static NICS: HashMap<u32, Nic, { MAX_NICS as usize }, NO_PREALLOC> = HashMap::new();

/// The NICs' bits of the mark, by their numbers.
#[btf_map]
static MARKS: Array<u32, { MAX_NICS as usize }> = Array::new();

/// Counters by the NIC's number.
#[btf_map]
static NIC_COUNTERS: PerCpuArray<NicCounters, { MAX_NICS as usize }> = PerCpuArray::new();

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

/// Returns the host's configuration.
#[inline(always)]
pub(crate) fn config() -> HostConfig {
    HOST.get(0).copied().unwrap_or_default()
}

/// Returns the owner of an address.
#[inline(always)]
pub(crate) fn owner(address: &Address) -> Option<NodeAddress> {
    // SAFETY: with BPF_F_NO_PREALLOC what is removed while we look is freed after a grace period.
    unsafe { ADDRESSES.get(address) }.copied()
}

/// Notes that the host has forwarded something for the pod with this address.
#[inline(always)]
pub(crate) fn forwards(address: &Address) {
    if let Some(owner) = ADDRESSES.get_ptr_mut(address) {
        // SAFETY: as in `owner`; a word is written at once, and the agent writes the same one again if it replaces the
        // entry meanwhile.
        unsafe { (*owner).flags |= OWNER_FORWARDS }
    }
}

/// Returns a NIC's configuration.
#[inline(always)]
pub(crate) fn nic(ifindex: u32) -> Option<Nic> {
    // SAFETY: as in `owner`.
    unsafe { NICS.get(ifindex) }.copied()
}

/// Returns the number of a NIC that may not have the address which `owner` describes.
#[inline(always)]
pub(crate) fn number(ifindex: u32, owner: &NodeAddress) -> u32 {
    if owner.ifindex == ifindex {
        owner.nic
    } else {
        nic(ifindex).map_or(0, |nic| nic.number)
    }
}

/// Returns a NIC's bits of the mark, by its number; zero if it has none.
#[inline(always)]
pub(crate) fn mark(number: u32) -> u32 {
    MARKS.get(number).copied().unwrap_or(0)
}

/// Returns a NIC's counters on this CPU, by its number.
#[inline(always)]
pub(crate) fn counters(number: u32) -> Option<&'static mut NicCounters> {
    let counters = NIC_COUNTERS.get_ptr_mut(number)?;
    // SAFETY: the kernel keeps an array's elements for as long as the program runs, this CPU's slot is only written by
    // programs on this CPU, which cannot preempt each other at tc, and no other reference to it is made.
    Some(unsafe { &mut *counters })
}
