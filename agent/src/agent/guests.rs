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

    /// Writes a record. It survives the agent; if another plugin's addresses are to be given back, it
    /// survives a loss of power, too. Otherwise there is nothing then that it could speak of: links and
    /// namespaces end with the system.
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
        if net.delegate.is_none() {
            return fs::rename(&draft, &path);
        }
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

    /// All records. One that cannot be read stays where it is, and the log says so; an empty one is what a
    /// loss of power left of a record that nothing is to be done about.
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
                Ok(None) => {
                    let _another_time = fs::remove_file(&path);
                    None
                }
                Ok(found) => found,
                Err(e) => {
                    error!(
                        "the record {} cannot be read: {e}; remove the file once its pod is gone",
                        path.display()
                    );
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

fn read(path: &Path) -> io::Result<Option<(Owner, PodNet)>> {
    let bytes = fs::read(path)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let document: Document = serde_json::from_slice(&bytes)?;
    let owner = Owner {
        network: document.network,
        container_id: document.container_id,
        interface: document.interface,
    };
    Ok(Some((owner, document.net)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_record_goes_and_one_that_cannot_be_read_stays() {
        let state = tempfile::tempdir().unwrap();
        let guests = Guests::open(state.path()).unwrap();
        let [empty, broken] =
            ["empty@eth0.json", "broken@eth0.json"].map(|name| guests.0.join(name));
        fs::write(&empty, "").unwrap();
        fs::write(&broken, "{\"network\":").unwrap();
        assert!(guests.list().is_empty());
        assert_eq!([empty.exists(), broken.exists()], [false, true]);
    }
}
