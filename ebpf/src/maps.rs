//! The maps of the programs in pods, and the globals that the agent sets before it loads the programs.

use aya_ebpf::{Global, btf_maps::PerCpuHashMap, macros::btf_map};
use ebbtide_layout::{
    Address, DEFAULT_HOST_BYPASS_MARK, DEFAULT_MARK, DEFAULT_POD_NICS, MAX_ADDRESSES, PodCounters,
};

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): uses memory for existing pods only.
const NO_PREALLOC: usize = 1;

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

/// The bits of the mark for the number of the NIC by which a request came in; zero without any.
#[unsafe(no_mangle)]
static POD_NICS: Global<u32> = Global::new(DEFAULT_POD_NICS);

/// The lowest of them. It could be computed, but the kernel's instruction set cannot count zeros.
#[unsafe(no_mangle)]
static POD_NICS_SHIFT: Global<u32> = Global::new(DEFAULT_POD_NICS.trailing_zeros());

/// Returns the bits of a mark for the number of a NIC; none if there are too few.
#[inline(always)]
pub(crate) fn nic_to_mark(number: u8) -> u32 {
    let bits = u32::from(number) << (POD_NICS_SHIFT.load() & 31);
    if bits & !POD_NICS.load() == 0 {
        bits
    } else {
        0
    }
}

/// Returns the number of the NIC in a mark; zero for none.
#[inline(always)]
pub(crate) fn nic_in_mark(mark: u32) -> u8 {
    ((mark & POD_NICS.load()) >> (POD_NICS_SHIFT.load() & 31)) as u8
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
