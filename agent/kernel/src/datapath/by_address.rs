//! Changes the map of flow tables by address, without waiting for the kernel's grace period.
//!
//! The kernel makes the change, then waits for an RCU grace period before the system call returns
//! (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c): 7 to 50 ms, so that no program still uses the old table when the
//! caller frees it. The agent frees nothing, since the kernel counts references to a table. So a worker waits, and the
//! caller continues as soon as the change is visible, some microseconds after the call began. Nothing notifies of that,
//! so the map is polled.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use ebbtide_layout::Address;
use nix::libc;

use super::{Error, error::is_gone, workers::Workers};

/// The time before the first check whether a change is visible. It doubles with each further check.
const FIRST_LOOK: Duration = Duration::from_micros(30);
/// The longest time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The most time until a change is visible. It takes microseconds, unless all workers wait for a grace period.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The number of changes that wait for grace periods at once: one grace period ends the wait of all, so this many begin
/// in each.
const BATCH_SIZE: usize = 64;

/// The kernel did not make a change in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel has not changed the map for {} s: a processor of this machine is stuck (`dmesg` tells of RCU stalls), or \
     has far too much to do; it is tried again with the next request",
    TIMEOUT.as_secs()
)]
struct Stuck;

/// A map of flow tables by address. Clones share the map.
#[derive(Clone)]
pub(super) struct TablesByAddress {
    map: Arc<OwnedFd>,
    workers: Workers,
}

impl fmt::Debug for TablesByAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TablesByAddress").field(&self.map).finish()
    }
}

impl TablesByAddress {
    /// Opens the map called `name` in the object.
    pub(super) fn new(map: &Map, name: &'static str) -> Result<Self, Error> {
        let Map::HashOfMaps(data) = map else {
            return Err(Error::Lacks(name));
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| Error::Io {
            what: "duplicate the descriptor of the map",
            path: name.into(),
            source,
        })?;
        let map = Arc::new(fd);
        let workers = Workers::new(BATCH_SIZE);
        Ok(Self { map, workers })
    }

    /// Whether the address has a table.
    pub(super) fn contains(&self, key: &Address) -> io::Result<bool> {
        Ok(self.id(key)?.is_some())
    }

    /// Returns the kernel's ID of the address' table, if it has one.
    pub(super) fn id(&self, key: &Address) -> io::Result<Option<u32>> {
        let mut id = 0;
        let command = bpf_cmd::BPF_MAP_LOOKUP_ELEM;
        match element(command, self.map.as_fd(), key, Some(&mut id)) {
            Ok(()) => Ok(Some(id)),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sets the table of the address.
    pub(super) fn insert(&self, key: Address, table: &MapData) -> io::Result<()> {
        let table = table.fd().as_fd().try_clone_to_owned()?;
        self.change(key, Some(table))
    }

    /// Removes the table of the address, if it has one.
    pub(super) fn remove(&self, key: Address) -> io::Result<()> {
        match self.change(key, None) {
            Err(e) if is_gone(&e) => Ok(()),
            other => other,
        }
    }

    fn change(&self, key: Address, table: Option<OwnedFd>) -> io::Result<()> {
        let wanted = table.is_some();
        let map = Arc::clone(&self.map);
        let (sender, receiver) = mpsc::channel();
        let work = move || match table {
            Some(table) => {
                let mut fd = table.as_raw_fd().cast_unsigned();
                let command = bpf_cmd::BPF_MAP_UPDATE_ELEM;
                element(command, map.as_fd(), &key, Some(&mut fd))
            }
            None => element(bpf_cmd::BPF_MAP_DELETE_ELEM, map.as_fd(), &key, None),
        };
        self.workers.run(move || {
            // The caller may have stopped waiting.
            let _ = sender.send(work());
        })?;
        let begin = Instant::now();
        let mut pause = FIRST_LOOK;
        while begin.elapsed() < TIMEOUT {
            match receiver.recv_timeout(pause) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if self.contains(&key)? == wanted => return Ok(()),
                Err(RecvTimeoutError::Timeout) => pause = POLL_INTERVAL.min(pause * 2),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the thread that changes the map panicked"));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, Stuck))
    }
}

/// Runs a bpf(2) command on an element, whose value is four bytes in a map of maps.
fn element(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    key: &Address,
    value: Option<&mut u32>,
) -> io::Result<()> {
    // SAFETY: `bpf_attr` is a union of plain integers and arrays of them: zero is a valid value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().cast_unsigned();
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    let value = value.map_or(0, |value| std::ptr::from_mut(value) as u64);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value;
    // SAFETY: with these commands bpf(2) reads the key, and reads or writes the value, both of the
    // sizes that the map was made with; both outlive the call, and the kernel keeps neither.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<bpf_attr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
