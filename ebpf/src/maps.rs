//! The maps of the programs in pods, and the globals that the agent sets before it loads the programs.

use aya_ebpf::{
    Global,
    btf_maps::{HashOfMaps, PerCpuHashMap},
    macros::btf_map,
};
use ebbtide_layout::{
    Address, Counters, DEFAULT_HOST_BYPASS_MARK, DEFAULT_MARK, Flow, Hook, MAX_ADDRESSES,
    PodCounters,
};

use crate::flow::Table;

/// A pod's remembered flows.
pub(crate) type Flows = Table<Flow>;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): uses memory for existing pods only.
const NO_PREALLOC: usize = 1;

/// The flow table of the pod that owns an address. One table per pod, so that a flood towards one pod evicts nothing of
/// another's.
#[btf_map]
pub(crate) static FLOWS: HashOfMaps<Address, Flows, { MAX_ADDRESSES as usize }, NO_PREALLOC> =
    HashOfMaps::new();

/// Counters by pod address.
#[btf_map]
pub(crate) static COUNTERS: PerCpuHashMap<
    Address,
    PodCounters,
    { MAX_ADDRESSES as usize },
    NO_PREALLOC,
> = PerCpuHashMap::new();

/// The bit (or bits) of the mark for "came in by the veth". Foreign bits are never changed.
#[unsafe(no_mangle)]
static MARK: Global<u32> = Global::new(DEFAULT_MARK);

/// Returns the configured mark.
#[inline(always)]
pub(crate) fn mark() -> u32 {
    MARK.load()
}

/// The bit (or bits) of the mark for "its replies take the host-stack bypass".
#[unsafe(no_mangle)]
static HOST_BYPASS_MARK: Global<u32> = Global::new(DEFAULT_HOST_BYPASS_MARK);

/// Returns the configured mark for replies by the host-stack bypass.
#[inline(always)]
pub(crate) fn host_bypass_mark() -> u32 {
    HOST_BYPASS_MARK.load()
}

/// Returns the number and this CPU's counters of the pod that owns `address`.
#[inline(always)]
pub(crate) fn pod(address: &Address) -> Option<&'static mut PodCounters> {
    let pod = COUNTERS.get_ptr_mut(address)?;
    // SAFETY: the kernel keeps a looked-up value alive until the program ends, this CPU's slot is
    // only written by programs on this CPU, which cannot preempt each other at tc, and no other
    // reference to it is made.
    Some(unsafe { &mut *pod })
}

/// Returns this CPU's counters of `hook` for the pod that owns `address`.
#[inline(always)]
pub(crate) fn counters(address: &Address, hook: Hook) -> Option<&'static mut Counters> {
    pod(address)?.hooks.get_mut(hook as usize)
}

/// Returns the flow table of the pod that owns `address`.
#[inline(always)]
pub(crate) fn flows(address: &Address) -> Option<&'static Flows> {
    // SAFETY: FLOWS has BPF_F_NO_PREALLOC, so an entry that is removed while we look is freed
    // after a grace period and never aliases another one.
    unsafe { FLOWS.get(address) }
}
