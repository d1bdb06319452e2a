//! The plugin and its network configuration on the host: put there and taken away as wholes.
//!
//! A runtime may look at any moment, and the agent may be killed at any instruction. So a file is
//! written under a name that no runtime reads, brought to disk, and renamed. The configuration
//! comes last, when the agent answers: with it the node is ready for pods. An agent that ends or
//! is replaced leaves both: pods are added again as soon as the next one answers. What others have
//! added to the configuration stays in it (`merge`).

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use ebbtide_types::replace::{ReplaceError, atomic_replace, draft_of, sync_directory_of};
use serde_json::{Value, json};

mod merge;
pub mod options;
mod standing;
mod versions;

pub use standing::Standing;

/// The plugin's file name: the `type` that configurations call it by.
pub const PLUGIN: &str = ebbtide_plugin::NAME;

/// The configuration's file name. Runtimes take the first one by name.
pub const CONFIGURATION: &str = "00-ebbtide.conflist";

/// The plugin of others that serves `hostPort`.
const PORTMAP: &str = "portmap";

/// What goes where.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The host's directory of CNI plugins.
    pub plugins: PathBuf,
    /// The host's directory of network configurations.
    pub configurations: PathBuf,
    /// The configuration's file name there.
    pub name: String,
}

/// The host's files could not be brought to what they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    /// A file of our name that is not ours.
    #[error(
        "{path} is not a configuration of ebbtide's ({reason}): it stays as it is. Correct or remove it, \
         or give ours another name (--cni-conf-name)"
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The configuration to install makes no sense.
    #[error("the network configuration {path} cannot be installed: {reason}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The configuration's name is not one that runtimes read.
    #[error("{0:?} is no name of a network configuration: it has to end in .conflist, without /")]
    Name(String),
}

/// What became of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Whether anything had to change.
    pub changed: bool,
    /// The plugins that others have added and that stay.
    pub others: Vec<String>,
    /// The plugins that do not speak the version of CNI that has STATUS and GC.
    pub without_status: Vec<String>,
}

/// The configuration that calls the plugin with the agent at `socket`, and leaves all else to the
/// agent. With `portmap`, that plugin serves the pods' `hostPort` behind it; without, ours is told of
/// each, and says that nobody serves it. So it does of the pods' bandwidth.
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

/// A configuration of the administrator's, which has to have the plugin in it.
///
/// # Errors
/// When it cannot be read, or does not call the plugin.
pub fn read_configuration(path: &Path) -> Result<Value, Error> {
    let text = fs::read_to_string(path).map_err(|e| failed("read", path, e))?;
    parse(&text).map_err(|reason| Error::Invalid {
        path: path.to_owned(),
        reason,
    })
}

impl Installation {
    /// Checks the name.
    ///
    /// # Errors
    /// When no runtime would read a file of this name.
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

    /// Puts the plugin `from` among the host's plugins. One that is running goes on.
    ///
    /// # Errors
    /// When it cannot be read or written.
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

    /// Puts `ours` among the host's network configurations: from now on the runtime calls the
    /// plugin. What others have added to one that is there stays. With `negotiate`, the newest version
    /// of CNI is offered that all plugins in it speak.
    ///
    /// # Errors
    /// When it cannot be written, or a file of this name is not ours.
    pub fn install_configuration(&self, ours: &Value, negotiate: bool) -> Result<Installed, Error> {
        let path = self.configuration();
        make_directory(&self.configurations)?;
        let there = self.ours(&path)?;
        let ours = merge::marked(ours.clone());
        let (mut list, others) = match &there {
            Some(there) => (merge::merged(there, &ours), merge::others(there, &ours)),
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
        // A file that says the same is left as it was written, by whomever.
        let is_same = there.as_ref() == Some(&list) && is_readable_file(&path);
        let changed = !is_same && replace(&path, format!("{list:#}\n").as_bytes(), 0o644)?;
        Ok(Installed {
            changed,
            others,
            without_status,
        })
    }

    /// Takes away what was installed, the configuration first: without it no runtime calls the
    /// plugin. One that others have added to makes no network without ours, and would come before the
    /// configuration that is meant to: it is kept under a name that no runtime reads. Gives what was
    /// removed.
    ///
    /// # Errors
    /// When something is there and cannot be removed, or is not ours.
    pub fn uninstall(&self) -> Result<Vec<PathBuf>, Error> {
        let configuration = self.configuration();
        if let Some(there) = self.ours(&configuration)? {
            let others = merge::others(&there, &Value::Null);
            if !others.is_empty() {
                let kept = configuration.with_file_name(format!("{}.removed", self.name));
                let text = fs::read(&configuration);
                let text = text.map_err(|e| failed("read", &configuration, e))?;
                atomic_replace(&kept, &text, 0o644)?;
                tracing::warn!(
                    plugins = %others.join(", "),
                    "others have added plugins to the configuration, which are called no more; it is \
                     kept as {}",
                    kept.display()
                );
            }
        }
        let mut removed = Vec::new();
        for path in [configuration, self.plugins.join(PLUGIN)] {
            let there = remove(&path)?;
            remove(&draft_of(&path))?;
            if there {
                sync_directory_of(&path)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    fn configuration(&self) -> PathBuf {
        self.configurations.join(&self.name)
    }

    /// The configuration that is there. A file that is not there, or that is empty (a disk that was full
    /// or lost power under somebody's hand-made copy; a template that had nothing to write), is none.
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

/// Makes a directory that is not there; not those above it, without which the host is another one than was meant.
fn make_directory(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(sync_directory_of(path)?),
        Err(_) if path.is_dir() => Ok(()),
        Err(e) => Err(failed("make the directory", path, e)),
    }
}

/// A list that calls the plugin, or why it is none.
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

/// A link is replaced, whatever it leads to.
fn is_readable_file(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o444 == 0o444)
}

/// Makes `path` a file with these bytes, whole or not at all. Whether it had to change.
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
