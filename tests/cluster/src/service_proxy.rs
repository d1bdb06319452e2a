//! kube-proxy alone, on a machine that serves Services and runs no pods.

use std::{
    net::IpAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{netns::Netns, process::Process};
use serde_json::json;

use super::{control_plane::ControlPlane, log::tail, mode::ProxyMode, parts::Parts};

/// The time limit until Services are served: this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);

/// A running kube-proxy. Dropping it ends its process; its rules stay in its network.
#[derive(Debug)]
pub struct ServiceProxy {
    process: Process,
    mode: ProxyMode,
    log: PathBuf,
}

impl ServiceProxy {
    /// Starts a kube-proxy in the machine `netns`, as that of the node `name` at `address`, and creates the Node
    /// object.
    ///
    /// # Errors
    /// If it cannot be started, or the cluster's release has no such mode.
    pub fn start(
        cluster: &ControlPlane,
        netns: &Netns,
        name: &str,
        address: IpAddr,
        mode: ProxyMode,
    ) -> Result<Self> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        cluster.apply(&node.to_string())?;
        let addresses = json!({"addresses": [{"type": "InternalIP", "address": address}]});
        cluster.set_status(&format!("/api/v1/nodes/{name}"), &addresses)?;
        let files = cluster.path(&format!("proxy-{name}-{mode}"));
        std::fs::create_dir_all(&files).with_context(|| format!("making {}", files.display()))?;
        let parts = Parts {
            cluster,
            name,
            address,
            files: &files,
            state: &files,
            cgroup: "",
        };
        let arguments = parts.proxy(mode)?;
        let arguments = arguments.context("no kube-proxy in this mode")?;
        let mut command = netns.command(cluster.binaries.file("kube-proxy")?);
        command.args(arguments);
        let log = files.join("log");
        let process = Process::start(command, &log).context("starting kube-proxy")?;
        Ok(Self { process, mode, log })
    }

    /// Waits until `look` succeeds.
    ///
    /// # Errors
    /// If it does not, or kube-proxy ended; the error has the end of its log.
    pub fn wait(&mut self, look: impl Fn() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while let Err(trouble) = look() {
            let log = || tail(&self.log);
            if let Some(status) = self.process.ended()? {
                bail!("kube-proxy ({}) ended ({status}):\n{}", self.mode, log());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "waited {PATIENCE:?} for kube-proxy ({}): {trouble:#}\n{}",
                self.mode,
                log()
            );
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}
