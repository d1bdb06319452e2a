//! The store on disk: a journal with one line of text for each change.
//!
//! Requests that arrive together are one batch of lines. A line with the batch's number and the
//! checksum of it all closes it, and one fdatasync makes it durable: a batch that was not closed
//! never happened. When the journal has grown long, it is rewritten with the current contents. A
//! person can read it with `less` and `grep`; schema version 3:
//!
//! ```text
//! % {"schema":3,"store":1763712000}                    the file's first line
//! + {"owner":{..},"pod":{..},"assigned":[..]} TAB {..}   the owner has these addresses; its record
//! - {"owner":{..},"at":1763712000000}                   it has none; its addresses cool down since then
//! c {"pod":{..},"interface":"eth0","assigned":[..]}     these are reserved for a pod
//! x {"pod":{..},"at":1763712000000}                     its reservation ended then
//! ~ {"address":"10.0.0.9","at":1763712000000}           this was released then
//! = 17 9f86d081                                         the end of batch 17, and its CRC-32
//! ```

mod disk;
mod journal;
mod lines;
mod replay;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{DirBuilder, File, TryLockError},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
};

pub(super) use disk::{Disk, Name};
pub(super) use journal::Journal;
pub(super) use lines::{Change, encode};

use super::{Allocation, OpenError, Owner, Reservation, ReservationKey};
use disk::Directory;

/// The schema version that this code writes.
pub(super) const SCHEMA: u64 = 3;

const LOCK: &str = "pool.lock";

/// The contents of the store at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) allocations: HashMap<Owner, Arc<Allocation>>,
    pub(super) reservations: BTreeMap<ReservationKey, Arc<Reservation>>,
    /// Address → milliseconds since 1970.
    pub(super) released: BTreeMap<IpAddr, u64>,
}

/// Opens the journal in `dir`, creating both if they do not exist. Blocks on the disk.
pub(super) fn open(dir: &Path) -> Result<(Journal, Contents), OpenError> {
    let failed = |error: std::io::Error| OpenError::Failed {
        path: dir.to_owned(),
        detail: error.to_string(),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    let path = dir.join(disk::JOURNAL);
    let lock = lock(dir, &path)?;
    let directory = Directory::new(dir, lock).map_err(failed)?;
    Journal::open(Box::new(directory), path)
}

/// Locks the directory against other agents for as long as the file is open.
fn lock(dir: &Path, store: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let failed = |error: std::io::Error| OpenError::Failed {
        path: path.clone(),
        detail: error.to_string(),
    };
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: store.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
