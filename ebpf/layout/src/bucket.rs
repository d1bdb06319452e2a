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

/// One more than the largest number of a pod ([`PodCounters::pod`](crate::PodCounters::pod)).
pub const POD_NUMBERS: u32 = 1 << 16;

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
    /// The tags of the flows ([`place`]), 16 bits each; zero for none. No two are the same. Those of the flows 1, 3, 5 and 7
    /// are in the first word, from its lowest bits up, those of 0, 2, 4 and 6 in the second: then [`Bucket::find`] finds one
    /// by a few operations on both words.
    pub tags: [u64; 2],
    /// [`Bucket::clock`] at the last use of each flow; half a turn of it ago for none.
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
        tags: [0; 2],
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

    /// Returns where a tag is: 128 times two to the power of eight times the flow's place. Zero without one.
    ///
    /// Without a branch for each flow, which the verifier would walk the rest of the program for. In a word, the lowest
    /// bit that is set marks the lowest 16 bits that are zero (Warren, Hacker's Delight, 6-1).
    #[inline(always)]
    #[must_use]
    pub const fn find(&self, tag: u16) -> u64 {
        const ONES: u64 = 0x0001_0001_0001_0001;
        let four = ONES.wrapping_mul(tag as u64);
        let (a, b) = (self.tags[0] ^ four, self.tags[1] ^ four);
        let a = a.wrapping_sub(ONES) & !a & (ONES << 15);
        let b = b.wrapping_sub(ONES) & !b & (ONES << 15);
        let both = a | b >> 8;
        both & both.wrapping_neg()
    }

    /// Returns the place of a flow from what [`Bucket::find`] has found.
    #[inline(always)]
    #[must_use]
    pub const fn place_of(found: u64) -> u64 {
        (found >> 7).wrapping_mul(0x0001_0203_0405_0607) >> 56
    }

    /// Returns the word and the shift of a flow's tag in [`Bucket::tags`].
    #[inline(always)]
    #[must_use]
    pub const fn tag_at(place: usize) -> (usize, u32) {
        (place & 1 ^ 1, (place as u32 >> 1 & 3) * 16)
    }

    /// Sets the tag of the flow at a place; zero for none.
    #[inline(always)]
    pub const fn set_tag(&mut self, place: usize, tag: u16) {
        let (word, shift) = Self::tag_at(place);
        self.tags[word] = self.tags[word] & !(0xffff << shift) | (tag as u64) << shift;
    }

    /// Returns the flows.
    pub fn remembered(&self) -> impl Iterator<Item = &Flow> {
        let has_tag = |place: usize| {
            let (word, shift) = Self::tag_at(place);
            self.tags[word] >> shift & 0xffff != 0
        };
        let all = self.flows.iter().enumerate();
        all.filter(move |(place, _)| has_tag(*place))
            .map(|(_, flow)| flow)
    }
}

/// Returns a flow's bucket and its tag there, which is never zero. A multiplicative hash, word by word. It is no secret:
/// who makes many flows collide evicts his own, or those of the pod that he floods.
#[inline(always)]
#[must_use]
pub fn place(key: &FlowKey) -> (u32, u16) {
    let hash = crate::digest::hash(key);
    (
        (hash as u32) & (BUCKETS_PER_POD - 1),
        (hash >> 48) as u16 | 1,
    )
}

const _: () = {
    assert!(BUCKETS_PER_POD.is_power_of_two() && FLOWS_PER_BUCKET == 8);
    assert!(size_of::<BucketKey>() == 8 && size_of::<Bucket>() == 504);
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
    fn a_tag_is_found_at_its_place_whatever_the_others_are() {
        let others = [1, 3, 0x7fff, 0x8001, 0xffff, 0x0101, 5, 7];
        for place in 0..FLOWS_PER_BUCKET {
            for tag in [0x00ff, 0x8003, 9] {
                let mut bucket = Bucket::EMPTY;
                for (other, tag) in others.into_iter().enumerate() {
                    bucket.set_tag(other, tag);
                }
                assert_eq!(bucket.find(tag), 0);
                bucket.set_tag(place, tag);
                let found = bucket.find(tag);
                assert_ne!(found, 0);
                assert_eq!(Bucket::place_of(found), place as u64, "{tag:#x}");
                bucket.set_tag(place, 0);
                assert_eq!(bucket.find(tag), 0);
                assert_eq!(bucket.remembered().count(), FLOWS_PER_BUCKET - 1);
            }
        }
        assert_eq!(Bucket::EMPTY.find(1), 0);
    }

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
