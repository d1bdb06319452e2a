//! Before the store's file is used: nobody else has it, and it is what was written.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{Database, StorageBackend as _, backends::InMemoryBackend};

use super::{
    OpenError,
    store::{mark, open_error, redb_error},
    witness,
};

const LOCK: &str = "pool.lock";

/// Keeps every other agent off this directory for as long as the file is open.
///
/// redb locks its file too, but only once it has opened it, which is too late for [`verify`].
pub(super) fn lock(dir: &Path, store: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(|error| failed(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: store.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(failed(&path, &error)),
    }
}

/// Holds every page against its checksum, so that a flipped bit is found here and not as a
/// wrong address.
///
/// On a copy in memory: on the file itself redb would mend what it can by dropping the last
/// changes, and the next start would take the rest for the whole.
pub(super) fn verify(path: &Path) -> Result<(), OpenError> {
    let content = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(|error| failed(path, &error))?,
    };
    if content.is_empty() {
        return Ok(());
    }
    let copy = InMemoryBackend::new();
    copy.set_len(content.len() as u64)
        .and_then(|()| copy.write(0, &content))
        .map_err(|error| failed(path, &error))?;
    let mut database = Database::builder()
        .create_with_backend(copy)
        .map_err(|error| open_error(path, error))?;
    let intact = database
        .check_integrity()
        .map_err(|error| open_error(path, error))?;
    let corrupt = |detail: String| OpenError::Corrupt {
        path: path.to_owned(),
        detail,
    };
    if !intact {
        return Err(corrupt("its checksums do not match".into()));
    }
    let found = mark(&database).map_err(|error| redb_error(path, error))?;
    match path.parent().and_then(witness::read) {
        Some(noted) if noted.store == found.store && noted.commit > found.commit => {
            Err(corrupt(format!(
                "the last {} of {} changes that were acknowledged are not in it any more",
                noted.commit - found.commit,
                noted.commit
            )))
        }
        _ => Ok(()),
    }
}

/// Runs `work` on the store's file; redb panics on some kinds of damage.
pub(super) fn guarded<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    // Nothing that the work was at is used after a panic.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(OpenError::Corrupt {
            path: path.to_owned(),
            detail: "its structure makes no sense".into(),
        })
    })
}

fn failed(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Failed {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}
