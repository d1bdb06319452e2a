//! The ledger on disk: what was usable, what was withdrawn, and each NIC as it was told last.
//!
//! An agent that starts while the metadata service does not answer has the last good set. One that starts while it
//! tells ghosts has their tombstones.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_types::replace::{ReplaceError, atomic_replace};
use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;

/// The file's name in the state directory.
pub const FILE: &str = "cloud.json";

/// The version of the format.
pub const VERSION: u64 = 1;

/// Why a saved ledger cannot be used. The agent then starts without history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It cannot be read.
    #[error("read {path}: {source}; {WITHOUT_HISTORY}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not a ledger.
    #[error("{path} is damaged: {detail}; {WITHOUT_HISTORY}", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        detail: String,
    },
    /// A newer agent wrote it.
    #[error("{path} has version {found}, this agent knows {VERSION}; {WITHOUT_HISTORY}", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

/// What happens without the file.
const WITHOUT_HISTORY: &str = "the agent goes on without what it knew of the NICs: pods keep their addresses, new pods \
     get none until the metadata service has answered twice, and an address that the cloud took away in the last minutes \
     and tells again may be given to a pod";

/// The parts of the file that every version has.
#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    version: u64,
    ledger: Ledger,
}

/// The file of the ledger, which is written only if it changes.
///
/// # Examples
///
/// ```
/// use ebbtide_cloud::{ledger::Ledger, saved::Saved};
///
/// let state = tempfile::tempdir()?;
/// let (mut saved, history) = Saved::load(state.path());
/// assert!(history?.is_none());
/// let ledger = Ledger::default();
/// assert!(saved.store(&ledger)?);
/// assert!(!saved.store(&ledger)?, "it did not change");
/// let (_, history) = Saved::load(state.path());
/// assert_eq!(history?, Some(ledger));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    /// The content as it is on disk, if that is known.
    written: Option<Vec<u8>>,
}

impl Saved {
    /// Reads the ledger of the agent before this one: none if there was none. Blocks on the disk.
    ///
    /// # Errors
    /// In the second value, if there is a file that cannot be used. It is replaced by the next [`Saved::store`].
    pub fn load(state_dir: &Path) -> (Self, Result<Option<Ledger>, HistoryError>) {
        let path = state_dir.join(FILE);
        let (written, history) = match fs::read(&path) {
            Ok(text) => match parse(&path, &text) {
                Ok(ledger) => (Some(text), Ok(Some(ledger))),
                Err(error) => (None, Err(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, Ok(None)),
            Err(source) => {
                let path = path.clone();
                (None, Err(HistoryError::Read { path, source }))
            }
        };
        (Self { path, written }, history)
    }

    /// Replaces the file by this ledger, unless it has it already; true if it was written. Only its owner may read it.
    /// Blocks on the disk. It is called before the changes are acted upon.
    ///
    /// # Errors
    /// If the file cannot be written; then it has the content of before, or its directory was not synced.
    pub fn store(&mut self, ledger: &Ledger) -> Result<bool, ReplaceError> {
        let content = Content {
            version: VERSION,
            ledger: ledger.clone(),
        };
        let text = serde_json::to_vec(&content).map_err(|error| ReplaceError {
            step: "write the ledger as JSON for",
            path: self.path.clone(),
            source: error.into(),
        })?;
        if self.written.as_ref() == Some(&text) {
            return Ok(false);
        }
        // After a failure the file's content is unknown.
        self.written = None;
        atomic_replace(&self.path, &text, 0o600)?;
        self.written = Some(text);
        Ok(true)
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Ledger, HistoryError> {
    let damaged = |detail: String| HistoryError::Damaged {
        path: path.to_owned(),
        detail,
    };
    let head: Head = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    if head.version > VERSION {
        return Err(HistoryError::Newer {
            path: path.to_owned(),
            found: head.version,
        });
    }
    let content: Content =
        serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    if content.version != VERSION {
        return Err(damaged(format!("there is no version {}", content.version)));
    }
    match content.ledger.fault() {
        None => Ok(content.ledger),
        Some(fault) => Err(damaged(fault)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use crate::ledger::example;

    use super::*;

    #[test]
    fn what_was_saved_is_there_again_and_is_written_only_if_it_changed() {
        let state = tempfile::tempdir().unwrap();
        let (mut saved, history) = Saved::load(state.path());
        assert!(history.unwrap().is_none());
        let mut ledger = example(0);
        assert!(saved.store(&ledger).unwrap());
        let path = state.path().join(FILE);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Time that passes is no change.
        let (mut again, history) = Saved::load(state.path());
        let mut loaded = history.unwrap().unwrap();
        assert!(!again.store(&loaded).unwrap() && !saved.store(&ledger).unwrap());
        for ledger in [&mut loaded, &mut ledger] {
            assert_eq!(ledger.usable(ledger.nics().next().unwrap().0).len(), 1);
        }
        ledger = example(1);
        assert!(saved.store(&ledger).unwrap());
    }

    #[test]
    fn what_cannot_be_a_ledger_is_refused_with_what_happens_then() {
        let state = tempfile::tempdir().unwrap();
        let (mut saved, _) = Saved::load(state.path());
        saved.store(&example(0)).unwrap();
        let path = state.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        let mac = example(0).nics().next().unwrap().0.to_string();
        for (text, said) in [
            (String::new(), "is damaged"),
            ("{}".to_owned(), "version"),
            (good[..good.len() - 3].to_owned(), "is damaged"),
            (
                good.replace("\"version\":1", "\"version\":2"),
                "has version 2, this agent knows 1",
            ),
            (
                good.replace("\"version\":1", "\"version\":0"),
                "no version 0",
            ),
            (good.replace("isGone", "isgone"), "isgone"),
            (good.replace("v4-addresses", "v6-addresses"), "another kind"),
            (good.replace(&mac, "02:00"), "MAC"),
            (good.replace("\"usable\"", "\"fine\""), "fine"),
        ] {
            fs::write(&path, &text).unwrap();
            let (mut saved, history) = Saved::load(state.path());
            let error = history.unwrap_err().to_string();
            assert!(
                error.contains(said) && error.contains("pods keep their addresses"),
                "{text}: {error}"
            );
            // The next one is good again.
            assert!(saved.store(&example(0)).unwrap(), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), good);
        }
    }
}
