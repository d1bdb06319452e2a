//! The end of an installation: no agent comes after this one to take away what pods needed in the host.

use std::{fs, io, path::Path, sync::Arc};

use ebbtide_ipam::{catalog::Catalog, pool::OpenError};
use ebbtide_kernel::{
    netlink::{self, Netlink, netns::Evidence},
    node::{self, REDIRECT_DEVICE},
};
use ebbtide_types::{private, settings::Settings};
use tokio::sync::watch;
use tracing::{error, info};

use super::{Agent, Directories, StartError, before, locked};

/// What became of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing of ours is in it any more, or nothing was.
    Nothing,
    /// So many pod interfaces are still there, and what they need.
    Interfaces(usize),
    /// An agent runs, and takes it away itself when the last pod goes.
    Agent,
}

/// Why it could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// The record, the programs or the kernel could not be had.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] node::HostError),
    /// The directory of the pinned maps.
    #[error("remove {path}: {source}")]
    Pins {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Takes away what pods needed in the host (rules, routes, programs, maps, a link, settings), if no pod is left: also
/// what an agent left behind that did not live to see its last pod go. That the node forwards stays, as somebody else
/// may rely on it by now; so does the state directory.
///
/// # Errors
/// [`LeaveError`]; then some of it may be left.
pub async fn leave(directories: &Directories) -> Result<Left, LeaveError> {
    if !is_anything_there(directories)
        .await
        .map_err(StartError::from)?
    {
        return Ok(Left::Nothing);
    }
    let settings = Settings {
        // What waits for a pod is not this one's to give up.
        sticky_addresses: true,
        ..Settings::default()
    };
    let (_declared, catalog) = watch::channel(Arc::new(Catalog::default()));
    private::make_directory(&directories.state).map_err(StartError::ChainedInterfaces)?;
    let agent = match Agent::open(String::new(), settings, directories, catalog) {
        Ok(agent) => agent,
        Err(StartError::Pool(OpenError::Locked { .. })) => return Ok(Left::Agent),
        Err(e) => return Err(e.into()),
    };
    let left = agent.release_all_gone().await;
    if left > 0 {
        return Ok(Left::Interfaces(left));
    }
    agent.take_from_nics().await?;
    drop(agent);
    match fs::remove_dir_all(&directories.bpf) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LeaveError::Pins {
            path: directories.bpf.display().to_string(),
            source,
        }),
        _ => Ok(Left::Nothing),
    }
}

/// Whether an agent was here that did not take everything away itself: most nodes need no programs for this.
async fn is_anything_there(directories: &Directories) -> Result<bool, netlink::Error> {
    let Directories { state, bpf, .. } = directories;
    let is_filled = |path: &Path| fs::read_dir(path).is_ok_and(|mut all| all.next().is_some());
    if is_filled(bpf) || is_filled(&state.join("chained")) || before::is_noted(state) {
        return Ok(true);
    }
    let host = Netlink::open("in the host")?;
    let links = host.links().await?;
    let ours = host.ours(&links).await?;
    Ok(links.iter().any(|link| link.name == REDIRECT_DEVICE)
        || !ours.rules.is_empty()
        || !ours.routes.is_empty())
}

impl Agent {
    /// Releases all interfaces whose namespace is gone; how many others there are.
    async fn release_all_gone(&self) -> usize {
        for (owner, net) in self.written_down() {
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
        // A record that cannot be read speaks of a pod as well.
        let recorded = self.pools.list().len();
        locked(&self.interfaces).len().max(recorded)
    }
}
