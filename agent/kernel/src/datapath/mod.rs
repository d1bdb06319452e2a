//! Loads the eBPF programs, keeps the maps that outlive the agent, and reads the counters.
//!
//! The maps are pinned below the bpf directory. The programs live as long as the tc filters or the pinned links
//! (`nic_links`) that hold them. So running pods are not affected while the agent is down, and the next agent opens the
//! same maps and replaces the programs in place.

mod attach;
mod error;
mod flows;
mod host;
mod layouts;
mod limits;
mod nic_links;
mod object;
mod pins;
mod programs;
mod responder;
mod retry;
mod sending;
mod spoofed;
mod trace;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuHashMap, PerCpuValues},
};
use ebbtide_layout::{
    Address, Counters, POD_IN_L3, PodCounters, Spoofed, TO_METADATA, mac_words, mapped, reply_bit,
};
use ebbtide_types::settings::{Marks, PortRange};
use nix::sys::statfs::{FsType, statfs};

pub use attach::NoHook;
pub use error::Error;
use error::{is_gone, map_error};
pub use flows::{Flows, address, is_forwarded, uptime};
pub use host::{Host, HostNic, RegisteredPod};
pub use limits::{Limited, PodLimits};
use nic_links::NicLinks;
pub use nic_links::{has_tcx, own_programs_by_link};
use object::{LAYOUT, OBJECT, PINNED, Setup};
pub use programs::{HOST_PROGRAMS, HostProgram, PROGRAMS, Program, Programs, is_own_program};
pub use responder::Responder;
use retry::retry_enomem;
pub use sending::SendOptions;
use spoofed::Spoofers;
pub use trace::{TraceRequest, Tracer};

use crate::netlink::model::LIMIT_PROGRAMS;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// `BPF_NOEXIST` (include/uapi/linux/bpf.h): refuse to overwrite an existing entry.
const NOEXIST: u64 = 1;

