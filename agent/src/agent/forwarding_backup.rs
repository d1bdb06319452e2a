//! The node's forwarding as it was before the first pod. An uninstallation restores it; the last pod does not, since the
//! next one may come at any moment.
//!
//! One setting changes many: `ip_forward` writes each link's `forwarding` and `accept_redirects` of all links
//! (`inet_forward_change`, net/ipv4/devinet.c), and IPv6's likewise (`addrconf_forward_change`, net/ipv6/addrconf.c). So
//! all of them are in the record.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_kernel::netlink::{model::Sysctl, sysctl};
use ebbtide_types::{format::Version, replace::atomic_replace};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::boot;

/// The file's name in the state directory.
pub(super) const FILE: &str = "settings-before-forwarding.json";

/// The version of its format.
pub(super) const VERSION: u64 = 1;

const IPV4: &str = "net/ipv4/ip_forward";
const IPV6: &str = "net/ipv6/conf/all/forwarding";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    version: Version<VERSION>,
    /// The kernel's boot: the next one begins with settings of its own.
    boot: String,
    settings: BTreeMap<String, Setting>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Setting {
    was: String,
    /// The value that it has by Ebbtide. None once the restoration has begun: then `was` is what it gets.
    ours: Option<String>,
}

impl Document {
    /// Adds what enabling `wanted` changes, unless it is in the record already.
    fn add(&mut self, wanted: &[Sysctl], links: &Links, read: impl Fn(&str) -> Option<String>) {
        let mut affected = Vec::new();
        for setting in wanted {
            if read(&setting.path).is_none_or(|value| value == setting.value) {
                continue;
            }
            affected.push((setting.path.clone(), setting.value.clone()));
            let conf =
                |family: &str, link: &str, name: &str| format!("net/{family}/conf/{link}/{name}");
            let one = || "1".to_owned();
            match setting.path.as_str() {
                IPV4 => {
                    let all = links.ipv4.iter();
                    affected.extend(all.map(|link| (conf("ipv4", link, "forwarding"), one())));
                    affected.push((conf("ipv4", "all", "accept_redirects"), "0".to_owned()));
                }
                IPV6 => {
                    let all = links.ipv6.iter();
                    affected.extend(all.map(|link| (conf("ipv6", link, "forwarding"), one())));
                }
                _ => {}
            }
        }
        for (path, ours) in affected {
            if let Some(was) = read(&path) {
                let ours = Some(ours);
                self.settings.entry(path).or_insert(Setting { was, ours });
            }
        }
    }

    /// Returns the value that each setting is to get: what it was, unless somebody else has changed it since.
    fn targets(&self, read: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
        let target = |(path, setting): (&String, &Setting)| {
            let now = read(path)?;
            let is_ours = setting.ours.as_ref().is_none_or(|ours| *ours == now);
            Some((
                path.clone(),
                if is_ours { setting.was.clone() } else { now },
            ))
        };
        self.settings.iter().filter_map(target).collect()
    }
}

/// The links that have settings.
#[derive(Debug, Default)]
struct Links {
    ipv4: Vec<String>,
    ipv6: Vec<String>,
}

impl Links {
    fn of_the_host() -> Self {
        let list = |family: &str| {
            let entries = fs::read_dir(sysctl::root().join("net").join(family).join("conf"));
            let entries = entries.into_iter().flatten().flatten();
            entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect()
        };
        Self {
            ipv4: list("ipv4"),
            ipv6: list("ipv6"),
        }
    }
}

fn read(path: &str) -> Option<String> {
    let setting = Sysctl {
        path: path.to_owned(),
        value: String::new(),
    };
    sysctl::read(&setting).ok().flatten()
}

/// Returns the record of this boot, if there is one.
fn load(state: &Path) -> Option<Document> {
    let path = state.join(FILE);
    let text = fs::read(&path).ok()?;
    match serde_json::from_slice::<Document>(&text) {
        Ok(document) => Some(document).filter(|document| document.boot == boot::id()),
        Err(e) => {
            let path = path.display();
            warn!("read how the node forwarded from {path}: {e}; forwarding stays as it is");
            None
        }
    }
}

fn save(state: &Path, document: &Document) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(document)?;
    Ok(atomic_replace(&state.join(FILE), &text, 0o600)?)
}

