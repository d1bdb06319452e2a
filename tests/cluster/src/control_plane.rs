//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    netns::Netns,
    process::{self, Process},
};
use ipnet::Ipv4Net;
use tempfile::TempDir;

use super::{
    binaries::Binaries,
    log::tail,
    mode::ProxyMode,
    pki::{self, Pki, Subject},
    ports::Ports,
    release::Release,
    runtime::Runtime,
};

/// The time limit for a component's answer: this machine may be busy, or emulated.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// The prefix of the directories; the process ID follows.
const PREFIX: &str = "ebbtide-cluster-";
/// The number of attempts: another process may take a free port before it is used.
const ATTEMPTS: u32 = 3;

/// The options of a control plane.
#[derive(Debug, Default)]
pub struct Options {
    /// Whether kube-controller-manager and kube-scheduler run, too. Without them namespaces are not emptied when they
    /// are deleted, owner references delete nothing, and pods get no node.
    pub controllers: bool,
    /// The machine that it runs on; without one, it listens on free ports of 127.0.0.1.
    pub place: Option<Place>,
    /// Further arguments of kube-apiserver.
    pub api_server_arguments: Vec<String>,
    /// How Services are served on its nodes.
    pub proxy: ProxyMode,
}

/// A machine for the control plane.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network.
    pub netns: Netns,
    /// The address by which nodes and pods reach it.
    pub address: IpAddr,
}

/// A running control plane. Dropping it ends its processes and removes its files.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order.
    scheduler: Option<Process>,
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    pub(super) options: Options,
    ports: Ports,
    pub(super) binaries: Binaries,
    pub(super) pki: Pki,
    directory: TempDir,
}

