//! Installs the plugin and its network configuration on the host, and removes them, each as a whole.
//!
//! A runtime may read them at any moment, and the agent may be killed at any instruction. So a file is written under a
//! name that no runtime reads, synced to disk, and renamed. The configuration comes last, when the agent answers: with
//! it the node is ready for pods. An agent that ends or is replaced leaves both: pods are added again as soon as the
//! next one answers. What other plugins' installers have added to the configuration stays in it (`merge`).

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use ebbtide_types::replace::{ReplaceError, atomic_replace, draft_of, sync_directory_of};
use serde_json::{Value, json};

mod merge;
pub mod options;
mod status;
mod versions;

pub use status::InstallStatus;

/// The plugin's file name: the `type` that configurations call it by.
pub const PLUGIN: &str = ebbtide_plugin::NAME;

/// The configuration's file name. Runtimes take the first one by name.
pub const CONFIGURATION: &str = "00-ebbtide.conflist";

/// The plugin (not Ebbtide's) that serves `hostPort`.
const PORTMAP: &str = "portmap";

/// The places of the installed files.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The host's directory of CNI plugins.
    pub plugins: PathBuf,
    /// The host's directory of network configurations.
    pub configurations: PathBuf,
    /// The configuration's file name there.
    pub name: String,
}

/// Why the host's files could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    /// A file of the configuration's name is not Ebbtide's.
    #[error(
        "{path} is not a configuration of ebbtide's ({reason}): it stays as it is. Correct or remove it, \
         or give ours another name (--cni-conf-name)"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why it is not.
        reason: String,
    },
    /// The configuration to install is not usable.
    #[error("the network configuration {path} cannot be installed: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// Runtimes do not read files of the configuration's name.
    #[error("{0:?} is no name of a network configuration: it has to end in .conflist, without /")]
    Name(String),
}

/// The result of installing the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Whether anything had to change.
    pub changed: bool,
    /// The plugins that others have added, which stay.
    pub others: Vec<String>,
    /// The plugins that do not support the CNI version with STATUS and GC.
    pub without_status: Vec<String>,
}

/// Returns the configuration that calls the plugin with the agent at `socket`, and leaves everything else to the
/// agent. With `portmap`, that plugin serves pods' `hostPort`s behind Ebbtide's. Otherwise Ebbtide's is passed them,
/// and reports that they have no effect. Pods' bandwidth is Ebbtide's to limit, unless a plugin of others has it.
#[must_use]
pub fn configuration(socket: &Path, portmap: bool) -> Value {
    let own = |capabilities: Value| json!({"type": PLUGIN, "agentSocket": socket, "capabilities": capabilities});
    let plugins = match portmap {
        true => vec![
            own(json!({"bandwidth": true})),
            json!({"type": PORTMAP, "capabilities": {"portMappings": true}}),
        ],
        false => vec![own(json!({"bandwidth": true, "portMappings": true}))],
    };
    json!({"cniVersion": versions::OLDER, "name": PLUGIN, "plugins": plugins})
}

/// Reads a configuration of the administrator's, which must contain the plugin.
///
/// # Errors
/// If it cannot be read, or does not call the plugin.
pub fn read_configuration(path: &Path) -> Result<Value, Error> {
    let text = fs::read_to_string(path).map_err(|e| failed("read", path, e))?;
    parse(&text).map_err(|reason| Error::Invalid {
        path: path.to_owned(),
        reason,
    })
}

impl Installation {
    /// Makes an installation with a valid name.
    ///
    /// # Errors
    /// If no runtime would read a file of this name.
    pub fn new(plugins: PathBuf, configurations: PathBuf, name: String) -> Result<Self, Error> {
        let stem = name.strip_suffix(".conflist").unwrap_or_default();
        if stem.is_empty() || stem.starts_with('.') || stem.contains('/') {
            return Err(Error::Name(name));
        }
        Ok(Self {
            plugins,
            configurations,
            name,
        })
    }

