//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

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

/// How long a part may take to answer: this machine may be busy, or emulated.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// What the directories start with; the process ID follows.
const PREFIX: &str = "ebbtide-cluster-";
/// Free ports are looked for and then used: somebody else may be quicker.
const ATTEMPTS: u32 = 3;

/// What kind of control plane is wanted.
#[derive(Debug, Default)]
pub struct Options {
    /// Also run kube-controller-manager and kube-scheduler. Without them: namespaces are not
    /// emptied when deleted, owner references delete nothing, and pods get no node.
    pub controllers: bool,
    /// Where it serves nodes; without it, on a free port of 127.0.0.1.
    pub place: Option<Place>,
    /// Further arguments of kube-apiserver.
    pub api_server_arguments: Vec<String>,
    /// What serves Services on its nodes.
    pub proxy: ProxyMode,
}

/// A machine for the control plane.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network.
    pub netns: Netns,
    /// The address that nodes and pods reach it at.
    pub address: IpAddr,
}

/// A running control plane. Its processes and files go when it does.
#[derive(Debug)]
pub struct ControlPlane {
    // Ended in this order.
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

    /// Starts it and waits until it answers. `None`, and a [`skip`](ebbtide_vpc::skip), where there are
    /// no binaries.
    ///
    /// # Errors
    /// When a part does not come up: with the end of its log.
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
            // A test's store need not survive a power cut.
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

    /// Starts the API server again after [`ControlPlane::stop_api_server`], at the same address,
    /// and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up: with the end of its log.
    pub fn start_api_server(&mut self) -> Result<()> {
        let file = |name: &str| self.pki.file(name).into_os_string();
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let (bind, advertise, reconciler) = match &self.options.place {
            Some(place) => ("0.0.0.0".to_owned(), place.address, "lease"),
            // A loopback address is refused as an endpoint: do not even try.
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
            // The default namespace is the last thing that a new API server makes.
            cluster.kubectl(&["get", "--raw", "/readyz"])?;
            cluster
                .kubectl(&["get", "namespace", "default", "-o", "name"])
                .map(drop)
        })
    }

    /// Ends the API server; etcd and what is in it stay.
    ///
    /// # Errors
    /// When it cannot be ended.
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
            // The default (20) makes the controllers' own service accounts slow.
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

    /// The release of its API server.
    ///
    /// # Errors
    /// When that does not say.
    pub fn release(&self) -> Result<Release> {
        self.binaries.release("kube-apiserver")
    }

    /// The release of its nodes' container runtime.
    ///
    /// # Errors
    /// When there is none, or it does not say.
    pub fn runtime(&self) -> Result<Runtime> {
        self.binaries.runtime()
    }

    /// Where the API server is, as seen from where it runs.
    #[must_use]
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api)
    }

    /// Where nodes reach the API server.
    #[must_use]
    pub fn server_for_nodes(&self) -> String {
        match &self.options.place {
            Some(place) => format!("https://{}:{}", place.address, self.ports.api),
            None => self.server(),
        }
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki.file("admin.kubeconfig")
    }

    /// Its directory, which goes when it does.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The end of a part's log: `etcd`, `kube-apiserver`, ...
    #[must_use]
    pub fn log(&self, part: &str) -> String {
        tail(&self.log_file(part))
    }

    /// The program `name`, in the control plane's network.
    pub(super) fn command(&self, name: &str) -> Result<Command> {
        let program = self.binaries.file(name)?;
        Ok(match &self.options.place {
            Some(place) => place.netns.command(program),
            None => Command::new(program),
        })
    }

    /// Waits until `look` succeeds; gives up when `part` ends or all patience is gone.
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

    /// The first part that is not running any more.
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

    /// Whether somebody else took a port between the choice and its use.
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
