//! The table of remembered flows ([`Bucket`]).

use core::arch::asm;

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use ebbtide_layout::{
    Bucket, BucketKey, FLOWS_PER_BUCKET, Flow, FlowKey, MAX_BUCKETS, POD_NUMBERS, SPARE, place,
};

use crate::packet::TCP;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): uses memory for existing buckets only.
const NO_PREALLOC: usize = 1;

/// `BPF_NOEXIST` (include/uapi/linux/bpf.h): another CPU may have made the bucket meanwhile.
const NOEXIST: u64 = 1;

/// The buckets of all pods.
#[btf_map]
static FLOWS: HashMap<BucketKey, Bucket, { MAX_BUCKETS as usize }, NO_PREALLOC> = HashMap::new();

/// An empty bucket, from which new ones are copied: the stack has no room for one.
#[btf_map]
static EMPTY: Array<Bucket, 1> = Array::new();

/// Which flows a pod has, or had, by its number: any at all ([`ANY`]), and any of TCP ([`OF_TCP`]). Most pods have none,
/// and need no look-up. Each in a byte of its own, since programs on two CPUs may write at once.
#[btf_map]
static HAS_FLOWS: Array<[u8; 4], { POD_NUMBERS as usize }> = Array::new();

/// See [`HAS_FLOWS`].
const ANY: usize = 0;
/// See [`HAS_FLOWS`].
const OF_TCP: usize = 1;

/// Whether there are flows in spare buckets ([`SPARE`]), so that those are looked at, too.
#[btf_map]
static SPARES: Array<u32, 1> = Array::new();

/// Returns what is remembered of a pod's flow, and counts this packet.
#[inline(always)]
pub(crate) fn known(pod: u32, key: &FlowKey) -> Option<&'static mut Flow> {
    if !has_any(pod) {
        return None;
    }
    let (bucket, tag) = place(key);
    match in_bucket(pod, bucket, key, tag) {
        None if has_spares() => in_spare(pod, key, tag),
        found => found,
    }
}

/// Whether a pod has, or had, any flow.
#[inline(always)]
pub(crate) fn has_any(pod: u32) -> bool {
    HAS_FLOWS.get(pod).is_some_and(|has| has[ANY] != 0)
}

/// Whether a pod has, or had, flows of TCP.
#[inline(always)]
pub(crate) fn has_tcp(pod: u32) -> bool {
    HAS_FLOWS.get(pod).is_some_and(|has| has[OF_TCP] != 0)
}

/// Remembers a flow of a pod that is not known. Returns whether there was memory for it.
#[inline(always)]
pub(crate) fn remember(pod: u32, flow: &Flow) -> bool {
    let (bucket, tag) = place(&flow.key);
    put(pod, bucket, flow, tag) != 0
}

/// Forgets a pod's flow. Returns whether it was known.
#[inline(always)]
pub(crate) fn forget(pod: u32, key: &FlowKey) -> bool {
    let (bucket, tag) = place(key);
    let mut known = clear(pod, bucket, key, tag);
    if has_spares() {
        known |= clear(pod, SPARE, key, tag);
    }
    known != 0
}

#[inline(always)]
fn has_spares() -> bool {
    SPARES.get(0).is_some_and(|spares| *spares != 0)
}

#[inline(always)]
fn bucket(pod: u32, bucket: u32) -> Option<&'static mut Bucket> {
    let bucket = FLOWS.get_ptr_mut(&BucketKey { pod, bucket })?;
    // SAFETY: the kernel keeps a looked-up value alive until the program ends. Other CPUs may write it meanwhile: its
    // fields are integers, a flow that is half written has no tag yet, and a count that is lost matters to nobody.
    Some(unsafe { &mut *bucket })
}

/// Returns the place of a flow in its bucket, if it is there.
#[inline(always)]
fn find(bucket: &Bucket, key: &FlowKey, tag: u16) -> Option<usize> {
    let found = bucket.find(tag);
    if found == 0 {
        return None;
    }
    let place = within(Bucket::place_of(found));
    // SAFETY: a key is so many words, aligned like one, without padding (asserted in the layout), and any bytes are a
    // word.
    let words = |key: &FlowKey| unsafe { *(&raw const *key).cast::<[u64; WORDS]>() };
    let (a, b) = (words(key), words(&bucket.flows[place].key));
    let mut differ = 0;
    let mut i = 0;
    while i < WORDS {
        differ |= a[i] ^ b[i];
        i += 1;
    }
    (differ == 0).then_some(place)
}

