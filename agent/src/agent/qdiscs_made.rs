//! The links that an agent added the queueing discipline `clsact` to, for its tc filters: an uninstallation removes these
//! where nobody else has filters in them. The kernel tells of none who made it.

use std::{collections::BTreeSet, fs, io, path::Path};

use ebbtide_types::{format::Version, replace::atomic_replace};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::boot;

/// The file's name in the state directory.
pub(super) const FILE: &str = "settings-before-qdiscs.json";

/// The version of its format.
pub(super) const VERSION: u64 = 1;

/// Links, by index and name.
pub(crate) type Links = BTreeSet<(u32, String)>;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    version: Version<VERSION>,
    /// The kernel's boot: the next one has no such queueing disciplines.
    boot: String,
    clsact: Links,
}

/// Adds links to the record, before the queueing disciplines are added.
pub(super) fn record(state: &Path, links: Links) {
    let mut all = load(state);
    let before = all.len();
    all.extend(links);
    if all.len() == before {
        return;
    }
    let document = Document {
        version: Version,
        boot: boot::id(),
        clsact: all,
    };
    let path = state.join(FILE);
    let written = serde_json::to_vec_pretty(&document).map_err(io::Error::from);
    let written = written.and_then(|text| Ok(atomic_replace(&path, &text, 0o600)?));
    if let Err(e) = written {
        let path = path.display();
        warn!("write which qdiscs are Ebbtide's to {path}: {e}; an uninstallation leaves them");
    }
}

/// Returns the links in the record of this boot.
pub(crate) fn load(state: &Path) -> Links {
    let path = state.join(FILE);
    let Ok(text) = fs::read(&path) else {
        return Links::new();
    };
    let document: Document = serde_json::from_slice(&text).unwrap_or_else(|e| {
        let path = path.display();
        warn!("read which qdiscs are Ebbtide's from {path}: {e}; an uninstallation leaves them");
        Document::default()
    });
    match document.boot == boot::id() {
        true => document.clsact,
        false => Links::new(),
    }
}

/// Removes the record.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn forget(state: &Path) -> io::Result<()> {
    match fs::remove_file(state.join(FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_kept_until_they_are_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let link = |index, name: &str| Links::from([(index, name.to_owned())]);
        assert_eq!(load(state.path()), Links::new());
        record(state.path(), link(2, "ens5"));
        record(state.path(), link(3, "ens6"));
        record(state.path(), link(2, "ens5"));
        let both = link(2, "ens5").union(&link(3, "ens6")).cloned().collect();
        assert_eq!(load(state.path()), both);
        forget(state.path()).unwrap();
        forget(state.path()).unwrap();
        assert_eq!(load(state.path()), Links::new());
    }

    #[test]
    fn another_boot_s_record_says_nothing() {
        let state = tempfile::tempdir().unwrap();
        let text = r#"{"boot": "another", "clsact": [[2, "ens5"]]}"#;
        fs::write(state.path().join(FILE), text).unwrap();
        assert_eq!(load(state.path()), Links::new());
    }
}
