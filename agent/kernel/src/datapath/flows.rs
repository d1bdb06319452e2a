//! The table of flows that the programs fill ([`Bucket`]), for all pods of the node.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Mutex,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};
use ebbtide_layout::{
    Address, BUCKETS_PER_POD, Bucket, BucketKey, FORWARDED, FRAGMENTS, Flow, SPARE,
};

use tracing::warn;

use super::{
    Error, NOEXIST,
    error::{is_full, is_gone, is_there, map_error},
    lock,
    retry::retry_enomem,
};

/// Returns the time since boot, suspend included: the programs' clock (`CLOCK_BOOTTIME`), to the hundredth of a second
/// that `/proc/uptime` has. Zero if that cannot be read.
#[must_use]
pub fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or_default()
}

/// Converts a map key to an address: mapped ones to IPv4.
#[must_use]
pub fn address(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// Whether the host forwards a flow for its pod; otherwise it came to the pod by the veth.
#[must_use]
pub const fn is_forwarded(flow: &Flow) -> bool {
    flow.key.kind & FORWARDED != 0
}

/// The buckets of all pods.
pub struct Flows(Mutex<Maps>);

struct Maps {
    buckets: HashMap<MapData, BucketKey, Bucket>,
    /// Whether a pod has, or had, any flow, by its number.
    has_flows: Array<MapData, u32>,
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Flows").finish_non_exhaustive()
    }
}

impl Flows {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let buckets = object.take_map("FLOWS").ok_or(Error::Lacks("map FLOWS"))?;
        let has_flows = object
            .take_map("HAS_FLOWS")
            .ok_or(Error::Lacks("map HAS_FLOWS"))?;
        Ok(Self(Mutex::new(Maps {
            buckets: HashMap::try_from(buckets).map_err(|e| map_error("open the map FLOWS", e))?,
            has_flows: Array::try_from(has_flows)
                .map_err(|e| map_error("open the map HAS_FLOWS", e))?,
        })))
    }

    /// Makes the spare bucket of a pod, where it is missing. In a flood towards very many pods there may be no place for it:
    /// then the pod comes without one, since its network works, and only replies that need a flow go by its routing table.
    pub(super) fn prepare(&self, pod: u16) -> Result<(), Error> {
        let key = BucketKey {
            pod: pod.into(),
            bucket: SPARE,
        };
        let buckets = &mut lock(&self.0).buckets;
        retry_enomem(|| match buckets.insert(key, Bucket::EMPTY, NOEXIST) {
            Err(MapError::SyscallError(e)) if is_there(&e.io_error) => Ok(()),
            Err(MapError::SyscallError(e)) if is_full(&e.io_error) => {
                warn!(
                    "the node remembers {} buckets of flows, as many as it can: UDP that comes to new pods by NodePorts is \
                     answered by their own NIC; `ebbtidectl flows --node` shows which pods are flooded",
                    ebbtide_layout::MAX_BUCKETS
                );
                Ok(())
            }
            other => other.map_err(|e| map_error("make a pod's table of flows", e)),
        })
    }

    /// Removes all flows of a pod. Without any that is no error.
    pub(super) fn forget(&self, pod: u16) -> Result<(), Error> {
        let has_flows = lock(&self.0).has_flows.get(&pod.into(), 0);
        let has_flows = has_flows.map_err(|e| map_error("read whether a pod has flows", e))? != 0;
        // Half a thousand system calls less for a pod that never had one: the last key is the spare bucket's.
        let others = if has_flows {
            0
        } else {
            BUCKETS_PER_POD as usize
        };
        for key in keys(pod).skip(others) {
            // Locked for each alone: an ADD may wait.
            let removed = lock(&self.0).buckets.remove(&key);
            match removed {
                Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => {}
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(e) => return Err(map_error("delete a pod's flows", e)),
            }
        }
        if has_flows {
            let reset = lock(&self.0).has_flows.set(pod.into(), 0, 0);
            reset.map_err(|e| map_error("reset whether a pod has flows", e))?;
        }
        Ok(())
    }

    /// Returns the flows of the pod with this number. Flows that are added or removed meanwhile may be seen or not.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn of(&self, pod: u16) -> Result<Vec<Flow>, Error> {
        let mut flows = Vec::new();
        for key in keys(pod) {
            let bucket = lock(&self.0).buckets.get(&key, 0);
            match bucket {
                Ok(bucket) => flows.extend(shown(&bucket)),
                Err(MapError::KeyNotFound) => {}
                Err(e) => return Err(map_error("read a pod's flows", e)),
            }
        }
        Ok(flows)
    }

    /// Returns how many buckets the pod with this number has, and how many flows are in them.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn count(&self, pod: u16) -> Result<(u64, u64), Error> {
        let has_flows = lock(&self.0).has_flows.get(&pod.into(), 0);
        let has_flows = has_flows.map_err(|e| map_error("read whether a pod has flows", e))? != 0;
        // Without any, the pod has its spare bucket alone, which is the last key's.
        let others = if has_flows {
            0
        } else {
            BUCKETS_PER_POD as usize
        };
        let (mut buckets, mut flows) = (0, 0);
        for key in keys(pod).skip(others) {
            // Locked for each alone: an ADD may wait.
            let bucket = lock(&self.0).buckets.get(&key, 0);
            match bucket {
                Ok(bucket) => {
                    buckets += 1;
                    flows += shown(&bucket).count() as u64;
                }
                Err(MapError::KeyNotFound) => {}
                Err(e) => return Err(map_error("read a pod's flows", e)),
            }
        }
        Ok((buckets, flows))
    }
}

/// Returns the keys of all buckets that a pod may have.
fn keys(pod: u16) -> impl Iterator<Item = BucketKey> {
    (0..BUCKETS_PER_POD)
        .chain([SPARE])
        .map(move |bucket| BucketKey {
            pod: pod.into(),
            bucket,
        })
}

/// Returns the flows in a bucket, without the notes of fragments in flight.
fn shown(bucket: &Bucket) -> impl Iterator<Item = Flow> {
    let flows = bucket.remembered().copied();
    flows.filter(|flow| flow.key.kind & FRAGMENTS == 0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_pod_has_each_bucket_once() {
        let all: HashSet<_> = keys(7).collect();
        assert_eq!(all.len(), keys(7).count());
        assert_eq!(all.len(), BUCKETS_PER_POD as usize + 1);
    }

    #[test]
    fn notes_of_fragments_are_not_shown() {
        let mut bucket = Bucket::EMPTY;
        for (place, kind) in [
            (0, 0),
            (3, FORWARDED),
            (5, FRAGMENTS),
            (7, FORWARDED | FRAGMENTS),
        ] {
            bucket.set_tag(place, 1);
            bucket.flows[place].key.kind = kind;
        }
        let kinds: Vec<u8> = shown(&bucket).map(|flow| flow.key.kind).collect();
        assert_eq!(kinds, [0, FORWARDED]);
    }
}
