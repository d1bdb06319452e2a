//! Records of interfaces whose addresses another plugin assigned, so that the pools' store has no row for them. Each
//! record is a file, written before the interface is made.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::podnet::PodNet;
use ebbtide_types::{
    digest::fnv,
    format::Version,
    private,
    replace::{atomic_replace, atomic_replace_unsynced},
};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

/// The version of a record's format.
pub(super) const VERSION: u64 = 1;

/// The directory of these records.
#[derive(Debug)]
pub(crate) struct ChainedInterfaces(PathBuf);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    version: Version<VERSION>,
    network: String,
    container_id: String,
    interface: String,
    net: PodNet,
}

impl ChainedInterfaces {
    /// Opens the directory, which is made if it does not exist, and removes drafts that a killed agent left.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("chained");
        private::make_directory(&directory)?;
        let chained = Self(directory);
        for entry in fs::read_dir(&chained.0)?.flatten() {
            let path = entry.path();
            let is_draft = path.extension().is_some_and(|kind| kind == "draft");
            if is_draft && let Err(e) = fs::remove_file(&path) {
                warn!("the unfinished record {} stays: {e}", path.display());
            }
        }
        Ok(chained)
    }

    /// Writes a record, which survives the agent. It also survives a power loss if another plugin's addresses are to
    /// be released. Otherwise nothing that it describes is left then: links and namespaces end with the system.
    pub(super) fn write(&self, owner: &Owner, net: &PodNet) -> io::Result<()> {
        let document = Document {
            version: Version,
            network: owner.network.clone(),
            container_id: owner.container_id.clone(),
            interface: owner.interface.clone(),
            net: net.clone(),
        };
        let path = self.path(owner);
        if let Ok(Some((other, _))) = read(&path)
            && other != *owner
        {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is the record of {other}", path.display()),
            ));
        }
        let text = serde_json::to_vec(&document)?;
        Ok(match net.delegate {
            Some(_) => atomic_replace(&path, &text, 0o600),
            None => atomic_replace_unsynced(&path, &text, 0o600),
        }?)
    }

    /// Removes a record, if it exists.
    pub(crate) fn remove(&self, owner: &Owner) -> io::Result<()> {
        match fs::remove_file(self.path(owner)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Returns all records. One that cannot be read is kept and logged. An empty one is what a power loss left of a
    /// record that needs no clean-up.
    pub(crate) fn list(&self) -> Vec<(Owner, PodNet)> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(e) => {
                error!("read {}: {e}", self.0.display());
                return Vec::new();
            }
        };
        paths(entries)
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

    /// Returns the path of a record. The names of container and interface are in it for people, as far as a file
    /// name's length allows; the digest distinguishes networks, whose names may contain anything.
    fn path(&self, owner: &Owner) -> PathBuf {
        const SHOWN: usize = 64;
        let Owner {
            network,
            container_id,
            interface,
        } = owner;
        let parts = [network, container_id, interface].map(|part| part.bytes().chain([0]));
        let digest = fnv(parts.into_iter().flatten());
        let shown: String = container_id.chars().take(SHOWN).collect();
        let name = format!("{shown}@{interface}@{digest:016x}.json");
        self.0.join(name.replace('/', "_"))
    }
}

/// Returns the files of the records in a state directory.
pub(super) fn files(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join("chained"));
    entries.into_iter().flat_map(paths).collect()
}

