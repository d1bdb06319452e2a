//! Runs the programs that limit a pod's bandwidth. A test run has no filter, so the pod's number is zero there.

use aya::{
    maps::{Array, HashMap},
    programs::{TestRun as _, TestRunOptions},
};
use ebbtide_layout::Limits;

use crate::{bench::Bench, maps::patiently};

/// Size of `struct __sk_buff` (include/uapi/linux/bpf.h), and the offsets of fields in it.
const SKB_LEN: usize = 192;
const SKB_TSTAMP: usize = 152;
const SKB_WIRE_LEN: usize = 160;
const SKB_GSO_SEGS: usize = 164;

/// The number of the pod.
const POD: u32 = 0;

/// How a packet comes to a program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// Its length with the headers of all segments; zero for that of the frame.
    pub wire_len: u32,
    /// The number of its segments.
    pub segments: u32,
    /// When it may leave, in nanoseconds of `CLOCK_MONOTONIC`; zero for at once.
    pub departs: u64,
}

impl Bench {
    /// Sets the limits of the pod, or removes them.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn limit(&mut self, limits: Option<Limits>) {
        let map = self.object.map_mut("LIMITS").unwrap();
        let mut map: HashMap<_, u32, Limits> = map.try_into().unwrap();
        match limits {
            Some(limits) => patiently(|| map.insert(POD, limits, 0)),
            None => map.remove(&POD).unwrap(),
        }
    }

    /// Returns the limits of the pod.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let map = self.object.map("LIMITS").unwrap();
        let map: HashMap<_, u32, Limits> = map.try_into().unwrap();
        map.get(&POD, 0).unwrap()
    }

    /// Returns how many packets of all pods were dropped: out of pods, and into them.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn limited(&self) -> [u64; 2] {
        let map: Array<_, u64> = self.object.map("LIMITED").unwrap().try_into().unwrap();
        [0, 1].map(|at| map.get(&at, 0).unwrap())
    }

    /// Runs a program once. Returns its verdict, and when the packet may leave.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn run_limited(&self, program: &str, packet: &[u8], given: Given) -> (u32, u64) {
        let mut ctx_in = [0; SKB_LEN];
        ctx_in[SKB_TSTAMP..SKB_TSTAMP + 8].copy_from_slice(&given.departs.to_ne_bytes());
        for (at, value) in [
            (SKB_WIRE_LEN, given.wire_len),
            (SKB_GSO_SEGS, given.segments),
        ] {
            ctx_in[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut ctx_out = [0; SKB_LEN];
        let result = self.program(program).test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&ctx_in),
            ctx_out: Some(&mut ctx_out),
            ..TestRunOptions::default()
        });
        let departs = ctx_out[SKB_TSTAMP..SKB_TSTAMP + 8].try_into().unwrap();
        (result.unwrap().return_value, u64::from_ne_bytes(departs))
    }
}
