//! Records which TCP connections recently began or ended over a veth, for all pods of the node.
//!
//! The host's conntrack remembers them for a while, and would translate what the pod sends directly, between the same
//! addresses and ports, to the node's address. And a connection that the pod forwards has no socket here that could
//! inherit a mark. Only a digest is kept, in the slot that it selects. A slot with two connections stands for all that
//! map to it, so nothing is ever evicted, however many there are: a flood makes replies take the host-stack bypass
//! without need, and nothing worse.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use ebbtide_layout::{FlowKey, RECENT_PLACES, RECENT_SECONDS, hash};

use crate::clock;

/// The slots. Each holds when a connection was recorded, in seconds since boot (`CLOCK_BOOTTIME`), above that the number
/// of the NIC by which it came, above that its own number, and in the highest bit whether it came in directly since. Zero
/// if empty.
#[btf_map]
static RECENT: Array<u64, { RECENT_PLACES as usize }> = Array::new();

/// Stands for all connections of a slot; no connection has this number.
const ALL: u32 = 0;

/// See [`RECENT`].
const STRAIGHT: u64 = 1 << 63;

/// The bits of a slot below a connection's number, and below the number of its NIC.
const NUMBER: u32 = 40;
const NIC: u32 = 32;

/// The path by which a recorded connection came in last.
#[derive(Clone, Copy)]
pub(crate) enum Last {
    /// By the veth; the number of the NIC is zero if it came by none.
    Veth(u8),
    Straight,
}

/// Records that a connection begins or ends now, by the NIC with this number.
#[inline(always)]
pub(crate) fn note(connection: &FlowKey, nic: u8) {
    let (place, which) = digest(connection);
    let Some(last) = RECENT.get_ptr_mut(place) else {
        return;
    };
    let now = clock::seconds();
    // SAFETY: the kernel keeps an array's elements for as long as the program runs, and reads and writes
    // such a word at once. When another CPU writes it in between, the note of one of the two is lost.
    unsafe {
        let (noted, nic) = match known(*last, now) {
            Some(other) if other != which => (ALL, 0),
            _ => (which, nic),
        };
        *last = u64::from(noted) << NUMBER | u64::from(nic) << NIC | u64::from(now);
    }
}

/// Records that a connection begins directly. Returns whether it was recorded recently.
#[inline(always)]
pub(crate) fn begins_straight(connection: &FlowKey) -> bool {
    let Some(last) = noted(connection) else {
        return false;
    };
    // SAFETY: as in `note`.
    unsafe { *last |= STRAIGHT }
    true
}

/// Returns the path by which a connection came in last, if it was recorded recently.
#[inline(always)]
pub(crate) fn last_way(connection: &FlowKey) -> Option<Last> {
    // SAFETY: as in `note`.
    let last = unsafe { *noted(connection)? };
    Some(if last & STRAIGHT != 0 {
        Last::Straight
    } else {
        Last::Veth((last >> NIC) as u8)
    })
}

/// Returns the slot of a connection, if it was recorded recently.
#[inline(always)]
fn noted(connection: &FlowKey) -> Option<*mut u64> {
    let (place, which) = digest(connection);
    let last = RECENT.get_ptr_mut(place)?;
    // SAFETY: as in `note`.
    let found = known(unsafe { *last }, clock::seconds())?;
    (found == ALL || found == which).then_some(last)
}

/// Returns the number in a slot, if it was recorded recently.
#[inline(always)]
fn known(noted: u64, now: u32) -> Option<u32> {
    let time = noted as u32;
    let which = ((noted & !STRAIGHT) >> NUMBER) as u32;
    (time != 0 && now.wrapping_sub(time) <= RECENT_SECONDS).then_some(which)
}

/// Returns a connection's slot and its number there. It is no secret. A client that makes two of its connections collide
/// only sends their replies by the host-stack bypass.
#[inline(always)]
fn digest(connection: &FlowKey) -> (u32, u32) {
    let hash = hash(connection);
    let which = ((hash & !STRAIGHT) >> NUMBER) as u32 | 1;
    (hash as u32 & (RECENT_PLACES - 1), which)
}

const _: () = assert!(RECENT_PLACES.is_power_of_two());
