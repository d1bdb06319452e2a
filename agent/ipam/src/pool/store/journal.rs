//! The journal as it is written.

use std::{io, path::PathBuf, sync::Arc, time::SystemTime};

use super::{
    Contents, Disk, Name,
    lines::encode_head,
    replay::{Damage, close, replay},
};
use crate::pool::{OpenError, StoreError};

/// A journal (by a number of its own) and its newest acknowledged batch.
///
/// Written beside the journal once the batch is on disk, and before anybody is answered: a journal
/// that is behind its mark has lost something. Not synced: after a power failure it may be behind,
/// never ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) store: u64,
    pub(super) batch: u64,
}

impl Mark {
    /// Within one sector: it is there whole or not at all.
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.store.to_le_bytes());
        bytes[8..].copy_from_slice(&self.batch.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (store, batch) = bytes.split_at_checked(8)?;
        Some(Self {
            store: u64::from_le_bytes(store.try_into().ok()?),
            batch: u64::from_le_bytes(batch.try_into().ok()?),
        })
    }
}

/// A journal begins anew when it is this much longer than twice what it held the last time.
/// (In tests that is soon.)
const SLACK: u64 = if cfg!(test) { 8 << 10 } else { 4 << 20 };

pub(in crate::pool) struct Journal {
    disk: Box<dyn Disk>,
    path: PathBuf,
    mark: Mark,
    /// Where the last whole batch ends.
    length: u64,
    /// Something may follow that: a batch that was not acknowledged.
    ragged: bool,
    /// The files' names may not last yet.
    unnamed: bool,
    /// From this length on it is worth beginning anew.
    long: u64,
}

impl Journal {
    /// Reads the journal; where there is none, begins one.
    pub(in crate::pool) fn open(
        mut disk: Box<dyn Disk>,
        path: PathBuf,
    ) -> Result<(Self, Contents), OpenError> {
        let failed = |error: io::Error| OpenError::Failed {
            path: path.clone(),
            detail: error.to_string(),
        };
        let text = disk.read(Name::Journal).map_err(failed)?;
        let noted = disk.read(Name::Mark).map_err(failed)?;
        let mut journal = Self {
            disk,
            path: path.clone(),
            mark: Mark::default(),
            length: 0,
            ragged: false,
            // Its last process may have died before it made sure of that.
            unnamed: true,
            long: SLACK,
        };
        let Some(text) = text else {
            let contents = Contents::default();
            // Tells it from one that was here before: the nanosecond of its birth will do.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let nanos = now.unwrap_or_default().as_nanos() & u128::from(u64::MAX);
            journal.mark.store = u64::try_from(nanos).unwrap_or(u64::MAX);
            journal
                .try_rewrite(&contents)
                .and_then(|()| journal.name())
                .map_err(failed)?;
            return Ok((journal, contents));
        };
        let noted = noted.as_deref().and_then(Mark::from_bytes);
        let replayed = replay(&text, noted).map_err(|damage| match damage {
            Damage::Schema(found) => OpenError::Schema {
                path: path.clone(),
                found,
                supported: super::SCHEMA,
            },
            Damage::Lost(detail) => OpenError::Corrupt {
                path: path.clone(),
                detail,
            },
        })?;
        if replayed.length < text.len() {
            let bytes = text.len() - replayed.length;
            tracing::info!(
                path = %path.display(), bytes,
                "the journal ends in a change that was never acknowledged: left out"
            );
            journal.ragged = true;
        }
        journal.mark = replayed.mark;
        journal.length = replayed.length as u64;
        journal.long = journal.long.max(journal.length);
        Ok((journal, replayed.contents))
    }

    /// Makes the lines durable, all of them or, after an error, none: unless the process dies before the
    /// next call, when the disk decides. The caller's buffer is used up.
    pub(in crate::pool) fn append(&mut self, lines: &mut Vec<u8>) -> Result<(), StoreError> {
        let result = self.try_append(lines);
        lines.clear();
        result.map_err(|error| self.failed(error))
    }

    fn try_append(&mut self, lines: &mut Vec<u8>) -> io::Result<()> {
        self.name()?;
        if self.ragged {
            self.disk.cut(Name::Journal, self.length)?;
        }
        close(lines, self.mark.batch + 1);
        self.ragged = true;
        self.disk.write(Name::Journal, self.length, lines)?;
        self.disk.sync(Name::Journal)?;
        self.ragged = false;
        self.length += lines.len() as u64;
        self.mark.batch += 1;
        self.note();
        Ok(())
    }

    /// Whether there is more in it that has passed than what is true.
    pub(in crate::pool) const fn is_long(&self) -> bool {
        self.length > self.long
    }

    /// Begins anew with what is true. If that fails the old one goes on.
    pub(in crate::pool) fn rewrite(&mut self, contents: &Contents) -> Result<(), StoreError> {
        let result = self.try_rewrite(contents);
        if result.is_err() {
            // Not at once again.
            self.long = self.length + SLACK;
        }
        result.map_err(|error| self.failed(error))
    }

    fn try_rewrite(&mut self, contents: &Contents) -> io::Result<()> {
        let mut lines = Vec::new();
        encode_head(&mut lines, self.mark.store)?;
        contents.encode(&mut lines)?;
        // What is said is what was acknowledged: the last batch, in other words.
        close(&mut lines, self.mark.batch);
        self.disk.cut(Name::New, 0)?;
        self.disk.write(Name::New, 0, &lines)?;
        self.disk.sync(Name::New)?;
        self.disk.replace()?;
        // From here on the new one is written to; nobody is answered before its name lasts.
        self.unnamed = true;
        self.ragged = false;
        self.length = lines.len() as u64;
        self.long = self.length * 2 + SLACK;
        self.note();
        Ok(())
    }

    fn name(&mut self) -> io::Result<()> {
        if self.unnamed {
            self.disk.sync_names()?;
            self.unnamed = false;
        }
        Ok(())
    }

    fn note(&mut self) {
        if let Err(error) = self.disk.write(Name::Mark, 0, &self.mark.to_bytes()) {
            // What is on disk is on disk; only a later loss of it would not be noticed.
            tracing::warn!(%error, "the number of the newest change could not be noted");
        }
    }

    pub(in crate::pool) fn failed(&self, source: io::Error) -> StoreError {
        StoreError {
            path: self.path.clone(),
            source: Arc::new(source),
        }
    }
}
