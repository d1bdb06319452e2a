//! Interfaces whose addresses are not from the pools: another plugin gave them, so the pools' store
//! has no row for them. Their records are files, one each, written before the interface is made.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::error;

use crate::{podnet::PodNet, pool::Owner};

/// The directory of these records.
#[derive(Debug)]
pub(super) struct Guests(PathBuf);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    network: String,
    container_id: String,
    interface: String,
    net: PodNet,
}

impl Guests {
    /// Makes the directory, if it is not there.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("guests");
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }

    /// Writes a record; when this returns it survives a loss of power.
    pub(super) fn write(&self, owner: &Owner, net: &PodNet) -> io::Result<()> {
        let document = Document {
            network: owner.network.clone(),
            container_id: owner.container_id.clone(),
            interface: owner.interface.clone(),
            net: net.clone(),
        };
        let path = self.path(owner);
        let draft = path.with_extension("draft");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(&document)?)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(&self.0)?.sync_all()
    }

    /// Removes a record, if it is there.
    pub(super) fn remove(&self, owner: &Owner) -> io::Result<()> {
        match fs::remove_file(self.path(owner)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// All records. One that cannot be read stays where it is, and the log says so.
    pub(super) fn list(&self) -> Vec<(Owner, PodNet)> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(e) => {
                error!("read {}: {e}", self.0.display());
                return Vec::new();
            }
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths
            .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
            .filter_map(|path| match read(&path) {
                Ok(found) => Some(found),
                Err(e) => {
                    error!("the record {} cannot be read: {e}", path.display());
                    None
                }
            })
            .collect()
    }

    /// Neither part has a slash, and an interface's name has no more than 15 bytes.
    fn path(&self, owner: &Owner) -> PathBuf {
        let name = format!("{}@{}.json", owner.container_id, owner.interface);
        self.0.join(name)
    }
}

fn read(path: &Path) -> io::Result<(Owner, PodNet)> {
    let document: Document = serde_json::from_slice(&fs::read(path)?)?;
    let owner = Owner {
        network: document.network,
        container_id: document.container_id,
        interface: document.interface,
    };
    Ok((owner, document.net))
}
