//! The end of an installation: removes what pods needed in the host, as no later agent will.

use std::{fs, io, path::Path, sync::Arc};

use ebbtide_ipam::{catalog::Catalog, pool::OpenError};
use ebbtide_kernel::{
    netlink::{self, Netlink, netns::Evidence},
    node::{self, REDIRECT_DEVICE},
};
use ebbtide_types::{private, settings::Settings};
use tokio::sync::watch;
use tracing::{error, info};

use super::{Agent, Directories, StartError, locked, sysctl_backup};

/// What is left in the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remaining {
    /// Nothing of Ebbtide's.
    Nothing,
    /// This many pod interfaces, and what they need.
    Interfaces(usize),
    /// A running agent, which cleans up itself when the last pod is removed.
    Agent,
}

/// Why the host could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The store, the programs or netlink could not be opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] node::HostError),
    /// The directory of pinned maps could not be removed.
    #[error("remove {path}: {source}")]
    Pins {
        /// The directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

/// Removes what pods needed in the host (rules, routes, programs, maps, a link, settings) if no pod is left. This
/// includes what an agent left behind that ended before its last pod. Forwarding stays on, as others may rely on it by
/// now; so does the state directory.
///
/// # Errors
/// [`CleanupError`]; then some of it may be left.
pub async fn clean_up(directories: &Directories) -> Result<Remaining, CleanupError> {
    if !has_leftovers(directories).await.map_err(StartError::from)? {
        return Ok(Remaining::Nothing);
    }
    let settings = Settings {
        // Addresses that wait for a pod are not to be released here.
        sticky_addresses: true,
        ..Settings::default()
    };
    let (_declared, catalog) = watch::channel(Arc::new(Catalog::default()));
    private::make_directory(&directories.state).map_err(StartError::ChainedInterfaces)?;
    let agent = match Agent::open(String::new(), settings, directories, catalog) {
        Ok(agent) => agent,
        Err(StartError::Pool(OpenError::Locked { .. })) => return Ok(Remaining::Agent),
        Err(e) => return Err(e.into()),
    };
    let left = agent.release_all_gone().await;
    if left > 0 {
        return Ok(Remaining::Interfaces(left));
    }
    agent.remove_from_nics().await?;
    drop(agent);
    match fs::remove_dir_all(&directories.bpf) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CleanupError::Pins {
            path: directories.bpf.display().to_string(),
            source,
        }),
        _ => Ok(Remaining::Nothing),
    }
}

/// Whether an earlier agent left anything behind. Answers without loading programs, which most nodes do not need.
async fn has_leftovers(directories: &Directories) -> Result<bool, netlink::Error> {
    let Directories { state, bpf, .. } = directories;
    let is_filled = |path: &Path| fs::read_dir(path).is_ok_and(|mut all| all.next().is_some());
    if is_filled(bpf) || is_filled(&state.join("chained")) || sysctl_backup::exists(state) {
        return Ok(true);
    }
    let host = Netlink::open("in the host")?;
    let links = host.links().await?;
    let ours = host.owned(&links).await?;
    Ok(links.iter().any(|link| link.name == REDIRECT_DEVICE)
        || !ours.rules.is_empty()
        || !ours.routes.is_empty())
}

impl Agent {
    /// Releases all interfaces whose namespace no longer exists, and returns the number of the others.
    async fn release_all_gone(&self) -> usize {
        for (owner, net) in self.load_records() {
            match net.namespace() {
                Ok(Evidence::Gone) => {
                    if let Err(e) = self.release_gone(&owner, &net).await {
                        error!(pod = %net.pod, %owner, "could not be released: {e}");
                    }
                }
                Ok(Evidence::Present(_)) | Err(_) => {
                    info!(pod = %net.pod, interface = owner.interface, "is still there");
                }
            }
        }
        // A record that cannot be read stands for a pod, too.
        let recorded = self.pools.list().len();
        locked(&self.interfaces).len().max(recorded)
    }
}