/// The loaded programs and their maps.
pub struct Datapath {
    programs: Programs,
    nic_links: NicLinks,
    setup: Setup,
    /// The maps of the host's programs.
    pub host: Host,
    /// The map of the responder.
    pub responder: Responder,
    /// The limits of pods' bandwidth.
    pub limits: PodLimits,
    spoofers: Spoofers,
    /// The remembered flows.
    pub flows: Flows,
    counters: Mutex<PerCpuHashMap<MapData, Address, PodCounters>>,
    // Keeps what the object's maps and programs refer to.
    _object: Ebpf,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

/// Whether a directory, which need not exist, is on a bpf file system.
#[must_use]
pub fn is_on_bpffs(dir: &Path) -> bool {
    let there = dir.ancestors().find(|dir| dir.exists());
    there
        .and_then(|dir| statfs(dir).ok())
        .is_some_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

/// Converts an address to a map key: IPv4 is mapped into IPv6.
#[must_use]
pub fn key(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Datapath {
    /// Loads the programs, with the maps that an earlier agent pinned below `bpf_dir`, or new ones.
    ///
    /// # Errors
    /// If `bpf_dir` is not on a bpf file system, or the kernel refuses a map or program.
    pub fn open(bpf_dir: &Path, marks: Marks, node_ports: PortRange) -> Result<Self, Error> {
        let pins = bpf_dir.join(LAYOUT);
        if !is_on_bpffs(bpf_dir) {
            return Err(Error::NoBpffs(bpf_dir.to_owned()));
        }
        fs::create_dir_all(&pins).map_err(Error::io("create", &pins))?;
        for damaged in pins::remove_damaged(&pins)? {
            tracing::warn!(
                "{} was {}: it is taken away, and the map is made anew; what only the old one knew of running pods' \
                 flows is forgotten",
                damaged.pin.display(),
                damaged.what
            );
        }
        let setup = Setup {
            pins,
            marks,
            nic_reply: reply_bit(marks.nics),
            pod_nics_shift: marks.pod_nics.trailing_zeros(),
            node_ports: node_ports.packed(),
        };
        let mut object = setup.loader().load(OBJECT)?;
        let names = PROGRAMS.map(|p| p.name).into_iter();
        let names = names.chain(HOST_PROGRAMS.map(|p| p.name));
        let names = names.chain(LIMIT_PROGRAMS.map(|(name, _)| name));
        let programs = Programs::load(&mut object, names)?;
        let counters = object
            .take_map("COUNTERS")
            .ok_or(Error::Lacks("map COUNTERS"))?;
        let host_maps = host::Maps::take(&mut object)?;
        let responder = Responder::take(&mut object)?;
        let spoofers = Spoofers::take(&mut object)?;
        let limits = PodLimits::take(&mut object)?;
        let flows = Flows::take(&mut object)?;
        Ok(Self {
            host: Host::new(host_maps),
            responder,
            limits,
            spoofers,
            programs,
            nic_links: NicLinks::open(bpf_dir)?,
            setup,
            flows,
            counters: Mutex::new(
                PerCpuHashMap::try_from(counters)
                    .map_err(|e| map_error("open the map COUNTERS", e))?,
            ),
            _object: object,
        })
    }

    /// Returns the pins that no longer exist.
    #[must_use]
    pub fn missing_pins(&self) -> Vec<PathBuf> {
        let pins = PINNED.map(|(_, file)| self.setup.pins.join(file));
        pins.into_iter().filter(|pin| !pin.exists()).collect()
    }

    /// Removes the pinned maps of older layouts, and returns the removed directories. Attached programs keep their
    /// maps.
    ///
    /// # Errors
    /// If a directory cannot be removed.
    pub fn forget_older_layouts(&self) -> Result<Vec<PathBuf>, Error> {
        layouts::forget_older(&self.setup.pins)
    }

    /// Returns all loaded programs.
    #[must_use]
    pub fn programs(&self) -> Programs {
        self.programs.clone()
    }

    /// Makes room for the flows of a pod with these addresses, and its counters, where they are missing. `pod` is its
    /// number ([`Filter::only_from`](crate::netlink::model::Filter)); `is_l3`: its interface is ipvlan l3.
    ///
    /// # Errors
    /// If the kernel refuses an entry (out of memory, or the node's limit of addresses is reached).
    pub fn register(&self, addresses: &[IpAddr], pod: u16, is_l3: bool) -> Result<(), Error> {
        self.flows.prepare(pod)?;
        let mut counters = lock(&self.counters);
        let fresh = PodCounters {
            pod,
            flags: if is_l3 { POD_IN_L3 } else { 0 },
            ..PodCounters::default()
        };
        let is_same =
            |known: &PodCounters| (known.pod, known.flags & POD_IN_L3) == (fresh.pod, fresh.flags);
        for address in addresses {
            // The counters of another pod, which had the address before, are replaced.
            let known = counters.get(&key(*address), 0).ok();
            if known.is_none_or(|known| !known.iter().all(is_same)) {
                retry_enomem(|| {
                    let given = counters.insert(key(*address), on_each_cpu(fresh)?, 0);
                    given.map_err(|e| map_error(format!("give {address} counters"), e))
                })?;
            }
        }
        Ok(())
    }

    /// Sets how packets of a pod with these addresses are sent from its interface.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn set_send_options(&self, addresses: &[IpAddr], how: SendOptions) -> Result<(), Error> {
        let mut counters = lock(&self.counters);
        for address in addresses {
            let failed = |e| map_error(format!("write the send options of {address}"), e);
            let known = counters.get(&key(*address), 0).map_err(failed)?;
            let wanted = |cpu: &PodCounters| PodCounters {
                veth: how.veth.unwrap_or(0),
                mac: how.mac.map_or([0; 2], |mac| mac_words(mac.0)),
                flags: cpu.flags & POD_IN_L3 | how.flags(),
                ..*cpu
            };
            if known.iter().all(|cpu| *cpu == wanted(cpu)) {
                continue;
            }
            // Packets that are counted meanwhile may be lost from the counters.
            let values: Vec<_> = known.iter().map(wanted).collect();
            let values = PerCpuValues::try_from(values).map_err(|source| Error::Io {
                what: "make",
                path: "per-CPU counters".into(),
                source,
            })?;
            counters.insert(key(*address), values, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the programs know the pair of a pod with these addresses ([`SendOptions::veth`]).
    #[must_use]
    pub fn knows_veth(&self, addresses: &[IpAddr]) -> bool {
        let counters = lock(&self.counters);
        addresses.iter().all(|address| {
            let known = counters.get(&key(*address), 0);
            known.is_ok_and(|known| known.iter().all(|cpu| cpu.veth != 0))
        })
    }

    /// Removes a pod's flows, counters and other entries from the maps. Missing ones are no error.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn unregister(&self, addresses: &[IpAddr], pod: u16) -> Result<(), Error> {
        self.spoofers.forget(pod.into())?;
        self.spoofers.forget(u32::from(pod) | TO_METADATA)?;
        self.flows.forget(pod)?;
        self.host.forget(addresses)?;
        self.responder.remove(addresses)?;
        for address in addresses {
            match lock(&self.counters).remove(&key(*address)) {
                Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => {}
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(e) => return Err(map_error(format!("delete the counters of {address}"), e)),
            }
        }
        Ok(())
    }

    /// Returns the counters of a pod with these addresses, by hook, summed over all CPUs.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn counters(&self, addresses: &[IpAddr]) -> Result<[Counters; 3], Error> {
        let counters = lock(&self.counters);
        let mut sum = [Counters::default(); 3];
        for address in addresses {
            match counters.get(&key(*address), 0) {
                Ok(per_cpu) => {
                    for pod in per_cpu.iter() {
                        for (total, part) in sum.iter_mut().zip(pod.hooks) {
                            total.add(&part);
                        }
                    }
                }
                Err(MapError::KeyNotFound) => {}
                Err(e) => return Err(map_error(format!("read the counters of {address}"), e)),
            }
        }
        Ok(sum)
    }

    /// Returns what the spoof guard dropped of a pod: packets with addresses that are not its own.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn spoofed(&self, pod: u16) -> Result<Spoofed, Error> {
        self.spoofers.of(pod.into())
    }

    /// Returns what was dropped of a pod because it was for a cloud's metadata service.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn to_metadata(&self, pod: u16) -> Result<Spoofed, Error> {
        self.spoofers.of(u32::from(pod) | TO_METADATA)
    }

    /// Returns the addresses without an entry for the programs: they would not redirect the replies of their pod.
    #[must_use]
    pub fn unregistered(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let counters = lock(&self.counters);
        let without = |a: &&IpAddr| counters.get(&key(**a), 0).is_err();
        addresses.iter().filter(without).copied().collect()
    }
}

/// Locks, also after a panic: the map itself is the kernel's and stays consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn on_each_cpu<T: aya::Pod>(value: T) -> Result<PerCpuValues<T>, Error> {
    let cpus = aya::util::nr_cpus().map_err(|(path, source)| Error::Io {
        what: "count the CPUs in",
        path: path.into(),
        source,
    })?;
    PerCpuValues::try_from(vec![value; cpus]).map_err(|source| Error::Io {
        what: "make",
        path: "per-CPU counters".into(),
        source,
    })
}
