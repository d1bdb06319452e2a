//! What the command line says about the host's CNI directories.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CONFIGURATION, Error, Installation, PLUGIN, configuration, read_configuration};

/// Where the host's runtime looks.
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

/// What is installed there.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    directories: Directories,
    /// The network configuration to install, in place of the built-in one.
    #[arg(long, value_name = "FILE", requires = "cni_conf_dir")]
    cni_conflist: Option<PathBuf>,
    /// The plugin to install. [default: ebbtide, beside this program]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
}

/// An installation of which only the last step is left.
#[derive(Clone, Debug)]
pub struct Prepared {
    installation: Installation,
    configuration: String,
}

impl Directories {
    /// The installation, if there is to be one.
    ///
    /// # Errors
    /// When the name makes no sense.
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
    /// Installs the plugin and checks what can be wrong with the configuration: an agent that
    /// cannot be called is to end at its start. `None` if nothing is to be installed.
    ///
    /// # Errors
    /// When a file cannot be read or written, or makes no sense.
    pub fn prepare(&self, socket: &Path) -> Result<Option<Prepared>, Error> {
        let Some(installation) = self.directories.installation()? else {
            return Ok(None);
        };
        let configuration = match &self.cni_conflist {
            Some(path) => read_configuration(path)?,
            None => configuration(socket),
        };
        let plugin = self.plugin.clone().unwrap_or_else(beside_us);
        if installation.install_plugin(&plugin)? {
            tracing::info!(plugin = %installation.plugins.join(PLUGIN).display(), "installed");
        }
        Ok(Some(Prepared {
            installation,
            configuration,
        }))
    }
}

impl Prepared {
    /// The last step: from now on the runtime calls the plugin.
    ///
    /// # Errors
    /// When the configuration cannot be written, or a file of its name is not ours.
    pub fn finish(&self) -> Result<(), Error> {
        let Installation {
            configurations,
            name,
            ..
        } = &self.installation;
        if self
            .installation
            .install_configuration(&self.configuration)?
        {
            tracing::info!(configuration = %configurations.join(name).display(), "installed");
        }
        Ok(())
    }
}

fn beside_us() -> PathBuf {
    std::env::current_exe()
        .unwrap_or_default()
        .with_file_name(PLUGIN)
}