/// Records how the node forwards, before `wanted` is written.
pub(super) fn record(state: &Path, wanted: &[Sysctl]) {
    let before = load(state);
    let mut document = before.clone().unwrap_or_else(|| Document {
        boot: boot::id(),
        ..Document::default()
    });
    document.add(wanted, &Links::of_the_host(), read);
    let is_new = !document.settings.is_empty() && before.as_ref() != Some(&document);
    if is_new && let Err(e) = save(state, &document) {
        let path = state.join(FILE);
        let path = path.display();
        warn!("write how the node forwarded to {path}: {e}; an uninstallation does not restore it");
    }
}

/// Returns the settings that [`restore`] would write.
pub(crate) fn to_restore(state: &Path) -> Vec<Sysctl> {
    let Some(document) = load(state) else {
        return Vec::new();
    };
    let targets = document.targets(read).into_iter();
    targets
        .filter(|(path, value)| read(path).as_ref() != Some(value))
        .map(|(path, value)| Sysctl { path, value })
        .collect()
}

/// Restores how the node forwarded before the first pod, and returns what it wrote. It may be killed at any instruction,
/// and be called again.
///
/// # Errors
/// If a setting cannot be written, or the record.
pub(crate) fn restore(state: &Path) -> io::Result<Vec<Sysctl>> {
    let mut written = Vec::new();
    if let Some(mut document) = load(state) {
        let targets = document.targets(read);
        // Durable first: the settings change each other on the way, and then nobody could tell whose values they are.
        document.settings = targets
            .iter()
            .map(|(path, was)| {
                let (was, ours) = (was.clone(), None);
                (path.clone(), Setting { was, ours })
            })
            .collect();
        save(state, &document)?;
        let mut targets: Vec<_> = targets.into_iter().collect();
        // Those that write others come first.
        targets.sort_by_key(|(path, _)| ![IPV4, IPV6].contains(&path.as_str()));
        for (path, value) in targets {
            if read(&path).as_ref() != Some(&value) {
                let setting = Sysctl { path, value };
                sysctl::write(&setting).map_err(io::Error::other)?;
                written.push(setting);
            }
        }
    }
    forget(state)?;
    Ok(written)
}

/// Removes the record: the node stays as it is.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn forget(state: &Path) -> io::Result<()> {
    remove(&state.join(FILE))
}

/// Whether there is a record.
pub(crate) fn path_of_record(state: &Path) -> Option<PathBuf> {
    Some(state.join(FILE)).filter(|path| path.exists())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        Links {
            ipv4: ["all", "default", "ens5"].map(String::from).to_vec(),
            ipv6: Vec::new(),
        }
    }

    fn values(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter()
            .map(|(path, value)| ((*path).to_owned(), (*value).to_owned()))
            .collect()
    }

    const BEFORE: [(&str, &str); 5] = [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/all/forwarding", "0"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/default/forwarding", "0"),
        // A person's.
        ("net/ipv4/conf/ens5/forwarding", "1"),
    ];

    const FORWARDING: [(&str, &str); 5] = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/default/forwarding", "1"),
        ("net/ipv4/conf/ens5/forwarding", "1"),
    ];

    fn recorded() -> Document {
        let wanted = [Sysctl {
            path: IPV4.to_owned(),
            value: "1".to_owned(),
        }];
        let mut document = Document::default();
        let now = values(&BEFORE);
        document.add(&wanted, &links(), |path| now.get(path).cloned());
        // Recorded once: what an agent finds that starts later is its predecessor's.
        let now = values(&FORWARDING);
        document.add(&wanted, &links(), |path| now.get(path).cloned());
        document
    }

    #[test]
    fn everything_that_one_setting_changes_is_given_back() {
        let now = values(&FORWARDING);
        let targets = recorded().targets(|path| now.get(path).cloned());
        assert_eq!(targets, values(&BEFORE));
    }

    #[test]
    fn what_a_person_changes_meanwhile_stays() {
        let mut now = values(&FORWARDING);
        now.insert("net/ipv4/conf/all/accept_redirects".into(), "1".into());
        now.remove("net/ipv4/conf/ens5/forwarding");
        let targets = recorded().targets(|path| now.get(path).cloned());
        assert_eq!(targets["net/ipv4/conf/all/accept_redirects"], "1");
        assert_eq!(targets["net/ipv4/ip_forward"], "0");
        assert!(!targets.contains_key("net/ipv4/conf/ens5/forwarding"));
    }

    #[test]
    fn a_node_that_forwards_already_has_no_record() {
        let wanted = [Sysctl {
            path: IPV4.to_owned(),
            value: "1".to_owned(),
        }];
        let mut document = Document::default();
        let now = values(&FORWARDING);
        document.add(&wanted, &links(), |path| now.get(path).cloned());
        assert_eq!(document, Document::default());
    }
}
