//! The programs, loaded, and one run of each.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions},
};
use ebbtide_kernel::{
    datapath::{HOST_PROGRAMS, PROGRAMS},
    netlink::model::LIMIT_PROGRAMS,
};
use ebbtide_vpc::workspace;

use crate::scene::THAT;

/// `TC_ACT_UNSPEC` (include/uapi/linux/pkt_cls.h): the next filter decides.
pub const PASS: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
pub const DROP: u32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: u32 = 7;

/// Size of `struct __sk_buff` (include/uapi/linux/bpf.h), and the offsets of fields in it.
const SKB_LEN: usize = 192;
const SKB_MARK: usize = 8;
const SKB_INGRESS_IFINDEX: usize = 36;

/// All programs, loaded, with a pod and two NICs in their maps.
pub struct Bench {
    pub(super) object: Ebpf,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").finish_non_exhaustive()
    }
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its verdict.
    pub verdict: u32,
    /// The packet's mark after it.
    pub mark: u32,
    /// The packet after it.
    pub packet: Vec<u8>,
}

/// Returns the names of all programs, the pod's first.
pub fn names() -> impl Iterator<Item = &'static str> {
    let pod = PROGRAMS.iter().map(|program| program.name);
    let host = HOST_PROGRAMS.iter().map(|program| program.name);
    pod.chain(host)
        .chain(LIMIT_PROGRAMS.iter().map(|(name, _)| *name))
}

impl Bench {
    /// Loads the programs and fills their maps.
    ///
    /// # Panics
    /// If the object is not there, or the kernel refuses it (are you root?).
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it asks much of the kernel")]
    pub fn new() -> Self {
        let path = workspace::EBPF.file("ebbtide").unwrap();
        let mut object = EbpfLoader::new()
            .load_file(&path)
            .unwrap_or_else(|e| panic!("load {} (are you root?): {e}", path.display()));
        for name in names() {
            let program: &mut SchedClassifier =
                object.program_mut(name).unwrap().try_into().unwrap();
            program
                .load()
                .unwrap_or_else(|e| panic!("load the program {name} (are you root?): {e}"));
        }
        let mut bench = Self { object };
        bench.fill();
        bench
    }

    pub(super) fn program(&self, name: &str) -> &SchedClassifier {
        self.object.program(name).unwrap().try_into().unwrap()
    }

    /// Returns the descriptor of a program, for a tc filter.
    ///
    /// # Panics
    /// If there is no such program.
    #[must_use]
    pub fn fd(&self, name: &str) -> RawFd {
        self.program(name).fd().unwrap().as_fd().as_raw_fd()
    }

    /// Runs a program once.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn run(&self, program: &str, packet: &[u8], mark: u32) -> Outcome {
        self.try_run(program, packet, mark).unwrap()
    }

    /// Runs a program once; returns `None` if the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn try_run(&self, program: &str, packet: &[u8], mark: u32) -> Option<Outcome> {
        self.run_from(program, packet, mark, 0)
    }

    /// Runs a program once for a packet that came in by [`THAT`] and was forwarded.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn run_passed_on(&self, program: &str, packet: &[u8]) -> Outcome {
        self.run_marked_and_passed_on(program, packet, 0)
    }

    /// As [`Bench::run_passed_on`], with a mark.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn run_marked_and_passed_on(&self, program: &str, packet: &[u8], mark: u32) -> Outcome {
        self.run_from(program, packet, mark, THAT).unwrap()
    }

    /// Whether this kernel allows test runs of forwarded packets: 5.10 refuses any `ingress_ifindex`.
    ///
    /// # Panics
    /// If it refuses test runs at all.
    #[must_use]
    pub fn takes_passed_on(&self, program: &str, packet: &[u8]) -> bool {
        let _sent = self.run(program, packet, 0);
        self.run_from(program, packet, 0, THAT).is_some()
    }

    /// Runs a program once. `ingress` is the interface that the packet came in by; zero for packets that a socket
    /// sends.
    fn run_from(&self, program: &str, packet: &[u8], mark: u32, ingress: u32) -> Option<Outcome> {
        let mut ctx_in = [0; SKB_LEN];
        for (at, value) in [(SKB_MARK, mark), (SKB_INGRESS_IFINDEX, ingress)] {
            ctx_in[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut ctx_out = [0; SKB_LEN];
        let mut data_out = vec![0; packet.len() + 64];
        let result = self
            .program(program)
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut data_out),
                ctx_in: Some(&ctx_in),
                ctx_out: Some(&mut ctx_out),
                ..TestRunOptions::default()
            })
            .ok()?;
        data_out.truncate(result.data_size_out as usize);
        Some(Outcome {
            verdict: result.return_value,
            mark: u32::from_ne_bytes(ctx_out[SKB_MARK..SKB_MARK + 4].try_into().unwrap()),
            packet: data_out,
        })
    }

    /// Measures how long a program takes for a packet: the mean of `repeat` runs, by the kernel.
    ///
    /// # Panics
    /// If the kernel refuses such a frame for a test run.
    #[must_use]
    pub fn time(&self, program: &str, packet: &[u8], mark: u32, repeat: u32) -> Duration {
        let mut ctx_in = [0; SKB_LEN];
        ctx_in[SKB_MARK..SKB_MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        let result = self.program(program).test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&ctx_in),
            repeat,
            ..TestRunOptions::default()
        });
        result.unwrap().duration
    }

    /// Returns the kernel's information about a program.
    ///
    /// # Panics
    /// If the kernel has none.
    #[must_use]
    pub fn info(&self, program: &str) -> ProgramInfo {
        self.program(program).info().unwrap()
    }
}
