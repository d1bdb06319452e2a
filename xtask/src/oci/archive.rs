//! tar, gzip and the OCI layout, with the same bytes in every run.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// An entry of a layer.
#[derive(Debug)]
pub struct Entry {
    path: String,
    mode: u32,
    what: What,
}

#[derive(Debug)]
enum What {
    Directory,
    File(Vec<u8>),
    Link(String),
}

impl Entry {
    /// Creates an entry for a directory.
    #[must_use]
    pub fn directory(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            mode: 0o755,
            what: What::Directory,
        }
    }

    /// Creates an entry for a file that everybody may execute.
    #[must_use]
    pub fn program(path: String, bytes: Vec<u8>) -> Self {
        Self {
            path,
            mode: 0o755,
            what: What::File(bytes),
        }
    }

    /// Creates an entry for a file that everybody may read.
    #[must_use]
    pub fn file(path: String, bytes: Vec<u8>) -> Self {
        Self {
            path,
            mode: 0o644,
            what: What::File(bytes),
        }
    }

    /// Creates an entry for a symbolic link.
    #[must_use]
    pub fn link(path: &str, target: &str) -> Self {
        Self {
            path: path.to_owned(),
            mode: 0o777,
            what: What::Link(target.to_owned()),
        }
    }
}

/// Makes a tar archive of `entries`, owned by root and without times.
pub(super) fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        let added = match &entry.what {
            What::Directory => {
                header.set_entry_type(EntryType::Directory);
                tar.append_data(&mut header, format!("{}/", entry.path), [].as_slice())
            }
            What::File(bytes) => {
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, &entry.path, bytes.as_slice())
            }
            What::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                tar.append_link(&mut header, &entry.path, target)
            }
        };
        added.with_context(|| format!("cannot pack {}", entry.path))?;
    }
    tar.into_inner().context("cannot end the archive")
}

/// Compresses `bytes`, without a time or a name.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    gzip.write_all(bytes).context("cannot compress")?;
    gzip.finish().context("cannot compress")
}

/// Returns `sha256:` and the hexadecimal digest.
pub(super) fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An OCI image layout under construction.
#[derive(Debug, Default)]
pub(super) struct Layout {
    blobs: Vec<Entry>,
}

impl Layout {
    /// Adds a blob and returns its descriptor.
    pub(super) fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        let path = format!("blobs/{}", digest.replace(':', "/"));
        // Two architectures may have equal blobs.
        if self.blobs.iter().all(|there| there.path != path) {
            self.blobs.push(Entry::file(path, bytes));
        }
        descriptor
    }

    /// Adds a JSON blob and returns its descriptor.
    pub(super) fn json(&mut self, media_type: &str, value: &Value) -> Result<Value> {
        Ok(self.blob(media_type, serde_json::to_vec(value)?))
    }

    /// Returns the archive, whose index names the manifest with the descriptor `manifest`.
    pub(super) fn finish(mut self, manifest: &Value) -> Result<Vec<u8>> {
        let file = |path: &str, value: &Value| -> Result<Entry> {
            Ok(Entry::file(path.to_owned(), serde_json::to_vec(value)?))
        };
        let mut entries = vec![
            file("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?,
            file(
                "index.json",
                &json!({
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": [manifest],
                }),
            )?,
            Entry::directory("blobs"),
            Entry::directory("blobs/sha256"),
        ];
        self.blobs.sort_by(|a, b| a.path.cmp(&b.path));
        entries.append(&mut self.blobs);
        tar(&entries)
    }
}