    /// Copies the plugin `from` to the host's plugins, and returns whether it has changed. A running one is not
    /// disturbed.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn install_plugin(&self, from: &Path) -> Result<bool, Error> {
        let plugin = fs::read(from).map_err(|e| failed("read the plugin", from, e))?;
        make_directory(&self.plugins)?;
        replace(&self.plugins.join(PLUGIN), &plugin, 0o755)
    }

    /// Whether the host has the plugin that serves `hostPort`.
    #[must_use]
    pub fn has_portmap(&self) -> bool {
        self.plugins.join(PORTMAP).is_file()
    }

    /// Writes `ours` to the host's network configurations: from now on the runtime calls the plugin. What others have
    /// added to an existing one stays. With `negotiate`, offers the newest version of CNI that all plugins in it
    /// support.
    ///
    /// # Errors
    /// If it cannot be written, or a file of this name is not Ebbtide's.
    pub fn install_configuration(&self, ours: &Value, negotiate: bool) -> Result<Installed, Error> {
        let path = self.configuration();
        make_directory(&self.configurations)?;
        let there = self.ours(&path)?;
        let ours = merge::marked(ours.clone());
        let (mut list, others) = match &there {
            Some(there) => (
                merge::merged(there, &ours),
                merge::foreign_entries(there, &ours),
            ),
            None => (ours, Vec::new()),
        };
        let without_status = match negotiate {
            true => {
                let before = there
                    .as_ref()
                    .and_then(|there| there["cniVersion"].as_str());
                versions::negotiate(&mut list, &self.plugins, before)
            }
            false => Vec::new(),
        };
        // A file with equal content keeps its formatting, whoever wrote it.
        let is_same = there.as_ref() == Some(&list) && is_readable_file(&path);
        let changed = !is_same && replace(&path, format!("{list:#}\n").as_bytes(), 0o644)?;
        Ok(Installed {
            changed,
            others,
            without_status,
        })
    }

    /// Removes what was installed, the configuration first: without it no runtime calls the plugin. If others have
    /// added to it, it is no network without Ebbtide's, and would precede the configuration to be used: it is kept
    /// under a name that no runtime reads. Returns what was removed.
    ///
    /// # Errors
    /// If something exists and cannot be removed, or is not Ebbtide's.
    pub fn uninstall(&self) -> Result<Vec<PathBuf>, Error> {
        let mut removed = self.remove_configuration()?;
        let plugin = self.plugins.join(PLUGIN);
        if remove_with_draft(&plugin)? {
            removed.push(plugin);
        }
        Ok(removed)
    }

    /// As [`Installation::uninstall`], but leaves the plugin: pods that are left are deleted by it.
    ///
    /// # Errors
    /// As [`Installation::uninstall`].
    pub fn remove_configuration(&self) -> Result<Vec<PathBuf>, Error> {
        let configuration = self.configuration();
        if let Some(there) = self.ours(&configuration)? {
            let others = merge::foreign_entries(&there, &Value::Null);
            if !others.is_empty() {
                let kept = self.removed();
                let text = fs::read(&configuration);
                let text = text.map_err(|e| failed("read", &configuration, e))?;
                atomic_replace(&kept, &text, 0o644)?;
                tracing::warn!(
                    plugins = %others.join(", "),
                    "the configuration has plugins of other installers, which are not called \
                     any more; it is kept as {}",
                    kept.display()
                );
            }
        }
        match remove_with_draft(&configuration)? {
            true => Ok(vec![configuration]),
            false => Ok(Vec::new()),
        }
    }

    /// Returns the files that [`Installation::uninstall`] would remove.
    #[must_use]
    pub fn installed(&self) -> Vec<PathBuf> {
        let all = [self.configuration(), self.plugins.join(PLUGIN)];
        let there = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
        all.into_iter().filter(there).collect()
    }

    /// Returns the configuration that an uninstallation kept because others have added to it, if there is one.
    #[must_use]
    pub fn kept(&self) -> Option<PathBuf> {
        Some(self.removed()).filter(|path| path.exists())
    }

    /// Where a configuration is kept that others have added to.
    fn removed(&self) -> PathBuf {
        self.configurations.join(format!("{}.removed", self.name))
    }

    fn configuration(&self) -> PathBuf {
        self.configurations.join(&self.name)
    }

    /// Reads the existing configuration. `None` if there is no file, or an empty one (a full disk or a power loss
    /// during a manual copy; a template without output).
    fn ours(&self, path: &Path) -> Result<Option<Value>, Error> {
        match fs::read_to_string(path) {
            Ok(text) if matches!(text.trim(), "" | "null") => Ok(None),
            Ok(text) => parse(&text).map(Some).map_err(|reason| Error::Foreign {
                path: path.to_owned(),
                reason,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", path, e)),
        }
    }
}

/// Makes a directory, but not its parents: if they are missing, this is not the intended host.
fn make_directory(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(sync_directory_of(path)?),
        Err(_) if path.is_dir() => Ok(()),
        Err(e) => Err(failed("make the directory", path, e)),
    }
}

/// Parses a list that calls the plugin, or returns why it does not.
fn parse(text: &str) -> Result<Value, String> {
    let list: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    let plugins = list["plugins"].as_array();
    match plugins.is_some_and(|plugins| plugins.iter().any(|plugin| plugin["type"] == PLUGIN)) {
        true => Ok(list),
        false => Err(format!(
            "it has no plugin of the type {PLUGIN} in \"plugins\""
        )),
    }
}

/// Whether `path` is a file that everybody may read. A symbolic link is not, and is replaced, whatever its target.
fn is_readable_file(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o444 == 0o444)
}

/// Writes a file with these bytes, whole or not at all. Returns whether it had to change.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, Error> {
    let same = fs::read(path).is_ok_and(|found| found == bytes)
        && fs::symlink_metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o777 == mode);
    if same {
        return Ok(false);
    }
    atomic_replace(path, bytes, mode)?;
    Ok(true)
}

/// Removes a file and what a killed agent left of its successor. Returns whether it was there.
fn remove_with_draft(path: &Path) -> Result<bool, Error> {
    let there = remove(path)?;
    remove(&draft_of(path))?;
    if there {
        sync_directory_of(path)?;
    }
    Ok(there)
}

fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("remove", path, e)),
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
