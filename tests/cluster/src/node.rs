//! A node: containerd, kubelet and kube-proxy in namespaces of their own.
//!
//! Network, mount and PID namespace are the node's. Below the well-known paths (`/etc/cni/net.d`, `/var/lib/kubelet`,
//! ...) it has directories of its own, so that several nodes fit on one kernel and a DaemonSet's host paths reach its
//! own node only. Process 1 of the PID namespace dies with this process, and the kernel then ends everything in it, so
//! no container outlives a test.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{netns::Netns, process::Process};

use super::{control_plane::ControlPlane, log::tail, parts::Parts};

/// The time limit for a component's answer: this machine may be busy, or emulated.
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);

/// The script of process 1 of a node; `$1` is the node's directory.
const HOLDER: &str = include_str!("holder.sh");

/// The components, in the order in which they are stopped.
const PARTS: [&str; 3] = ["kubelet", "kube-proxy", "containerd"];

/// A node of a cluster. Dropping it ends its processes, and removes its mounts and control groups.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: IpAddr,
    directory: PathBuf,
    logs: PathBuf,
    parts: Vec<(&'static str, Process)>,
    holder: Process,
    netns: Netns,
}

impl Node {
    /// Makes the machine `netns` a node called `name`, at `address`, with `images` (archives) in its container runtime,
    /// and waits until the API server knows it. The node is not ready until its `/etc/cni/net.d` has a network
    /// configuration.
    ///
    /// # Errors
    /// If a component does not start; the error has the end of its log.
    pub fn join(
        cluster: &ControlPlane,
        netns: &Netns,
        name: &str,
        address: IpAddr,
        images: &[PathBuf],
    ) -> Result<Self> {
        let directory = cluster.path(&format!("node-{name}"));
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let mut command = netns.command("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "slave", "--", "sh", "-euc", HOLDER, "node"])
            .arg(&directory);
        let logs = cluster.log_file(name).with_extension("");
        let log = |part: &str| logs.with_extension(format!("{part}.log"));
        let holder = Process::start(command, &log("node")).context("starting unshare(1)")?;
        let mut node = Self {
            name: name.to_owned(),
            address,
            directory,
            logs: logs.clone(),
            parts: Vec::new(),
            holder,
            netns: netns.clone(),
        };
        let mounted = node.directory.join("mounted");
        node.wait("its directories are mounted", "node", || {
            mounted.try_exists()?.then_some(()).context("not yet")
        })?;
        node.start_parts(cluster, images)?;
        let known = ["get", "node", name, "-o", "name"];
        node.wait("the API server knows it", "kubelet", || {
            cluster.kubectl(&known).map(drop)
        })?;
        Ok(node)
    }

    fn start_parts(&mut self, cluster: &ControlPlane, images: &[PathBuf]) -> Result<()> {
        let (name, directory, cgroup) = (self.name.clone(), self.directory.clone(), self.cgroup());
        let parts = Parts {
            cluster,
            name: &name,
            address: self.address,
            files: &directory,
            state: &directory,
            cgroup: &cgroup,
        };
        self.start(cluster, "containerd", &parts.containerd()?)?;
        let socket = parts.socket();
        self.wait("containerd answers", "containerd", || {
            std::os::unix::net::UnixStream::connect(&socket)
                .map(drop)
                .context("its socket")
        })?;
        for image in images {
            self.import(cluster, image)?;
        }
        make_cgroups(&cgroup)?;
        self.start(cluster, "kubelet", &parts.kubelet()?)?;
        match parts.proxy(cluster.options.proxy)? {
            Some(arguments) => self.start(cluster, "kube-proxy", &arguments),
            None => Ok(()),
        }
    }

    fn import(&self, cluster: &ControlPlane, image: &Path) -> Result<()> {
        let imported = self
            .ctr(cluster)
            .args(["images", "import"])
            .arg(image)
            .output()?;
        if !imported.status.success() {
            bail!(
                "ctr images import {}: {}",
                image.display(),
                String::from_utf8_lossy(&imported.stderr)
            );
        }
        Ok(())
    }

    /// Returns a command that runs in all of the node's namespaces.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.netns.command("nsenter");
        let of = |namespace: &str| format!("/proc/{}/ns/{namespace}", self.holder.id());
        command
            .arg(format!("--mount={}", of("mnt")))
            .arg(format!("--pid={}", of("pid_for_children")))
            .arg("--")
            .arg(program);
        command
    }

    /// Returns `ctr` for this node's containerd, in the containerd namespace of Kubernetes.
    pub fn ctr(&self, cluster: &ControlPlane) -> Command {
        let ctr = cluster.binaries.file("ctr");
        let mut command = self.command(ctr.unwrap_or_else(|_| "ctr".into()));
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io"]);
        command
    }

    /// Returns the node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the end of a component's log: `containerd`, `kubelet`, `kube-proxy`.
    #[must_use]
    pub fn log(&self, part: &str) -> String {
        tail(&self.log_file(part))
    }

    fn log_file(&self, part: &str) -> PathBuf {
        self.logs.with_extension(format!("{part}.log"))
    }

    fn start(
        &mut self,
        cluster: &ControlPlane,
        part: &'static str,
        arguments: &[String],
    ) -> Result<()> {
        let mut command = self.command(cluster.binaries.file(part)?);
        command
            .args(arguments)
            .env("PATH", cluster.binaries.first_in_path()?);
        let process = Process::start(command, &self.log_file(part));
        let process = process.with_context(|| format!("starting {part}"))?;
        self.parts.push((part, process));
        Ok(())
    }

    fn wait(&mut self, what: &str, part: &str, look: impl Fn() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        loop {
            let Err(trouble) = look() else {
                return Ok(());
            };
            let holder = ("node", &mut self.holder);
            let parts = self.parts.iter_mut().map(|(name, part)| (*name, part));
            for (name, process) in parts.chain([holder]) {
                if let Some(status) = process.ended()? {
                    let log = tail(&self.logs.with_extension(format!("{name}.log")));
                    bail!("{name} of {} ended ({status}):\n{log}", self.name);
                }
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "waited {PATIENCE:?} for {} until {what}: {trouble:#}\n{}",
                    self.name,
                    self.log(part)
                );
            }
            thread::sleep(PAUSE);
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// Returns the path of its control group, in every hierarchy.
    fn cgroup(&self) -> String {
        format!("ebbtide-test-{}-{}", std::process::id(), self.name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for part in PARTS {
            self.parts.retain(|(name, _)| *name != part);
        }
        // With process 1 everything in its PID namespace ends: shims and containers.
        let _ = self.holder.kill();
        for root in cgroup_roots() {
            remove_cgroup(&root.join(self.cgroup()));
        }
    }
}

fn make_cgroups(cgroup: &str) -> Result<()> {
    for root in cgroup_roots() {
        let path = root.join(cgroup);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // In cgroup v1 a new cpuset is empty.
            if let Ok(all) = fs::read(root.join(file)) {
                let _ = fs::write(path.join(file), all);
            }
        }
    }
    Ok(())
}

/// Returns the cgroup hierarchies: one in version 2, one for each controller in version 1.
fn cgroup_roots() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    if base.join("cgroup.controllers").exists() {
        let controllers = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            // If a controller cannot be enabled, the kubelet reports it.
            let _ = fs::write(
                base.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
        }
        return vec![base.to_owned()];
    }
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}

/// Removes a control group and those below it. One that still has processes stays for a moment.
fn remove_cgroup(path: &Path) {
    for _ in 0..20 {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().is_dir()) {
            remove_cgroup(&entry.path());
        }
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