fn paths(entries: fs::ReadDir) -> impl Iterator<Item = PathBuf> {
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "json"))
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
    use ebbtide_kernel::{
        node::NodeFacts,
        podnet::{self, Existing, NetworkSpec, Sandbox},
    };
    use ebbtide_types::settings::Settings;

    use super::*;

    fn owner(network: &str, container_id: &str) -> Owner {
        Owner {
            network: network.into(),
            container_id: container_id.into(),
            interface: "eth0".into(),
        }
    }

    /// An interface that another plugin made.
    fn net(network: &str) -> PodNet {
        let sandbox = Sandbox {
            container_id: "c".into(),
            interface: "eth0".into(),
            netns: "/run/netns/c".into(),
            netns_inode: 1,
            pid_namespace: None,
            pod: "default/web".into(),
        };
        let spec = NetworkSpec {
            made_before: Some(1500),
            ..NetworkSpec::named(network)
        };
        let (existing, node) = (Existing::default(), NodeFacts::default());
        podnet::plan(&sandbox, &existing, &spec, &[], &node, &Settings::default()).unwrap()
    }

    fn networks(chained: &ChainedInterfaces) -> Vec<String> {
        let listed = chained.list().into_iter();
        let mut networks: Vec<String> = listed
            .map(|(owner, net)| {
                assert_eq!(owner.network, net.network);
                net.network
            })
            .collect();
        networks.sort();
        networks
    }

    #[test]
    fn two_networks_of_a_container_have_a_record_each() {
        let state = tempfile::tempdir().unwrap();
        let chained = ChainedInterfaces::open(state.path()).unwrap();
        let names = ["first", "second", "ns/with a slash", "\u{1b}[2J\n"];
        for name in names {
            chained.write(&owner(name, "c"), &net(name)).unwrap();
        }
        assert_eq!(chained.list().len(), names.len());
        chained.remove(&owner("first", "c")).unwrap();
        let reopened = ChainedInterfaces::open(state.path()).unwrap();
        let mut left = names[1..].to_vec();
        left.sort_unstable();
        assert_eq!(networks(&reopened), left);
    }

    #[test]
    fn a_container_may_be_called_as_long_as_it_likes() {
        let state = tempfile::tempdir().unwrap();
        let chained = ChainedInterfaces::open(state.path()).unwrap();
        let long = "c".repeat(4000);
        let longer = format!("{long}c");
        for container in [&long, &longer] {
            chained.write(&owner("n", container), &net("n")).unwrap();
        }
        assert_eq!(chained.list().len(), 2);
        chained.remove(&owner("n", &long)).unwrap();
        assert_eq!(chained.list()[0].0.container_id, longer);
    }

    #[test]
    fn what_a_killed_agent_had_begun_to_write_goes_and_whole_records_stay() {
        let state = tempfile::tempdir().unwrap();
        let chained = ChainedInterfaces::open(state.path()).unwrap();
        chained.write(&owner("n", "c"), &net("n")).unwrap();
        fs::write(chained.0.join("killed@eth0.json.draft"), "{").unwrap();
        let chained = ChainedInterfaces::open(state.path()).unwrap();
        assert_eq!(networks(&chained), ["n"]);
        assert_eq!(fs::read_dir(&chained.0).unwrap().count(), 1);
    }

    #[test]
    fn a_record_never_takes_another_s_place() {
        let state = tempfile::tempdir().unwrap();
        let chained = ChainedInterfaces::open(state.path()).unwrap();
        let (own, other) = (owner("n", "c"), owner("other", "c"));
        chained.write(&other, &net("other")).unwrap();
        fs::rename(chained.path(&other), chained.path(&own)).unwrap();
        let refused = chained.write(&own, &net("n")).unwrap_err();
        assert!(refused.to_string().contains("other"), "{refused}");
        assert_eq!(networks(&chained), ["other"]);
    }

    #[test]
    fn an_empty_record_goes_and_one_that_cannot_be_read_stays() {
        let state = tempfile::tempdir().unwrap();
        let chained = ChainedInterfaces::open(state.path()).unwrap();
        let [empty, broken] =
            ["empty@eth0.json", "broken@eth0.json"].map(|name| chained.0.join(name));
        fs::write(&empty, "").unwrap();
        fs::write(&broken, "{\"network\":").unwrap();
        assert!(chained.list().is_empty());
        assert_eq!([empty.exists(), broken.exists()], [false, true]);
    }
}
