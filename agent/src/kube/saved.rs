//! The mirror on disk: an agent that starts while the API server is away knows what its
//! predecessor knew.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use super::mirror::Mirror;
use crate::replace::{ReplaceError, atomic_replace};

/// The file, below the state directory.
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("kubernetes.json")
}

/// Reads what was saved; nothing if there is nothing. A file that cannot be read is worth a
/// warning and no more: the API server has it all.
pub(super) fn load(path: &Path) -> Mirror {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Mirror::default(),
        Err(e) => {
            warn!(
                "{} cannot be read, waiting for the API server: {e}",
                path.display()
            );
            return Mirror::default();
        }
    };
    match Mirror::from_json(&text) {
        Ok(mirror) => {
            info!(
                "until the API server answers: pools and networks as in {}",
                path.display()
            );
            mirror
        }
        Err(e) => {
            warn!(
                "{} is damaged, waiting for the API server: {e}",
                path.display()
            );
            Mirror::default()
        }
    }
}

/// Replaces the file, never leaving half of one.
pub(super) fn store(path: &Path, text: &[u8]) -> Result<(), ReplaceError> {
    atomic_replace(path, text, 0o600)
}
