//! A node that is a machine: a user-mode Linux, whose kernel has ipvlan, with the NICs that the VPC has for it.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    plan::{Family, MadeOf, Node as Planned, Plan},
    process::Process,
    vpc::{Vpc, node_sysctls},
    workspace,
};

use super::{control_plane::ControlPlane, log::tail, parts::Parts};

/// The time limit until the API server knows the node: this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_millis(200);
/// The script that runs in the machine. [`Machine::boot`] passes its arguments.
const SCRIPT: &str = include_str!("machine.sh");
/// Its memory in MiB: images, containers and all files are in memory.
const MEMORY: &str = "1536";
/// The directory in the machine for files that need not be seen from outside, as in the script.
const STATE: &str = "/run/node";
const CGROUP: &str = "node";

/// A node with a kernel of its own. Dropping it switches it off.
#[derive(Debug)]
pub struct Machine {
    name: String,
    logs: PathBuf,
    process: Process,
}

impl Machine {
    /// Starts the machine `name` of the VPC's plan, with `images` (archives) in its container runtime. The node is not
    /// ready until its `/etc/cni/net.d` has a network configuration.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn boot(cluster: &ControlPlane, vpc: &Vpc, name: &str, images: &[PathBuf]) -> Result<Self> {
        let planned = vpc.plan.node(name);
        let planned = planned.with_context(|| format!("the plan has no node {name}"))?;
        let first = planned.nics.first().context("a machine without a NIC")?;
        let directory = cluster.path(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let parts = Parts {
            cluster,
            name,
            address: first.primary(Family::V4),
            files: &directory,
            state: Path::new(STATE),
            cgroup: CGROUP,
        };
        describe(&parts, &vpc.plan, planned, images)?;

        let mut command = vpc.router.command(workspace::XTASK.file("xtask")?);
        command.args([
            "vm",
            "--kernel",
            "uml",
            "--memory",
            MEMORY,
            "--timeout",
            "86400",
        ]);
        for nic in &planned.nics {
            command.arg("--nic").arg(nic.port());
        }
        command
            .args(["--", "bash", "-euc", SCRIPT, "node"])
            .args([&directory, &cluster.path("")])
            .args(seen(cluster, images)?);
        let logs = directory.clone();
        let process = Process::start(command, &logs.with_extension("machine.log"))
            .context("starting xtask vm")?;
        Ok(Self {
            name: name.to_owned(),
            logs,
            process,
        })
    }

    /// Returns its name in the API server.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the API server knows the node.
    ///
    /// # Errors
    /// If it ended, or is not ready in time.
    pub fn wait(&mut self, cluster: &ControlPlane) -> Result<()> {
        let start = Instant::now();
        while let Err(trouble) = cluster.kubectl(&["get", "node", &self.name, "-o", "name"]) {
            if let Some(status) = self.process.ended()? {
                bail!("{} ended ({status}):\n{}", self.name, self.logs());
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "waited {PATIENCE:?} until the API server knows {}: {trouble:#}\n{}",
                    self.name,
                    self.logs()
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Returns the ends of its logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for part in ["machine", "containerd", "kubelet", "kube-proxy"] {
            let log = tail(&self.logs.with_extension(format!("{part}.log")));
            let _ = writeln!(text, "{} {part}:\n{log}", self.name);
        }
        text
    }
}

/// Writes the configuration of the machine.
fn describe(parts: &Parts<'_>, plan: &Plan, node: &Planned, images: &[PathBuf]) -> Result<()> {
    let binaries = &parts.cluster.binaries;
    let proxy = parts.proxy(parts.cluster.options.proxy)?;
    let of_all = [
        ("containerd", Some(parts.containerd()?)),
        ("kubelet", Some(parts.kubelet()?)),
        ("kube-proxy", proxy),
    ];
    for (part, arguments) in of_all {
        let Some(arguments) = arguments else {
            continue;
        };
        let program = binaries.file(part)?.display().to_string();
        parts.write(
            &format!("{part}.args"),
            &lines([program].iter().chain(&arguments)),
        )?;
    }
    let sysctls = node_sysctls(plan);
    let sysctls = sysctls
        .iter()
        .map(|(path, value)| format!("{path} {value}"));
    let images = images.iter().map(|image| image.display());
    parts.write("name", &lines([parts.name]))?;
    parts.write("cgroup", &lines([parts.cgroup]))?;
    parts.write("path", &lines([binaries.directory().display()]))?;
    parts.write("ctr", &lines([binaries.file("ctr")?.display()]))?;
    // The last machine has no plugin for hostPort.
    let machines = plan.nodes.iter();
    let mut machines = machines.filter(|node| node.made_of == MadeOf::Machine);
    let last = machines.next_back().map(|node| node.name.as_str());
    let is_last = last == Some(parts.name);
    let plugins: &[&str] = if is_last {
        &["loopback"]
    } else {
        &["loopback", "portmap"]
    };
    parts.write("plugins", &lines(plugins))?;
    parts.write("images", &lines(images))?;
    parts.write("sysctls", &lines(sysctls))?;
    parts.write("nics", &lines(nics(plan, node)))?;
    Ok(())
}

/// Returns the lines of `ip -batch` for the machine's NICs, which are called vec0, vec1...
fn nics(plan: &Plan, node: &Planned) -> Vec<String> {
    let mut commands = Vec::new();
    for (number, nic) in node.nics.iter().enumerate() {
        let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
        let (name, mtu) = (&nic.name, plan.mtu);
        commands.push(format!("link set dev vec{number} address {mac}"));
        commands.push(format!("link set dev vec{number} name {name}"));
        commands.push(format!("link set dev {name} mtu {mtu} up"));
        for family in Family::BOTH {
            let address = nic.subnet(family).primary;
            commands.push(format!("address add {address} dev {name}"));
        }
    }
    for family in Family::BOTH {
        let gateway = node.nics.first().map(|nic| nic.subnet(family).gateway);
        commands.extend(gateway.map(|gateway| format!("route add default via {gateway}")));
    }
    commands
}

/// Returns the directories with the machine's programs and files.
fn seen(cluster: &ControlPlane, images: &[PathBuf]) -> Result<Vec<OsString>> {
    let kubelet = cluster.binaries.file("kubelet")?;
    let own = workspace::XTASK.file("xtask")?;
    let runtime = cluster.binaries.file("containerd")?;
    let files = images.iter().chain([&kubelet, &runtime, &own]);
    let directories = files.filter_map(|file| file.parent());
    Ok(directories
        .map(|path| path.as_os_str().to_owned())
        .collect())
}

fn lines(words: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    words.into_iter().fold(String::new(), |mut text, word| {
        let _ = writeln!(text, "{word}");
        text
    })
}