/// Returns the place for a new flow: that of another one with its tag, else that of the one that was used least recently.
#[inline(always)]
fn place_for(bucket: &Bucket, tag: u16) -> usize {
    let same = bucket.find(tag);
    if same != 0 {
        return within(Bucket::place_of(same));
    }
    let mut oldest = 0_u64;
    let mut i = 0;
    while i < FLOWS_PER_BUCKET {
        let age = u64::from(bucket.clock.wrapping_sub(bucket.used[i]));
        let this = (age << 3) | i as u64;
        // All ones if this one is older: without a branch, as in `Bucket::find`.
        let older = 0_u64.wrapping_sub(minus(oldest, this) >> 63);
        oldest ^= (oldest ^ this) & older;
        i += 1;
    }
    within(oldest)
}

/// Notes the use of a flow.
#[inline(always)]
fn touch(bucket: &mut Bucket, place: usize) {
    bucket.clock = bucket.clock.wrapping_add(1);
    bucket.used[place] = bucket.clock;
}

#[inline(always)]
fn in_bucket(pod: u32, number: u32, key: &FlowKey, tag: u16) -> Option<&'static mut Flow> {
    let bucket = bucket(pod, number)?;
    let place = find(bucket, key, tag)?;
    touch(bucket, place);
    let flow = &mut bucket.flows[place];
    flow.packets += 1;
    Some(flow)
}

/// As [`in_bucket`], for the pod's spare bucket. Not inlined: it is empty, but for a want of memory.
#[inline(never)]
fn in_spare(pod: u32, key: &FlowKey, tag: u16) -> Option<&'static mut Flow> {
    in_bucket(pod, SPARE, key, tag)
}

/// Puts a flow into its bucket, or into the spare one if the kernel has no memory for that. Returns 1, or 0 if there is
/// neither. Not inlined: it is called for new flows alone.
#[inline(never)]
fn put(pod: u32, number: u32, flow: &Flow, tag: u16) -> u32 {
    if let Some(has) = HAS_FLOWS.get_ptr_mut(pod) {
        // SAFETY: the kernel keeps an array's elements for as long as the program runs; a byte is written at once.
        unsafe {
            (*has)[ANY] = 1;
            if flow.key.protocol == TCP {
                (*has)[OF_TCP] = 1;
            }
        }
    }
    let its = match bucket(pod, number) {
        None => {
            if let Some(empty) = EMPTY.get_ptr(0) {
                // SAFETY: as above; nobody writes this one.
                let _made = FLOWS.insert(
                    &BucketKey {
                        pod,
                        bucket: number,
                    },
                    unsafe { &*empty },
                    NOEXIST,
                );
            }
            bucket(pod, number)
        }
        found => found,
    };
    let into = match its {
        None => {
            if let Some(spares) = SPARES.get_ptr_mut(0) {
                // SAFETY: as above; a word is written at once.
                unsafe { *spares = 1 }
            }
            bucket(pod, SPARE)
        }
        found => found,
    };
    let Some(into) = into else {
        return 0;
    };
    let place = place_for(into, tag);
    into.set_tag(place, 0);
    into.flows[place] = *flow;
    touch(into, place);
    into.set_tag(place, tag);
    1
}

/// Removes a flow from a bucket. Returns 1 if it was there.
#[inline(never)]
fn clear(pod: u32, number: u32, key: &FlowKey, tag: u16) -> u32 {
    let Some(bucket) = bucket(pod, number) else {
        return 0;
    };
    let Some(place) = find(bucket, key, tag) else {
        return 0;
    };
    bucket.set_tag(place, 0);
    bucket.used[place] = bucket.clock.wrapping_sub(1 << 31);
    1
}

/// Subtracts, unseen by the compiler: it would make branches of comparisons that are written as arithmetic.
#[inline(always)]
fn minus(mut a: u64, b: u64) -> u64 {
    // SAFETY: one instruction on registers. None at all would do, too, but the kernel refuses debug information about two
    // lines at one instruction.
    unsafe {
        asm!("{0} -= {1}", inout(reg) a, in(reg) b, options(pure, nomem, nostack, preserves_flags));
    }
    a
}

/// Limits a place for the verifier. The compiler, which knows that it is within the bucket, would leave the limit out.
#[inline(always)]
fn within(place: u64) -> usize {
    minus(place, 0) as usize & (FLOWS_PER_BUCKET - 1)
}

/// The words of a key.
const WORDS: usize = size_of::<FlowKey>() / size_of::<u64>();
