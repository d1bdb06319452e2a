//! The real agent, run in a node's namespace.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_agent::doctor::Finding;
use tempfile::TempDir;

use crate::{
    cni::Plugin,
    netns::Netns,
    process::{self, Process},
    workspace::{BINARIES, Place},
};

/// The longest time that the agent may take to become ready.
const READY: Duration = Duration::from_secs(60);
/// The longest time that the agent may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(5);

/// Where the bpf file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
/// The prefix of these tests' directories in the bpf file system; the process ID follows.
const PREFIX: &str = "ebbtide-test-";

/// The agent's configuration file in these tests.
const CONFIG: &str = "serviceCIDRs: [\"10.96.0.0/16\", \"fd00:10:96::/108\"]\n";
/// The setting that turns off the default `viaHostCIDRs`, for tests that are not about them.
const NOTHING_ELSE: &str = "viaHostCIDRs: []\n";

/// A running agent, with its directories. Dropping it kills the agent and removes what it pinned.
#[derive(Debug)]
pub struct Agent {
    node: String,
    netns: Netns,
    directory: TempDir,
    bpf: PathBuf,
    /// The kubeconfig, if its manifests come from the API server and not from files.
    kubeconfig: Option<PathBuf>,
    /// Whether it installs plugin and configuration.
    installs: bool,
    /// The release whose programs are used.
    release: Place,
    /// What its environment has besides that of the test.
    variables: Vec<(String, String)>,
    process: Option<Process>,
}

/// How `ebbtide-agent uninstall` ended.
#[derive(Clone, Debug)]
pub struct Uninstalled {
    /// Its exit code; none if it was killed.
    pub code: Option<i32>,
    /// What it logged.
    pub log: String,
    /// Its report; null if it printed none.
    pub report: serde_json::Value,
}

/// Returns the agent's binary.
///
/// # Errors
/// If it was not built.
pub fn binary() -> Result<PathBuf> {
    BINARIES.file("ebbtide-agent")
}

impl Agent {
    /// Prepares the directories and starts the agent, without waiting for it. `config` has lines of its configuration
    /// file, besides those that all agents have here.
    ///
    /// # Errors
    /// If the binary is not there or does not start.
    pub fn start(netns: &Netns, node: &str, manifests: &str, config: &str) -> Result<Self> {
        let mut agent = Self::prepare(netns, node, manifests, config)?;
        agent.launch()?;
        Ok(agent)
    }

    /// As [`Agent::start`], but pools and networks come from the API server.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_in_cluster(
        netns: &Netns,
        node: &str,
        kubeconfig: &Path,
        config: &str,
    ) -> Result<Self> {
        let mut agent = Self::prepare(netns, node, "", config)?;
        agent.kubeconfig = Some(kubeconfig.to_owned());
        agent.launch()?;
        Ok(agent)
    }

    /// Prepares the directories of an agent that is not started.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn prepare(netns: &Netns, node: &str, manifests: &str, config: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        process::sweep(Path::new(BPFFS), PREFIX);
        let directory = TempDir::with_prefix("ebbtide-").context("making the agent's directory")?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let bpf = format!("{BPFFS}/{PREFIX}{}-{number}-{node}", std::process::id());
        let agent = Self {
            node: node.to_owned(),
            netns: netns.clone(),
            directory,
            bpf: bpf.into(),
            kubeconfig: None,
            installs: false,
            release: BINARIES,
            variables: Vec::new(),
            process: None,
        };
        for subdirectory in ["manifests", "state", "run"] {
            let path = agent.path(subdirectory);
            std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        }
        std::fs::write(agent.manifests().join("plan.yaml"), manifests)
            .context("writing the manifests")?;
        agent.configure(config)?;
        Ok(agent)
    }

    /// Adds `lines` to the configuration, for the next start.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, lines: &str) -> Result<()> {
        let path = self.path("config.yaml");
        let others = match lines.contains("viaHostCIDRs") {
            true => "",
            false => NOTHING_ELSE,
        };
        std::fs::write(path, format!("{CONFIG}{others}{lines}"))
            .context("writing the configuration")
    }

    /// From now on the programs are those of this release.
    pub fn set_release(&mut self, release: Place) {
        self.release = release;
    }

    /// Adds a variable to its environment, for the next start.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the agent again after [`Agent::stop`] or [`Agent::kill`], without waiting for it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&mut self) -> Result<()> {
        let binary = self.release.file("ebbtide-agent")?;
        self.launch_by(self.netns.command(binary))
    }

    /// As [`Agent::launch`], but in a mount namespace with a host's root directory at `root`, as in a container. That
    /// host has this machine's programs and namespaces, and otherwise what is in `root`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch_beside_host(&mut self, root: &Path) -> Result<()> {
        const ENTER: &str = r#"set -e
