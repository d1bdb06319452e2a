//! The end of an installation on this node: removes everything that Ebbtide put there.
//!
//! Nothing here needs an agent, its programs or its maps: what is there is found in the kernel and on disk, each time
//! anew. So it may be killed at any instruction and be run again, and a node that never had an agent is no error. While
//! pods are there nothing is removed, because they need it.

use std::{io, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use ebbtide_ipam::pool::{self, OpenError, Pools};
use ebbtide_kernel::netlink::{Netlink, sysctl};
use ebbtide_types::format::Newer;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::{
    agent::formats,
    host_root::HostRoot,
    install::{self, Installation, options::Directories},
};

mod files;
mod network;
mod pods;
mod report;

pub use report::{Item, Kept, Outcome, PodLeft, Report};

/// The pause between two looks at pods that are left.
const PAUSE: Duration = Duration::from_secs(2);

/// What to remove, and when.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    directories: Directories,
    /// The agent's directory of persistent data.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ebbtide")]
    state_dir: PathBuf,
    /// The agent's directory of pinned eBPF maps.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/ebbtide")]
    bpf_dir: PathBuf,
    /// The directory of the agent's socket.
    #[arg(long, value_name = "DIR", default_value = "/run/ebbtide")]
    run_dir: PathBuf,
    /// The directory of writable sysctls: in a container, a mount of the host's /proc/sys.
    #[arg(long, value_name = "DIR", default_value = sysctl::ROOT)]
    sysctl_dir: PathBuf,
    /// The mount of the host's root directory in a container: other IPAM plugins run with it, where a pod that ended
    /// without the agent had addresses of theirs [default: the own root].
    #[arg(long, value_name = "DIR")]
    host_root: Option<PathBuf>,
    /// Print what would be removed, and remove nothing.
    #[arg(long, conflicts_with_all = ["wait", "stay"])]
    dry_run: bool,
    /// Also remove the persistent data: which pod has which address, and which addresses rest.
    #[arg(long)]
    purge: bool,
    /// How the node forwards packets afterwards.
    #[arg(long, value_enum, default_value_t = Forwarding::Auto)]
    forwarding: Forwarding,
    /// While pods or the agent are left: wait this many seconds for their end; without an agent the configuration is
    /// removed at once, so that no pod is added. Without this option nothing is removed then.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// As --wait for as long as it takes; and do not exit before SIGTERM, as the pod of a DaemonSet must not.
    #[arg(long, conflicts_with = "wait")]
    stay: bool,
}

/// How the node forwards packets after the removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Forwarding {
    /// As before the first pod, unless there are links by which others are forwarded: containers', bridges, tunnels.
    Auto,
    /// As before the first pod.
    Restore,
    /// As now.
    Keep,
}

/// Why the removal could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options are not usable.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The command line lacks the CNI directories.
    #[error("say where it is installed: --cni-bin-dir DIR --cni-conf-dir DIR")]
    NoDirectories,
    /// The record of the pods cannot be read.
    #[error(
        "{0}; without it nobody knows which pods are left. Once none is, --purge removes it, too"
    )]
    Pools(#[source] OpenError),
    /// Another release wrote the record of the pods.
    #[error(transparent)]
    OtherRelease(OpenError),
    /// The records of chained interfaces cannot be read.
    #[error("read the records of chained interfaces: {0}")]
    Records(#[source] io::Error),
    /// A newer release wrote what it needs to know.
    #[error(transparent)]
    Newer(#[from] Newer),
    /// The kernel does not answer.
    #[error(transparent)]
    Netlink(#[from] ebbtide_kernel::netlink::Error),
}

impl Error {
    /// Returns the exit code of `ebbtide-agent uninstall`.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            // That of a command line which cannot be understood.
            Self::NoDirectories => 2,
            _ => 1,
        }
    }
}

impl Options {
    /// Whether the process must not exit by itself.
    #[must_use]
    pub const fn stays(&self) -> bool {
        self.stay
    }
}

/// Removes everything of Ebbtide's from this node, or says why not. Every step is also logged.
///
/// # Errors
/// If it cannot be known what is there. What could not be removed is in the report.
pub async fn run(options: &Options) -> Result<Report, Error> {
    let installation = options.directories.installation()?;
    let installation = installation.ok_or(Error::NoDirectories)?;
    formats::refuse_newer(&options.state_dir)?;
    sysctl::set_root(options.sysctl_dir.clone());
    if let Some(path) = options.host_root.clone() {
        match HostRoot::open(path) {
            Ok(root) => HostRoot::set(root),
            Err(e) => warn!("{e}; other IPAM plugins are looked for here instead"),
        }
    }
    let host = Netlink::open("in the host")?;
    let removal = Removal {
        options,
        installation,
        host,
    };
    let patience = options.wait.map(Duration::from_secs);
    let end = patience.map(|patience| Instant::now() + patience);
    let mut known = Report::default();
    loop {
        let report = removal.attempt().await?;
        let is_blocked = matches!(report.outcome, Outcome::Pods | Outcome::Agent);
        let may_wait = options.stay || end.is_some_and(|end| Instant::now() < end);
        if !is_blocked || !may_wait || options.dry_run {
            return Ok(report);
        }
        if (report.outcome, &report.pods) != (known.outcome, &known.pods) {
            report.log();
        }
        known = report;
        sleep(PAUSE).await;
    }
}

/// One uninstallation.
struct Removal<'a> {
    options: &'a Options,
    installation: Installation,
    host: Netlink,
}

