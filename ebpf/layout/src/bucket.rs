//! The table of remembered flows: a few flows in each bucket, and a bucket in memory only while the pod has flows there.
//!
//! A flow's bucket, and its tag in it, follow from its key. A bucket is full with [`FLOWS_PER_BUCKET`] flows, and forgets
//! the one that was used least recently. So a pod without flows takes no memory, a flood evicts flows of its own pod and
//! of nobody else, and no pod has more than [`BUCKETS_PER_POD`].

use crate::{Flow, FlowKey};

/// Maximum number of buckets per pod, besides the spare one.
pub const BUCKETS_PER_POD: u32 = 512;

/// Maximum number of flows in a bucket.
pub const FLOWS_PER_BUCKET: usize = 8;

/// Maximum number of buckets per node: those of 256 pods in a flood. The kernel allocates 16 bytes for each at once.
pub const MAX_BUCKETS: u32 = 1 << 17;

/// The number of the bucket that the agent makes with the pod: for flows whose own bucket the kernel has no memory for.
pub const SPARE: u32 = BUCKETS_PER_POD;

/// Identifies a bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BucketKey {
    /// The pod's number ([`PodCounters::pod`](crate::PodCounters::pod)).
    pub pod: u32,
    /// The bucket, below [`BUCKETS_PER_POD`], or [`SPARE`].
    pub bucket: u32,
}

/// A few flows of one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The tag of each flow ([`place`]); zero for none. Apart from the flows, so that a look-up reads them all at once.
    pub tags: [u32; FLOWS_PER_BUCKET],
    /// [`Bucket::clock`] at the last use of each flow.
    pub used: [u32; FLOWS_PER_BUCKET],
    /// Counts the uses of all flows.
    pub clock: u32,
    /// Always zero.
    pub pad: u32,
    /// The flows. Those without a tag are remains.
    pub flows: [Flow; FLOWS_PER_BUCKET],
}

impl Bucket {
    /// A bucket without flows.
    pub const EMPTY: Self = Self {
        tags: [0; FLOWS_PER_BUCKET],
        used: [0; FLOWS_PER_BUCKET],
        clock: 0,
        pad: 0,
        flows: [Flow {
            key: FlowKey {
                local: [0; 16],
                remote: [0; 16],
                local_port: [0; 2],
                remote_port: [0; 2],
                protocol: 0,
                kind: 0,
                pad: [0; 2],
            },
            since: 0,
            nic: 0,
            straight: 0,
            pad: [0; 2],
            packets: 0,
        }; FLOWS_PER_BUCKET],
    };

    /// Returns the flows.
    pub fn remembered(&self) -> impl Iterator<Item = &Flow> {
        let all = self.tags.iter().zip(&self.flows);
        all.filter(|(tag, _)| **tag != 0).map(|(_, flow)| flow)
    }
}

/// Returns a flow's bucket and its tag there, which is never zero. A multiplicative hash, word by word. It is no secret:
/// who makes many flows collide evicts his own, or those of the pod that he floods.
#[inline(always)]
#[must_use]
pub fn place(key: &FlowKey) -> (u32, u32) {
    let hash = crate::digest::hash(key);
    (
        (hash as u32) & (BUCKETS_PER_POD - 1),
        (hash >> 32) as u32 | 1,
    )
}

const _: () = {
    assert!(BUCKETS_PER_POD.is_power_of_two() && FLOWS_PER_BUCKET == 8);
    assert!(size_of::<BucketKey>() == 8 && size_of::<Bucket>() == 520);
};

#[cfg(not(target_arch = "bpf"))]
mod pod {
    use super::{Bucket, BucketKey};

    // SAFETY: `repr(C)`, no padding (asserted by size above), every bit pattern is valid.
    unsafe impl aya::Pod for BucketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Bucket {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    #[test]
    fn a_client_s_flows_spread_over_all_buckets() {
        let mut sizes = [0_usize; BUCKETS_PER_POD as usize];
        for port in 20_000..20_000 + 2048_u16 {
            let (bucket, tag) = place(&FlowKey {
                local: mapped([10, 0, 0, 5]),
                remote: mapped([198, 51, 100, 7]),
                local_port: 53_u16.to_be_bytes(),
                remote_port: port.to_be_bytes(),
                protocol: 17,
                ..FlowKey::default()
            });
            assert_ne!(tag, 0);
            sizes[bucket as usize] += 1;
        }
        // Four are in each on average. Of random numbers, 2 % of the buckets would have more than eight.
        let full = sizes
            .iter()
            .filter(|size| **size > FLOWS_PER_BUCKET)
            .count();
        assert!(full < 30, "{full} of 512 buckets have too many");
    }
}
