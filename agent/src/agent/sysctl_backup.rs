//! The original values of the host's settings that Ebbtide changes, restored when the last pod is removed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use ebbtide_kernel::netlink::{model::Sysctl, sysctl};
use ebbtide_types::replace::atomic_replace;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::locked;

/// The file's name in the state directory.
pub(super) const FILE: &str = "settings-before.json";

/// The version of its format. The file has none: releases before 0.3 would take the field for a setting. The next version is
/// to have a field `version`, which no setting is called.
pub(super) const VERSION: u64 = 1;

/// A setting that Ebbtide has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    was: String,
    ours: String,
}

/// The original values, by path below `/proc/sys`. Also on disk, so that a later agent can restore them.
#[derive(Debug)]
pub(crate) struct SysctlBackup {
    path: PathBuf,
    changed: Mutex<BTreeMap<String, Changed>>,
}

impl SysctlBackup {
    /// Opens the record that an earlier agent left, or an empty one.
    pub(crate) fn open(state: &Path) -> Self {
        let path = state.join(FILE);
        let changed = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|e| {
                let path = path.display();
                warn!(
                    "read the original sysctl values from {path}: {e}; the settings that an \
                     earlier agent changed are not restored"
                );
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self {
            path,
            changed: Mutex::new(changed),
        }
    }

    /// Records the current values of the settings in `wanted`, before they are written.
    pub(super) fn record(&self, wanted: &[Sysctl]) {
        let mut changed = locked(&self.changed);
        let before = changed.clone();
        for setting in wanted {
            let was = sysctl::read(setting).ok().flatten();
            if let Some(was) = was.filter(|was| *was != setting.value) {
                let ours = setting.value.clone();
                let entry = changed.entry(setting.path.clone());
                entry.or_insert(Changed { was, ours });
            }
        }
        if *changed != before
            && let Err(e) = write(&self.path, &changed)
        {
            let path = self.path.display();
            warn!(
                "write the original sysctl values to {path}: {e}; after a restart of the agent \
                 they are not restored"
            );
        }
    }

    /// Returns the settings that [`SysctlBackup::restore`] would write, as they were.
    pub(crate) fn to_restore(&self) -> Vec<Sysctl> {
        let all = locked(&self.changed);
        let settings = all.iter().filter_map(|(path, changed)| {
            let setting = Sysctl {
                path: path.clone(),
                value: changed.was.clone(),
            };
            let now = sysctl::read(&setting).ok().flatten();
            (now.as_ref() == Some(&changed.ours)).then_some(setting)
        });
        settings.collect()
    }

    /// Restores every setting that still has Ebbtide's value.
    pub(crate) fn restore(&self) {
        let mut all = locked(&self.changed);
        for (path, changed) in std::mem::take(&mut *all) {
            let mut setting = Sysctl {
                path,
                value: changed.was,
            };
            // One that cannot be read disappeared with its NIC; one with another value was changed by somebody else
            // since.
            if sysctl::read(&setting).ok().flatten() == Some(changed.ours)
                && let Err(e) = sysctl::write(&setting)
            {
                setting.path.insert_str(0, "/proc/sys/");
                warn!("restore the original value ({setting}): {e}");
            }
        }
        if let Err(e) = fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            warn!("remove {}: {e}", self.path.display());
        }
    }
}

fn write(path: &Path, changed: &BTreeMap<String, Changed>) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(changed)?;
    Ok(atomic_replace(path, &text, 0o600)?)
}
