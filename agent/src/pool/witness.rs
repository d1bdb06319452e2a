//! How much was acknowledged, beside the store.
//!
//! After an unclean end redb takes the newest commit whose checksums match. If a bit of the newest
//! has flipped that is the one before, and what was acknowledged is gone without a word. So each
//! commit has a number, and once it is on disk the number is written here, before anybody is
//! answered: a store that is behind it has lost something. Not synced: it may be behind after a
//! power failure, never ahead.

use std::{
    fs::File, io, os::unix::fs::FileExt as _, os::unix::fs::OpenOptionsExt as _, path::Path,
};

/// A store (by a number of its own) and its newest acknowledged commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) store: u64,
    pub(super) commit: u64,
}

const FILE: &str = "pool.mark";

#[derive(Debug)]
pub(super) struct Witness(File);

impl Witness {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).open(dir.join(FILE)).map(Self)
    }

    /// In one write within one sector: it is there whole or not at all.
    pub(super) fn write(&self, mark: Mark) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mark.store.to_le_bytes());
        bytes[8..].copy_from_slice(&mark.commit.to_le_bytes());
        self.0.write_all_at(&bytes, 0)
    }
}

/// What was noted in this directory, if anything was.
pub(super) fn read(dir: &Path) -> Option<Mark> {
    let bytes: [u8; 16] = std::fs::read(dir.join(FILE)).ok()?.try_into().ok()?;
    let (store, commit) = bytes.split_at(8);
    Some(Mark {
        store: u64::from_le_bytes(store.try_into().ok()?),
        commit: u64::from_le_bytes(commit.try_into().ok()?),
    })
}
