//! Command-line options for the host's CNI directories.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::Value;
use tracing::{error, info, warn};

use super::{
    CONFIGURATION, Error, InstallStatus, Installation, PLUGIN, configuration, read_configuration,
};

/// The host's CNI directories.
#[derive(Args, Clone, Debug)]
pub struct Directories {
    /// The host's directory of CNI plugins.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
    /// The host's directory of network configurations.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    cni_conf_dir: Option<PathBuf>,
    /// The configuration's file name there. Runtimes take the first one by name.
    #[arg(long, value_name = "NAME", default_value = CONFIGURATION)]
    cni_conf_name: String,
}

/// What is installed in the host's CNI directories.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    directories: Directories,
    /// The network configuration to install, in place of the built-in one.
    #[arg(long, value_name = "FILE", requires = "cni_conf_dir")]
    cni_conflist: Option<PathBuf>,
    /// Leave `hostPort` alone: without this, the host's plugin `portmap`, if installed, is put behind Ebbtide's in the
    /// built-in configuration.
    #[arg(long, conflicts_with = "cni_conflist")]
    no_portmap: bool,
    /// The plugin to install. [default: ebbtide, beside this program]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
}

/// An installation with the contents of its files, ready to be written.
#[derive(Clone, Debug)]
pub struct Prepared {
    installation: Installation,
    plugin: PathBuf,
    configuration: Value,
    /// Whether it is the built-in one, whose version the agent negotiates.
    is_built_in: bool,
}

/// The interval at which it is checked whether others have added to the configuration.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

impl Directories {
    /// Returns the installation, if the options request one.
    ///
    /// # Errors
    /// If the name is not usable.
    pub fn installation(&self) -> Result<Option<Installation>, Error> {
        let (Some(plugins), Some(configurations)) = (&self.cni_bin_dir, &self.cni_conf_dir) else {
            return Ok(None);
        };
        Installation::new(
            plugins.clone(),
            configurations.clone(),
            self.cni_conf_name.clone(),
        )
        .map(Some)
    }
}

impl Options {
    /// Checks the options, so that an agent with unusable ones ends at its start. `None` if nothing is to be
    /// installed.
    ///
    /// # Errors
    /// If a name or the configuration to install is not usable.
    pub fn prepare(&self, socket: &Path) -> Result<Option<Prepared>, Error> {
        let Some(installation) = self.directories.installation()? else {
            return Ok(None);
        };
        let configuration = match &self.cni_conflist {
            Some(path) => read_configuration(path)?,
            None => {
                let portmap = !self.no_portmap && installation.has_portmap();
                if !portmap {
                    info!(
                        "hostPort is not served: portmap is not among the host's CNI plugins, or is \
                           switched off"
                    );
                }
                configuration(socket, portmap)
            }
        };
        Ok(Some(Prepared {
            installation,
            plugin: self.plugin.clone().unwrap_or_else(beside_us),
            configuration,
            is_built_in: self.cni_conflist.is_none(),
        }))
    }
}

impl Prepared {
    /// Installs the plugin, and then the configuration: from now on the runtime calls the plugin. A failure is usually
    /// caused by others, and is no reason to end: running pods must be maintained and removed.
    pub fn install(&self, status: &InstallStatus) {
        let done = self.install_plugin().and_then(|()| self.configure());
        status.record(&self.path(), done);
    }

    fn install_plugin(&self) -> Result<(), Error> {
        if self.installation.install_plugin(&self.plugin)? {
            info!(plugin = %self.installation.plugins.join(PLUGIN).display(), "installed");
        }
        Ok(())
    }

    fn configure(&self) -> Result<(), Error> {
        let installed = self
            .installation
            .install_configuration(&self.configuration, self.is_built_in)?;
        if installed.changed {
            let others = installed.others.join(", ");
            info!(configuration = %self.path().display(), %others, "installed");
        }
        if !installed.without_status.is_empty() {
            warn!(
                plugins = %installed.without_status.join(", "),
                "CNI 1.1.0 is not spoken by all plugins of the configuration: the runtime does not ask \
                 for STATUS and GC"
            );
        }
        Ok(())
    }

    /// Watches whether others have changed the configuration: a plugin that they add may not support any version that
    /// is offered, and then no pod starts. The same if they have removed our plugin, as who upgrades the host's may. A failed
    /// installation is tried again.
    pub async fn follow(self, status: InstallStatus) {
        let mut seen = self.text();
        let mut pause = tokio::time::interval(POLL_INTERVAL);
        pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pause.tick().await;
            let text = self.text();
            let has_plugin = self.installation.plugins.join(PLUGIN).is_file();
            if status.fault().is_none() && is_as_seen(&text, &seen, has_plugin) {
                continue;
            }
            let (prepared, noted) = (self.clone(), status.clone());
            let done = tokio::task::spawn_blocking(move || prepared.install(&noted)).await;
            if let Err(e) = done {
                error!("look at {}: {e}", self.path().display());
            }
            seen = self.text();
        }
    }

    fn path(&self) -> PathBuf {
        self.installation.configuration()
    }

    fn text(&self) -> Option<String> {
        std::fs::read_to_string(self.path()).ok()
    }
}

/// Whether nothing is to be done: `text` is the configuration now, and `seen` before. One that was removed stays removed,
/// and the plugin with it: that is a way to drain a node.
fn is_as_seen(text: &Option<String>, seen: &Option<String>, has_plugin: bool) -> bool {
    text.is_none() || (text == seen && has_plugin)
}

fn beside_us() -> PathBuf {
    std::env::current_exe()
        .unwrap_or_default()
        .with_file_name(PLUGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_without_a_file_is_installed_again_unless_the_node_is_drained() {
        let ours = Some("ours".to_owned());
        for (text, has_plugin, expected) in [
            (&ours, true, true),
            (&ours, false, false),
            (&None, false, true),
            (&Some("with others'".to_owned()), true, false),
        ] {
            assert_eq!(
                is_as_seen(text, &ours, has_plugin),
                expected,
                "{text:?} {has_plugin}"
            );
        }
    }
}
