//! Loads the eBPF programs, keeps the maps that outlive the agent, and reads the counters.
//!
//! The maps are pinned below the bpf directory. The programs live as long as the tc filters or the pinned links
//! (`nic_links`) that hold them. So running pods are not affected while the agent is down, and the next agent opens the
//! same maps and replaces the programs in place.

mod answers;
mod by_address;
mod flow_table;
mod flows;
mod host;
mod layouts;
mod nic_links;
mod patience;
mod programs;
mod sending;
mod spoofed;
mod trace;
mod workers;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{MapData, MapError, PerCpuHashMap, PerCpuValues},
    programs::{ProgramError, SchedClassifier},
};
use ebbtide_layout::{
    Address, Counters, POD_IN_L3, PodCounters, Spoofed, mac_words, mapped, reply_bit,
};
use nix::sys::statfs::{FsType, statfs};
use tracing::warn;

pub use answers::Answers;
use by_address::TablesByAddress;
pub use flow_table::FlowTables;
pub use flows::{Kind, Remembered, address, uptime};
pub use host::{Host, HostNic};
use nic_links::NicLinks;
pub use nic_links::has_tcx;
use patience::patiently;
pub use programs::{HOST_PROGRAMS, HostProgram, PROGRAMS, Program, Programs};
pub use sending::Sending;
use spoofed::Spoofers;
pub use trace::{TraceRequest, Tracer};

use ebbtide_types::settings::{Marks, PortRange};

use crate::netlink::{
    self, Batch, Netlink,
    hooks::TcHooks,
    model::{Filter, NamespacePlan},
    state::NamespaceState,
};

/// The eBPF object built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = include_bytes_aligned!(env!("EBBTIDE_EBPF_OBJECT"));

/// Directory of the pinned maps below the bpf directory. Its number is increased when a map's layout changes: programs
/// of one layout never see the maps of another.
const LAYOUT: &str = "v8";

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// `BPF_NOEXIST` (include/uapi/linux/bpf.h): refuse to overwrite an existing entry.
const NOEXIST: u64 = 1;

/// An error while loading a program or using a map.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bpf directory is not on a bpf file system.
    #[error(
        "{} is not on a bpf file system: mount one (`mount -t bpf bpf /sys/fs/bpf`) or name another directory with --bpf-dir", .0.display()
    )]
    NoBpffs(PathBuf),
    /// A file or directory could not be used.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error(
        "load the eBPF object (root with CAP_BPF and CAP_NET_ADMIN, kernel 5.10 or newer?): {0}"
    )]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("load the eBPF program {name}: {source}")]
    Program {
        /// Its name in the object.
        name: &'static str,
        /// The error of the verifier or the kernel.
        source: Box<ProgramError>,
    },
    /// The object lacks a program or map: it was built from other sources than the agent.
    #[error("the eBPF object has no {0}: rebuild with `cargo xtask build`")]
    Lacks(&'static str),
    /// A map operation failed.
    #[error("{what}: {}", told(source))]
    Map {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: MapError,
    },
}

/// A NIC without an egress hook: a foreign queueing discipline `ingress` occupies its only place for filters, and the
/// kernel has no TCX (before 6.6).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} has a queueing discipline `ingress` of others, and so no place for a program where packets leave: what would \
     leave by it with another NIC's address is not sent on by that one"
)]
pub struct NoHook(pub String);

/// The loaded programs and their maps.
pub struct Datapath {
    programs: Programs,
    nic_links: NicLinks,
    setup: Setup,
    /// The maps of the host's programs.
    pub host: Host,
    /// The map of the responder.
    pub answers: Answers,
    spoofers: Spoofers,
    tables: FlowTables,
    /// The flow tables by pod address.
    flows: TablesByAddress,
    counters: Mutex<PerCpuHashMap<MapData, Address, PodCounters>>,
    // Keeps what the object's maps and programs refer to.
    _object: Ebpf,
}

/// The parameters that objects are loaded with.
#[derive(Debug)]
struct Setup {
    pins: PathBuf,
    marks: Marks,
    nic_reply: u32,
    node_ports: u32,
}

/// The maps that outlive the agent, and the file names of their pins.
const PINNED: [(&str, &str); 10] = [
    ("FLOWS", "flows"),
    ("COUNTERS", "counters"),
    ("HOST_FLOWS", "host_flows"),
    ("ADDRESSES", "addresses"),
    ("NICS", "nics"),
    ("NIC_COUNTERS", "nic_counters"),
    ("HOST", "host"),
    ("ANSWERS", "answers"),
    ("SPOOFED", "spoofed"),
    ("RECENT", "recent"),
];