root=$1; shift
for name in usr bin sbin lib lib64 proc run dev; do
    if [ -h /$name ]; then ln -sfn "$(readlink /$name)" "$root/$name"
    elif [ -d /$name ]; then mkdir -p "$root/$name"; mount --rbind /$name "$root/$name"
    fi
done
exec env PATH=/none "$@" --host-root="$root"
"#;
        let binary = self.release.file("ebbtide-agent")?;
        let mut command = self.netns.command("unshare");
        let options = ["--mount", "--propagation", "slave", "sh", "-c", ENTER, "sh"];
        command.args(options).arg(root).arg(binary);
        self.launch_by(command)
    }

    fn launch_by(&mut self, mut command: Command) -> Result<()> {
        command.arg("run").args(["--node-name", &self.node]);
        match &self.kubeconfig {
            Some(file) => command.arg("--kubeconfig").arg(file),
            None => command.arg("--manifests").arg(self.manifests()),
        };
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        // Tests look for how often the agent compares the host with its plans.
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info,ebbtide_agent::looks=debug");
        }
        command
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--bpf-dir")
            .arg(&self.bpf)
            .arg("--config")
            .arg(self.path("config.yaml"));
        if self.installs {
            let [plugins, configurations] = self.cni_directories();
            command.arg("--cni-bin-dir").arg(plugins);
            command.arg("--cni-conf-dir").arg(configurations);
        }
        let process = Process::start(command, &self.path("agent.log"));
        self.process = Some(process.context("starting ebbtide-agent")?);
        Ok(())
    }

    /// Waits until the agent listens on its socket. It may not have looked at the running pods yet.
    ///
    /// # Errors
    /// If it ended, or does not listen in time; the error has its log.
    pub fn wait_listening(&mut self) -> Result<()> {
        self.wait(Duration::from_micros(500), |agent| {
            UnixStream::connect(agent.socket()).context("it does not listen")?;
            Ok(())
        })
    }

    /// Waits until the agent answers on its socket and has taken over all pods that ran before it.
    ///
    /// # Errors
    /// If it ended, or does not answer in time; the error has its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait(Duration::from_millis(20), |agent| {
            let status = agent.control_json(&["status"])?;
            let waiting = &status["notReconciled"];
            ensure!(*waiting == 0, "{waiting} not reconciled yet");
            Ok(())
        })
    }

    /// Calls `look` again after each pause, until it succeeds.
    fn wait(&mut self, pause: Duration, look: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        loop {
            let Some(process) = &mut self.process else {
                bail!("the agent of {} is not running", self.node);
            };
            if let Some(status) = process.ended()? {
                bail!("the agent of {} ended: {status}\n{}", self.node, self.log());
            }
            let Err(trouble) = look(self) else {
                return Ok(());
            };
            if start.elapsed() > READY {
                bail!(
                    "the agent of {} is not ready after {READY:?}: {trouble:#}\n{}",
                    self.node,
                    self.log()
                );
            }
            thread::sleep(pause);
        }
    }

    /// Runs `ebbtidectl` against this agent and returns its output.
    ///
    /// # Errors
    /// If it fails; the error has its output.
    pub fn control(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .netns
            .command(self.release.file("ebbtidectl")?)
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .output()
            .context("running ebbtidectl")?;
        if !output.status.success() {
            bail!(
                "ebbtidectl {}: {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// As [`Agent::control`] with `-o json`; returns the parsed output.
    ///
    /// # Errors
    /// If it fails, or what it prints is not JSON.
    pub fn control_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.control(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("ebbtidectl {arguments:?} -o json printed {text:?}"))
    }

    /// Returns how many addresses are in use, over all pools.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn addresses_in_use(&self) -> Result<u64> {
        let pools = self.control_json(&["pools"])?;
        let pools = pools.as_array().context("no list of pools")?;
        Ok(pools.iter().filter_map(|pool| pool["used"].as_u64()).sum())
    }

    /// Returns how many packets source-NIC enforcement redirected, because they would have left the node by the wrong
    /// NIC.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn left_to_enforcement(&self) -> Result<u64> {
        let lines = self.control_json(&["datapath"])?;
        let lines = lines.as_array().context("no list of programs")?;
        ensure!(
            lines
                .iter()
                .any(|line| line["program"] == "host_nic_egress"),
            "no NIC is listed: {lines:?}"
        );
        Ok(lines
            .iter()
            .filter_map(|line| line["wrongNic"].as_u64())
            .sum())
    }

    /// Returns the findings of `ebbtidectl doctor`, and whether it fails.
    ///
    /// # Errors
    /// If it prints nothing.
    pub fn doctor(&self) -> Result<(Vec<Finding>, bool)> {
        let output = self
            .netns
            .command(self.release.file("ebbtidectl")?)
            .arg("--socket")
            .arg(self.socket())
            .args(["doctor", "-o", "json"])
            .output()
            .context("running ebbtidectl doctor")?;
        let findings = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok((findings, !output.status.success()))
    }

    /// Runs `ebbtide-agent uninstall` on this node, with host directories of its own, and returns its log.
    ///
    /// # Errors
    /// If it fails; the error has its output.
    pub fn uninstall(&self) -> Result<String> {
        let ended = self.uninstall_with(&[])?;
        ensure!(ended.code == Some(0), "ebbtide-agent uninstall: {ended:?}");
        Ok(ended.log)
    }

    /// Runs `ebbtide-agent uninstall` on this node with further arguments, and returns how it ended.
    ///
    /// # Errors
    /// If it does not start.
    pub fn uninstall_with(&self, arguments: &[&str]) -> Result<Uninstalled> {
        let mut command = self.uninstall_command(self.netns.command(binary()?));
        let output = command.args(arguments).args(["-o", "json"]).output();
        let output = output.context("running ebbtide-agent uninstall")?;
        Ok(Uninstalled {
            code: output.status.code(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
            report: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        })
    }

    /// Completes `command`, which runs the agent's binary, with `uninstall` and this agent's directories.
    #[must_use]
    pub fn uninstall_command(&self, mut command: Command) -> Command {
        let [plugins, configurations] = self.cni_directories();
        command
            .arg("uninstall")
            .arg("--cni-bin-dir")
            .arg(plugins)
            .arg("--cni-conf-dir")
            .arg(configurations)
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--bpf-dir")
            .arg(&self.bpf);
        command
    }

    /// From its next start on, the agent installs plugin and configuration in directories of its own.
    ///
    /// # Errors
    /// If these cannot be made.
    pub fn install(&mut self) -> Result<()> {
        for path in self.cni_directories() {
            std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        }
        self.installs = true;
        Ok(())
    }

    /// Returns the directories of CNI plugins and of network configurations that this agent installs into.
    #[must_use]
    pub fn cni_directories(&self) -> [PathBuf; 2] {
        ["cni-bin", "cni-conf"].map(|name| self.path(name))
    }

    /// Returns all directories in which this agent may have files.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        let own = ["state", "run"].map(|name| self.path(name));
        let bpf = self.bpf.clone();
        let all = self.cni_directories().into_iter().chain(own);
        all.chain([bpf]).collect()
    }

    /// Removes the empty directories for persistent and run-time data, which the agent makes by itself.
    ///
    /// # Errors
    /// If one is not empty.
    pub fn forget_directories(&self) -> Result<()> {
        for name in ["state", "run"] {
            std::fs::remove_dir(self.path(name)).context(name)?;
        }
        Ok(())
    }

    /// Returns the plugin as a runtime on this node calls it.
    #[must_use]
    pub fn plugin(&self) -> Plugin {
        Plugin::new(self.netns.clone(), self.socket(), self.release)
    }

    /// Returns the agent's process ID, if it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Ends the agent by SIGTERM and waits for it.
    ///
    /// # Errors
    /// If it does not end in time, or not cleanly; the error has its log.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        match process.stop(STOP).context("ending the agent")? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the agent of {}: {status}\n{}", self.node, self.log()),
            None => bail!(
                "SIGTERM did not end the agent of {}\n{}",
                self.node,
                self.log()
            ),
        }
    }

    /// Kills the agent by SIGKILL, as the kernel's out-of-memory killer does.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().context("killing the agent")?;
        }
        Ok(())
    }

    /// Returns what the agent logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.path("agent.log")).unwrap_or_default();
        format!(
            "--- log of the agent of {}\n{}---",
            self.node,
            String::from_utf8_lossy(&log)
        )
    }

    /// Returns the node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Returns the directory that the agent reads its manifests from.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.path("manifests")
    }

    /// Returns the directory of its durable records.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Returns the directory in which it pins its programs and maps.
    #[must_use]
    pub fn bpf(&self) -> &Path {
        &self.bpf
    }

    /// Returns the path of its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("run").join("cni.sock")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent's network goes away with it, and nobody could handle the error.
        let _ = self.kill();
        let _ = std::fs::remove_dir_all(&self.bpf);
    }
}
