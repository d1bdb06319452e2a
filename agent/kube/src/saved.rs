//! The mirror on disk, so that an agent that starts while the API server is unreachable has its predecessor's state.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_types::{digest::fnv, format::refuse_newer, replace::atomic_replace};
use tracing::{info, warn};

use super::mirror::Mirror;

/// The file, below the state directory.
const FILE: &str = "kubernetes.json";

/// The version of its format. The file has none: every key is a kind, and `version` is not called so.
const VERSION: u64 = 1;

/// The file and its state.
#[derive(Debug)]
pub(super) struct Saved {
    path: PathBuf,
    /// The digest of the last written content; none before the first write.
    written: Option<u64>,
    /// The number of writes.
    #[cfg(test)]
    pub(super) writes: usize,
}

impl Saved {
    /// Loads the saved mirror; empty if none was saved. An unreadable file is only worth a warning:
    /// the API server has all of it.
    pub(super) fn load(state_dir: &Path) -> (Self, Mirror) {
        let path = state_dir.join(FILE);
        let mirror = read(&path);
        let saved = Self {
            path,
            written: None,
            #[cfg(test)]
            writes: 0,
        };
        (saved, mirror)
    }

    /// Replaces the file atomically, unless it has this content already.
    pub(super) async fn store(&mut self, text: Vec<u8>) -> io::Result<()> {
        let path = self.path.clone();
        let written = self.written;
        let storing = tokio::task::spawn_blocking(move || {
            let digest = fnv(text.iter().copied());
            if written == Some(digest) {
                return Ok((digest, false));
            }
            atomic_replace(&path, &text, 0o600)?;
            Ok::<_, io::Error>((digest, true))
        });
        // After a failure the file's content is unknown.
        self.written = None;
        let (digest, _is_new) = storing.await.map_err(io::Error::other)??;
        self.written = Some(digest);
        #[cfg(test)]
        {
            self.writes += usize::from(_is_new);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Mirror {
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
    // Whatever a newer release keeps here, the API server has it.
    if let Err(newer) = refuse_newer(path, &text, VERSION) {
        let (path, found) = (path.display(), newer.found);
        warn!("{path} has version {found}, this agent knows {VERSION}: waiting for the API server");
        return Mirror::default();
    }
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
