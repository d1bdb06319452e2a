//! Lists the eBPF programs with their hooks, and loads them.

use std::{
    collections::HashMap,
    fmt,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use aya::{
    Ebpf,
    programs::{ProgramFd, SchedClassifier},
};

use ebbtide_layout::{Hook, HostHook};

use super::{Error, error::refused, lock};
use crate::netlink::model::{Direction, LIMIT_PROGRAMS};

/// A program at one of a pod's hooks.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name in the object.
    pub name: &'static str,
    /// The pod's hook.
    pub hook: Hook,
    /// The direction on the link.
    pub direction: Direction,
}

/// The programs of pods, in the order of [`Hook::ALL`].
pub const PROGRAMS: [Program; 3] = [
    Program {
        name: "veth_ingress",
        hook: Hook::VethIngress,
        direction: Direction::Ingress,
    },
    Program {
        name: "nic_egress",
        hook: Hook::NicEgress,
        direction: Direction::Egress,
    },
    Program {
        name: "nic_ingress",
        hook: Hook::NicIngress,
        direction: Direction::Ingress,
    },
];

/// A program at one of the host's hooks.
#[derive(Clone, Copy, Debug)]
pub struct HostProgram {
    /// Name in the object.
    pub name: &'static str,
    /// The host's hook.
    pub hook: HostHook,
    /// The direction on the link.
    pub direction: Direction,
}

impl HostProgram {
    /// Whether the program belongs to the node's NICs, not to a pod's veth pair.
    #[must_use]
    pub const fn is_at_nic(&self) -> bool {
        matches!(self.hook, HostHook::NicIngress | HostHook::NicEgress)
    }
}

/// The programs of the host, in the order of [`HostHook::ALL`].
pub const HOST_PROGRAMS: [HostProgram; 4] = [
    HostProgram {
        name: "host_nic_ingress",
        hook: HostHook::NicIngress,
        direction: Direction::Ingress,
    },
    HostProgram {
        name: "host_nic_egress",
        hook: HostHook::NicEgress,
        direction: Direction::Egress,
    },
    HostProgram {
        name: "host_veth_egress",
        hook: HostHook::VethEgress,
        direction: Direction::Egress,
    },
    HostProgram {
        name: "host_veth_ingress",
        hook: HostHook::VethIngress,
        direction: Direction::Ingress,
    },
];

/// Whether a program of this name is one of Ebbtide's.
#[must_use]
pub fn is_own_program(name: &str) -> bool {
    let mut names = PROGRAMS.iter().map(|program| program.name);
    let mut of_host = HOST_PROGRAMS.iter().map(|program| program.name);
    let mut limits = LIMIT_PROGRAMS.iter().map(|(name, _)| *name);
    names.any(|own| own == name) || of_host.any(|own| own == name) || limits.any(|own| own == name)
}

/// The loaded programs. Clones share them; they stay loaded until the last one is dropped.
#[derive(Clone)]
pub struct Programs(Arc<[Loaded]>);

struct Loaded {
    name: &'static str,
    fd: ProgramFd,
    classifier: Mutex<SchedClassifier>,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|loaded| loaded.name))
            .finish()
    }
}

impl Programs {
    /// Loads these programs of the object in parallel: the verifier takes up to a tenth of a second for one, on one
    /// CPU.
    pub(super) fn load(
        object: &mut Ebpf,
        names: impl IntoIterator<Item = &'static str>,
    ) -> Result<Self, Error> {
        let mut there: HashMap<&str, &mut aya::programs::Program> = object.programs_mut().collect();
        let found = names.into_iter().map(|name| {
            let program = there.remove(name).ok_or(Error::Lacks(name))?;
            Ok((name, program.try_into().map_err(|e| refused(name, e))?))
        });
        let found = found.collect::<Result<Vec<(_, &mut SchedClassifier)>, Error>>()?;
        thread::scope(|scope| {
            let loading = found
                .into_iter()
                .map(|(name, program)| scope.spawn(move || Loaded::load(program, name)));
            // Start all threads before joining the first.
            let loading: Vec<_> = loading.collect();
            let loaded = loading.into_iter().map(|thread| {
                let loaded = thread.join();
                loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            loaded.collect::<Result<Arc<[_]>, _>>().map(Self)
        })
    }

    /// Returns the descriptor of the program called `name`, for a tc filter.
    #[must_use]
    pub fn fd(&self, name: &str) -> Option<RawFd> {
        let loaded = self.of(name)?;
        Some(loaded.fd.as_fd().as_raw_fd())
    }

    /// Returns the program called `name`, for a TCX link.
    pub(super) fn classifier(&self, name: &str) -> Option<MutexGuard<'_, SchedClassifier>> {
        self.of(name).map(|loaded| lock(&loaded.classifier))
    }

    fn of(&self, name: &str) -> Option<&Loaded> {
        self.0.iter().find(|loaded| loaded.name == name)
    }
}

impl Loaded {
    fn load(of_object: &mut SchedClassifier, name: &'static str) -> Result<Self, Error> {
        let mut load = || {
            of_object.load()?;
            let fd = of_object.fd()?.try_clone()?;
            // The object keeps its own handle; this one can be shared.
            let classifier = SchedClassifier::from_program_info(of_object.info()?, name.into())?;
            Ok((fd, classifier))
        };
        let (fd, classifier) = load().map_err(|e| refused(name, e))?;
        Ok(Self {
            name,
            fd,
            classifier: Mutex::new(classifier),
        })
    }
}