impl ControlPlane {
    /// The network of Services.
    pub const SERVICES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);

    /// Starts a control plane and waits until it answers. Returns `None`, after a [`skip`](ebbtide_vpc::skip), if there
    /// are no binaries.
    ///
    /// # Errors
    /// If a component does not start; the error has the end of its log.
    pub fn start(options: Options) -> Result<Option<Self>> {
        let Some(binaries) = Binaries::find() else {
            return Ok(None);
        };
        process::sweep(&std::env::temp_dir(), PREFIX);
        let mut cluster = Self::prepare(binaries, options)?;
        for attempt in 1.. {
            match cluster.launch() {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS || !cluster.port_taken() => return Err(error),
                Err(_) => {
                    (cluster.api_server, cluster.etcd) = (None, None);
                    cluster.ports = Ports::choose(cluster.options.place.is_some())?;
                    cluster.write_admin()?;
                }
            }
        }
        if cluster.options.controllers {
            cluster.launch_controllers()?;
        }
        Ok(Some(cluster))
    }

    fn prepare(binaries: Binaries, options: Options) -> Result<Self> {
        let directory = TempDir::with_prefix(format!("{PREFIX}{}-", std::process::id()))
            .context("making the cluster's directory")?;
        let pki = Pki::new(directory.path().join("pki"))?;
        let cluster = Self {
            scheduler: None,
            controllers: None,
            api_server: None,
            etcd: None,
            ports: Ports::choose(options.place.is_some())?,
            options,
            binaries,
            pki,
            directory,
        };
        let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
        addresses.extend(cluster.options.place.as_ref().map(|place| place.address));
        let service = Self::SERVICES.hosts().next().context("a first Service")?;
        let server = Subject {
            name: "kube-apiserver",
            group: None,
            serves: &pki::api_server_names(&addresses, service.into()),
        };
        cluster.pki.sign("apiserver", &server)?;
        let client = Subject {
            name: "apiserver-kubelet-client",
            group: Some("system:masters"),
            serves: &[],
        };
        cluster.pki.sign("kubelet-client", &client)?;
        cluster.write_admin()?;
        Ok(cluster)
    }

    fn write_admin(&self) -> Result<()> {
        let admin = Subject {
            name: "admin",
            group: Some("system:masters"),
            serves: &[],
        };
        let server = self.server();
        self.pki.kubeconfig("admin", &admin, &server).map(drop)
    }

    fn launch(&mut self) -> Result<()> {
        self.start_etcd()?;
        self.start_api_server()
    }

    fn start_etcd(&mut self) -> Result<()> {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd);
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        let mut command = self.command("etcd")?;
        command
            .args(["--name", "default", "--log-level", "warn"])
            // A test's store need not survive a power failure.
            .arg("--unsafe-no-fsync")
            .arg("--data-dir")
            .arg(self.path("etcd"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")]);
        self.etcd = Some(Process::start(command, &self.log_file("etcd")).context("starting etcd")?);
        Ok(())
    }

    /// Starts the API server again after [`ControlPlane::stop_api_server`], at the same address, and waits until it is
    /// ready.
    ///
    /// # Errors
    /// If it does not start; the error has the end of its log.
    pub fn start_api_server(&mut self) -> Result<()> {
        let file = |name: &str| self.pki.file(name).into_os_string();
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (bind, advertise, reconciler) = match &self.options.place {
            Some(place) => ("0.0.0.0".to_owned(), place.address, "lease"),
            // A loopback address is refused as an endpoint, so no attempt is made.
            None => (loopback.to_string(), loopback, "none"),
        };
        let mut command = self.command("kube-apiserver")?;
        command
            .arg(format!(
                "--etcd-servers=http://127.0.0.1:{}",
                self.ports.etcd
            ))
            .arg(format!("--bind-address={bind}"))
            .arg(format!("--secure-port={}", self.ports.api))
            .arg(format!("--advertise-address={advertise}"))
            .arg(format!("--endpoint-reconciler-type={reconciler}"))
            .arg(format!("--service-cluster-ip-range={}", Self::SERVICES))
            .args([
                "--allow-privileged=true",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--kubelet-preferred-address-types=InternalIP",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--profiling=false",
            ]);
        for (argument, name) in [
            ("--client-ca-file", "ca.crt"),
            ("--tls-cert-file", "apiserver.crt"),
            ("--tls-private-key-file", "apiserver.key"),
            ("--kubelet-certificate-authority", "ca.crt"),
            ("--kubelet-client-certificate", "kubelet-client.crt"),
            ("--kubelet-client-key", "kubelet-client.key"),
            ("--service-account-key-file", "sa.pub"),
            ("--service-account-signing-key-file", "sa.key"),
        ] {
            command.arg(argument).arg(file(name));
        }
        command.args(&self.options.api_server_arguments);
        let process = Process::start(command, &self.log_file("kube-apiserver"))
            .context("starting kube-apiserver")?;
        self.api_server = Some(process);
        self.wait("kube-apiserver is ready", "kube-apiserver", |cluster| {
            // The default namespace is the last object that a new API server creates.
            cluster.kubectl(&["get", "--raw", "/readyz"])?;
            cluster
                .kubectl(&["get", "namespace", "default", "-o", "name"])
                .map(drop)
        })
    }

    /// Stops the API server. etcd and its contents stay.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub fn stop_api_server(&mut self) -> Result<()> {
        match self.api_server.take() {
            Some(mut process) => process.kill().context("ending kube-apiserver"),
            None => Ok(()),
        }
    }

    fn launch_controllers(&mut self) -> Result<()> {
        let server = self.server();
        let config = |name: &str| {
            let subject = Subject {
                name: &format!("system:kube-{name}"),
                group: None,
                serves: &[],
            };
            self.pki.kubeconfig(name, &subject, &server)
        };
        let (controllers, scheduler) = (config("controller-manager")?, config("scheduler")?);
        let quiet = |name: &str| anyhow::Ok(self.binaries.release(name)?.controller_arguments());
        let mut command = self.command("kube-controller-manager")?;
        command
            .arg("--kubeconfig")
            .arg(controllers)
            .args(quiet("kube-controller-manager")?)
            // With the default (20) the controllers' own service accounts take long.
            .args(["--kube-api-qps=300", "--kube-api-burst=500"])
            .arg("--use-service-account-credentials=true")
            .arg("--flex-volume-plugin-dir")
            .arg(self.path("volumeplugins"));
        for (argument, name) in [
            ("--root-ca-file", "ca.crt"),
            ("--service-account-private-key-file", "sa.key"),
            ("--cluster-signing-cert-file", "ca.crt"),
            ("--cluster-signing-key-file", "ca.key"),
        ] {
            command.arg(argument).arg(self.pki.file(name));
        }
        let log = self.log_file("kube-controller-manager");
        self.controllers =
            Some(Process::start(command, &log).context("starting kube-controller-manager")?);
        let mut command = self.command("kube-scheduler")?;
        let quiet = quiet("kube-scheduler")?;
        command.arg("--kubeconfig").arg(scheduler).args(quiet);
        let log = self.log_file("kube-scheduler");
        self.scheduler = Some(Process::start(command, &log).context("starting kube-scheduler")?);
        self.wait(
            "the default service account is there",
            "kube-controller-manager",
            |cluster| {
                let account = ["-n", "default", "get", "serviceaccount", "default"];
                cluster.kubectl(&account).map(drop)
            },
        )
    }

    /// Returns the release of its API server.
    ///
    /// # Errors
    /// If that does not say.
    pub fn release(&self) -> Result<Release> {
        self.binaries.release("kube-apiserver")
    }

    /// Returns the release of its nodes' container runtime.
    ///
    /// # Errors
    /// If there is none, or it does not answer.
    pub fn runtime(&self) -> Result<Runtime> {
        self.binaries.runtime()
    }

    /// Returns the API server's address, as seen from its own machine.
    #[must_use]
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api)
    }

    /// Returns the API server's address, as seen from nodes.
    #[must_use]
    pub fn server_for_nodes(&self) -> String {
        match &self.options.place {
            Some(place) => format!("https://{}:{}", place.address, self.ports.api),
            None => self.server(),
        }
    }

    /// Returns the path of the administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki.file("admin.kubeconfig")
    }

    /// Returns its directory, which is removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the end of a component's log: `etcd`, `kube-apiserver`...
    #[must_use]
    pub fn log(&self, part: &str) -> String {
        tail(&self.log_file(part))
    }

    /// Returns a command of the program `name`, in the control plane's network.
    pub(super) fn command(&self, name: &str) -> Result<Command> {
        let program = self.binaries.file(name)?;
        Ok(match &self.options.place {
            Some(place) => place.netns.command(program),
            None => Command::new(program),
        })
    }

    /// Waits until `look` succeeds. Gives up if `part` ends or the time limit is over.
    fn wait(&mut self, what: &str, part: &str, look: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        loop {
            let Err(trouble) = look(self) else {
                return Ok(());
            };
            if let Some((name, status)) = self.ended()? {
                bail!("{name} ended ({status}):\n{}", self.log(name));
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "waited {PATIENCE:?} until {what}: {trouble:#}\n{}",
                    self.log(part)
                );
            }
            thread::sleep(PAUSE);
        }
    }

    /// Returns the first component that no longer runs.
    fn ended(&mut self) -> Result<Option<(&'static str, ExitStatus)>> {
        let parts = [
            ("etcd", &mut self.etcd),
            ("kube-apiserver", &mut self.api_server),
            ("kube-controller-manager", &mut self.controllers),
        ];
        for (name, process) in parts {
            if let Some(process) = process
                && let Some(status) = process.ended()?
            {
                return Ok(Some((name, status)));
            }
        }
        Ok(None)
    }

    /// Whether another process took a port between its choice and its use.
    fn port_taken(&self) -> bool {
        ["etcd", "kube-apiserver"]
            .iter()
            .any(|part| self.log(part).contains("address already in use"))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn log_file(&self, part: &str) -> PathBuf {
        self.path(&format!("{part}.log"))
    }
}