impl Removal<'_> {
    /// Removes everything, if no pod is left and no agent runs.
    async fn attempt(&self) -> Result<Report, Error> {
        let mut report = Report {
            dry_run: self.options.dry_run,
            ..Report::default()
        };
        let pools = match self.pools() {
            Ok(pools) => pools,
            Err(OpenError::Locked { .. }) => {
                report.outcome = Outcome::Agent;
                return Ok(report);
            }
            Err(e) => {
                let is_purged = self.options.purge && matches!(e, OpenError::Corrupt { .. });
                if !is_purged {
                    return Err(match e {
                        OpenError::Schema { .. } => Error::OtherRelease(e),
                        e => Error::Pools(e),
                    });
                }
                warn!("{e}; it is removed");
                None
            }
        };
        let network = network::find(self.options, &self.host).await?;
        let records = pods::Records::read(self.options, pools)?;
        let pods = records.living(&network.pod_veths);
        if !pods.is_empty() {
            report.outcome = Outcome::Pods;
            report.pods = pods;
        }
        let is_blocked = report.outcome == Outcome::Pods;
        let waits = self.options.stay || self.options.wait.is_some();
        if self.options.dry_run {
            self.plan(&records, &network, &mut report);
            return Ok(report);
        }
        if is_blocked && !waits {
            return Ok(report);
        }
        // First: without it the runtime gives no new pod to a plugin that is about to go.
        files::remove_installation(&self.installation, is_blocked, &mut report);
        if is_blocked {
            return Ok(report);
        }
        records.release_gone(&mut report).await;
        network::remove(self.options, &self.host, &mut report).await?;
        drop(records);
        files::remove_own(self.options, &mut report);
        if !report.failures.is_empty() {
            report.outcome = Outcome::Failed;
        }
        Ok(report)
    }

    /// Lists what [`Removal::attempt`] would remove.
    fn plan(&self, records: &pods::Records, network: &network::Found, report: &mut Report) {
        let installed = self.installation.installed().into_iter();
        report.plan(installed.map(|path| Item::new("file", path.display())));
        report.plan(records.gone().into_iter());
        network::plan(self.options, network, report);
        report.plan(files::own(self.options).into_iter());
    }

    /// Opens the store of the pools, and keeps agents from starting meanwhile; `None` if there never was one.
    fn pools(&self) -> Result<Option<Pools>, OpenError> {
        let state = &self.options.state_dir;
        let was_there = ["pool.journal", "pool.lock"];
        if !was_there.iter().any(|name| state.join(name).exists()) {
            return Ok(None);
        }
        let options = pool::Options {
            // Addresses that wait for a pod are not to be released here.
            sticky: true,
            ..pool::Options::default()
        };
        Pools::open(state, options).map(Some)
    }
}

/// Logs the end of a removal.
pub fn log_end(report: &Report) {
    report.log();
    // Of a dry run all is left, and the report says what.
    if report.outcome == Outcome::Nothing && !report.dry_run {
        info!("nothing of Ebbtide's is left on this node");
    }
}