impl Error {
    /// Makes an error of the operation `what` on `path`.
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

impl Setup {
    /// Returns a loader with the pinned maps and the configured marks.
    fn loader(&self) -> EbpfLoader<'_> {
        let mut loader = EbpfLoader::new();
        loader
            .override_global("MARK", &self.marks.reply, true)
            .override_global("HOST_BYPASS_MARK", &self.marks.host_bypass, true)
            .override_global("NIC_MARKS", &self.marks.nics, true)
            .override_global("NIC_REPLY", &self.nic_reply, true)
            .override_global("NODE_PORTS", &self.node_ports, true);
        for (map, file) in PINNED {
            loader.map_pin_path(map, self.pins.join(file));
        }
        loader
    }
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
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
        let there = bpf_dir.ancestors().find(|dir| dir.exists());
        let on_bpffs = there
            .and_then(|dir| statfs(dir).ok())
            .is_some_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
        if !on_bpffs {
            return Err(Error::NoBpffs(bpf_dir.to_owned()));
        }
        fs::create_dir_all(&pins).map_err(Error::io("create", &pins))?;
        let setup = Setup {
            pins,
            marks,
            nic_reply: reply_bit(marks.nics),
            node_ports: node_ports.packed(),
        };
        let mut object = setup.loader().load(OBJECT)?;
        let names = PROGRAMS.map(|p| p.name).into_iter();
        let names = names.chain(HOST_PROGRAMS.map(|p| p.name));
        let programs = Programs::load(&mut object, names)?;
        let flows = object.take_map("FLOWS").ok_or(Error::Lacks("map FLOWS"))?;
        let counters = object
            .take_map("COUNTERS")
            .ok_or(Error::Lacks("map COUNTERS"))?;
        let [veth_ingress, ..] = PROGRAMS;
        let host_maps = host::Maps::take(&mut object)?;
        let answers = Answers::take(&mut object)?;
        let spoofers = Spoofers::take(&mut object)?;
        let first: &SchedClassifier = object
            .program(veth_ingress.name)
            .ok_or(Error::Lacks(veth_ingress.name))?
            .try_into()
            .map_err(|e| refused(veth_ingress.name, e))?;
        Ok(Self {
            tables: FlowTables::new(OBJECT, first)?,
            host: Host::new(
                host_maps,
                FlowTables::of(OBJECT, first, "HOST_FLOWS")?,
                marks.nics,
            ),
            answers,
            spoofers,
            programs,
            nic_links: NicLinks::open(bpf_dir)?,
            setup,
            flows: TablesByAddress::new(&flows, "map FLOWS")?,
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

    /// Attaches a program in the host, or replaces an older one, without a gap: at a NIC at once by a TCX link, if the
    /// kernel has TCX, and otherwise as a tc filter with `batch`.
    ///
    /// # Errors
    /// If a foreign queueing discipline occupies the program's hook.
    pub fn attach_in_host(
        &self,
        batch: &mut Batch,
        hooks: &TcHooks,
        programs: &Programs,
        filter: &Filter,
        ifindex: u32,
    ) -> Result<(), NoHook> {
        let is_taken = hooks.are_taken_for(filter, ifindex);
        if self.nic_links.take(filter) {
            match self.nic_links.attach(programs, filter, ifindex) {
                Ok(()) => {
                    // An older agent, without TCX links, left a tc filter. In a qdisc `ingress`, with one list for both
                    // directions, deleting it would delete the filter of the other direction.
                    if !is_taken {
                        batch.delete_filter(filter, ifindex);
                    }
                    return Ok(());
                }
                Err(e) => warn!("attach {filter} by a TCX link: {e}; it is a tc filter instead"),
            }
        }
        if is_taken {
            return Err(NoHook(filter.link.clone()));
        }
        if let Some(program) = programs.fd(&filter.program) {
            batch.add_filter(filter, ifindex, program);
        }
        Ok(())
    }

    /// Reads the host's state of the objects in `plan`, programs at TCX included, and of `links` besides.
    ///
    /// # Errors
    /// If the kernel refuses to answer.
    pub async fn state_of_host(
        &self,
        host: &Netlink,
        plan: &NamespacePlan,
        links: &[&str],
    ) -> Result<NamespaceState, netlink::Error> {
        let mut state = NamespaceState::read_with(host, plan, links).await?;
        let by_link = plan.filters.iter().filter(|filter| {
            let link = state.links.get(&filter.link);
            link.is_some_and(|link| self.nic_links.has(filter, link.ifindex))
        });
        state.found.filters.extend(by_link.cloned());
        Ok(state)
    }

    /// Whether a foreign queueing discipline occupies this program's hook in the host, and no TCX link holds the
    /// program.
    #[must_use]
    pub fn has_no_hook(&self, hooks: &TcHooks, filter: &Filter, ifindex: u32) -> bool {
        hooks.are_taken_for(filter, ifindex) && !self.nic_links.has(filter, ifindex)
    }

    /// Describes the foreign programs that see a NIC's packets before this program, and can keep them from it.
    ///
    /// # Errors
    /// If the kernel refuses to answer.
    pub async fn in_front(
        &self,
        host: &Netlink,
        filter: &Filter,
        ifindex: u32,
    ) -> Result<Vec<String>, netlink::Error> {
        if self.nic_links.has(filter, ifindex) {
            return Ok(self.nic_links.in_front(filter, ifindex));
        }
        let filters = host.filters_in_front(ifindex, filter.direction).await?;
        Ok(filters.iter().map(ToString::to_string).collect())
    }

    /// Whether this host program is attached by a TCX link, not as a tc filter.
    #[must_use]
    pub fn is_by_link(&self, filter: &Filter, ifindex: u32) -> bool {
        self.nic_links.has(filter, ifindex)
    }

    /// Detaches Ebbtide's tc filters from a link that is not (or no longer) a NIC, with `batch`.
    pub fn detach_from_nic(&self, batch: &mut Batch, link: &str, ifindex: u32) {
        for program in HOST_PROGRAMS.iter().filter(|program| program.is_at_nic()) {
            let filter = Filter {
                link: link.to_owned(),
                direction: program.direction,
                program: program.name.to_owned(),
                only_from: None,
            };
            batch.delete_filter(&filter, ifindex);
        }
    }

    /// Detaches Ebbtide's TCX links from former NICs: from all but `nics`.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn keep_nics(&self, nics: &[u32]) -> Result<(), Error> {
        self.nic_links.keep(nics)
    }

    /// Creates the flow table and the counters of a pod with these addresses, where they are missing. The addresses of
    /// one pod share a table. `pod` is its number ([`Filter::only_from`](crate::netlink::model::Filter)); `is_l3`: its
    /// interface is ipvlan l3.
    ///
    /// # Errors
    /// If the kernel refuses an entry (out of memory, or the node's limit of addresses is reached).
    pub fn register(&self, addresses: &[IpAddr], pod: u16, is_l3: bool) -> Result<(), Error> {
        let missing = self.unregistered(addresses);
        if !missing.is_empty() {
            let table = self.tables.make()?;
            for address in missing {
                patiently(|| {
                    let given = self.flows.insert(key(address), &table);
                    given.map_err(|e| io_error("give a flow table to", address, e))
                })?;
            }
        }
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
                patiently(|| {
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
    pub fn send(&self, addresses: &[IpAddr], how: Sending) -> Result<(), Error> {
        let mut counters = lock(&self.counters);
        for address in addresses {
            let failed = |e| map_error(format!("say how {address} is to be sent"), e);
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

    /// Removes a pod's flows, counters and other entries from the maps. Missing ones are no error.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn unregister(&self, addresses: &[IpAddr], pod: u16) -> Result<(), Error> {
        self.spoofers.forget(pod.into())?;
        self.host.forget(addresses)?;
        self.answers.forget(addresses)?;
        for address in addresses {
            self.flows
                .remove(key(*address))
                .map_err(|e| io_error("forget the flows of", *address, e))?;
            match lock(&self.counters).remove(&key(*address)) {
                Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => {}
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(e) => return Err(map_error(format!("forget the counters of {address}"), e)),
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

    /// Returns the addresses without a flow table: not all replies of their pod would be redirected.
    #[must_use]
    pub fn unregistered(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let without = |a: &&IpAddr| !self.flows.contains(&key(**a)).unwrap_or(false);
        addresses.iter().filter(without).copied().collect()
    }
}

fn io_error(what: &'static str, address: IpAddr, source: io::Error) -> Error {
    Error::Io {
        what,
        path: address.to_string().into(),
        source,
    }
}

/// Locks, also after a panic: the map itself is the kernel's and stays consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(name: &'static str, source: ProgramError) -> Error {
    Error::Program {
        name,
        source: Box::new(source),
    }
}

fn map_error(what: impl Into<String>, source: MapError) -> Error {
    Error::Map {
        what: what.into(),
        source,
    }
}

/// Formats an error with its causes: aya's own text names the call, not the errno.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn is_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
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
