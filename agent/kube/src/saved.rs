//! The mirror on disk: an agent that starts while the API server is away knows what its
//! predecessor knew.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_types::{digest::fnv, replace::atomic_replace};
use tracing::{info, warn};

use super::mirror::Mirror;

/// The file, below the state directory.
const FILE: &str = "kubernetes.json";

/// The file, and what it holds.
#[derive(Debug)]
pub(super) struct Saved {
    path: PathBuf,
    /// The digest of what was last written; none before the first time.
    written: Option<u64>,
    /// How often it was.
    #[cfg(test)]
    pub(super) writes: usize,
}

impl Saved {
    /// Reads what was saved; nothing if there is nothing. A file that cannot be read is worth a
    /// warning and no more: the API server has it all.
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

    /// Replaces the file if it does not hold this already, never leaving half of one.
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
        // What is there after a failure is not known.
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
