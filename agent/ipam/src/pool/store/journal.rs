//! The journal: appends batches, and rewrites itself when it has grown long.

use std::{io, path::PathBuf, sync::Arc, time::SystemTime};

use super::{
    Contents, Disk, Name,
    lines::encode_head,
    replay::{Damage, close, replay},
};
use crate::pool::{OpenError, StoreError};

/// The newest acknowledged batch of a journal (identified by its store number).
///
/// Written beside the journal once the batch is on disk, and before any caller gets its answer: a journal that
/// is behind its mark has lost something. Not synced: after a power failure it may be behind, never ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) store: u64,
    pub(super) batch: u64,
}

impl Mark {
    /// Encodes the mark within one sector: it is written whole or not at all.
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

/// A journal is rewritten when it is this much longer than twice its length after the last rewrite.
/// (In tests that is soon.)
const SLACK: u64 = if cfg!(test) { 8 << 10 } else { 4 << 20 };

pub(in crate::pool) struct Journal {
    disk: Box<dyn Disk>,
    path: PathBuf,
    mark: Mark,
    /// The offset after the last whole batch.
    length: u64,
    /// Whether an unacknowledged batch may follow that.
    ragged: bool,
    /// Whether the files' names may not be durable yet.
    unnamed: bool,
    /// The length from which on a rewrite is worth it.
    long: u64,
}

impl Journal {
    /// Reads the journal; creates one if none exists.
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
            // The last process may have died before it synced them.
            unnamed: true,
            long: SLACK,
        };
        let Some(text) = text else {
            let contents = Contents::default();
            // Distinguishes it from an earlier store: the nanosecond of its creation suffices.
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

    /// Makes the lines durable, all of them or, after an error, none. (If the process dies before
    /// the next call, the disk decides.) Empties the caller's buffer.
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
        self.write_mark();
        Ok(())
    }

    /// Whether it is long enough to be rewritten.
    pub(in crate::pool) const fn is_long(&self) -> bool {
        self.length > self.long
    }

    /// Rewrites the journal with the current contents. If that fails, the old one stays in use.
    pub(in crate::pool) fn rewrite(&mut self, contents: &Contents) -> Result<(), StoreError> {
        let result = self.try_rewrite(contents);
        if result.is_err() {
            // Do not retry at once.
            self.long = self.length + SLACK;
        }
        result.map_err(|error| self.failed(error))
    }

    fn try_rewrite(&mut self, contents: &Contents) -> io::Result<()> {
        let mut lines = Vec::new();
        encode_head(&mut lines, self.mark.store)?;
        contents.encode(&mut lines)?;
        // The contents are what was acknowledged: the state after the last batch.
        close(&mut lines, self.mark.batch);
        self.disk.cut(Name::New, 0)?;
        self.disk.write(Name::New, 0, &lines)?;
        self.disk.sync(Name::New)?;
        self.disk.replace()?;
        // From here on writes go to the new one; no caller gets an answer before its name is durable.
        self.unnamed = true;
        self.ragged = false;
        self.length = lines.len() as u64;
        self.long = self.length * 2 + SLACK;
        self.write_mark();
        Ok(())
    }

    fn name(&mut self) -> io::Result<()> {
        if self.unnamed {
            self.disk.sync_names()?;
            self.unnamed = false;
        }
        Ok(())
    }

    fn write_mark(&mut self) {
        if let Err(error) = self.disk.write(Name::Mark, 0, &self.mark.to_bytes()) {
            // The data is on disk; only a later loss of it would not be noticed.
            tracing::warn!(%error, "the number of the newest change could not be written");
        }
    }

    pub(in crate::pool) fn failed(&self, source: io::Error) -> StoreError {
        StoreError {
            path: self.path.clone(),
            source: Arc::new(source),
        }
    }
}
