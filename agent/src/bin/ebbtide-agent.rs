//! `ebbtide-agent`, the daemon of a node.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use ebbtide_agent::{
    agent::{Agent, Directories, formats},
    doctor, heap,
    host_root::HostRoot,
    install, listener,
    log::{self, LogFormat},
    metrics::{self, Leading, Metrics},
    probe, reconcile,
    server::Server,
    terminal::error_chain,
    traces::Traces,
    uninstall::{self, Outcome},
};
use ebbtide_ipam::catalog::{self, Catalog};
use ebbtide_kernel::netlink::sysctl;
use ebbtide_kube as kube;
use ebbtide_types::{
    NetworkRef, private,
    settings::{ListenAddress, Settings},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{error, info, warn};

/// Ebbtide's node agent: connects pods to the node's own NICs, and routes replies by the interface of the request.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the CNI plugin on this node until SIGTERM; running pods keep their network.
    Run(Box<Run>),
    /// Write the objects that belong to no node: status of pools, NetworkAttachmentDefinitions, ConfigMaps of leases. One
    /// of a cluster's controllers is elected leader. Needs an API server, and nothing of the host.
    Controller(Controller),
    /// Ask the cloud for more addresses where pods wait, and give back what nobody needs: one of a cluster's such controllers
    /// is elected. Needs an API server, and rights in the cloud that no node has.
    CloudController(Box<CloudController>),
    /// Remove everything of Ebbtide's from this host: configuration and plugin, programs, rules, routes, links, settings,
    /// socket. Exits with 3, and removes nothing, while pods are left; with 4 while the agent runs; with 1 if something
    /// could not be removed. It can be repeated at any time.
    Uninstall(Uninstall),
    /// Remove from the API server what controller and agents wrote, once the nodes are uninstalled: the pools' finalizer,
    /// NetworkAttachmentDefinitions that call Ebbtide, SpiderEndpoints, ConfigMaps of leases, Leases. What people declared
    /// stays. Exits with 3 while pods have addresses of Ebbtide's, with 4 while a controller is at work, with 5 while
    /// nodes are not uninstalled, with 1 if something could not be removed.
    UninstallCluster(UninstallCluster),
    /// Write the CustomResourceDefinitions into a directory, one file each.
    Crds {
        /// The directory; made if it does not exist. Other files in it stay.
        dir: PathBuf,
    },
    /// Ask servers who they see, or be one: `kubectl ebbtide connectivity` runs it in pods of its own.
    #[command(subcommand)]
    Probe(Probe),
}

#[derive(Subcommand)]
enum Probe {
    /// Answer by TCP and UDP whom it sees.
    Serve(probe::ServeOptions),
    /// Ask what standard input says (JSON), and print what was answered.
    Ask,
}

#[derive(Args)]
struct Controller {
    /// This controller's name in the leader election: the name of its pod.
    #[arg(long, env = "POD_NAME", value_name = "NAME", value_parser = own_name)]
    name: String,
    /// Kubeconfig file for the API server; in a pod the kubelet provides the access.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where metrics and probes are served: ADDRESS:PORT, or `off`.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:19465")]
    metrics_address: ListenAddress,
    /// The format of the log on standard error. RUST_LOG filters it.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Args)]
struct CloudController {
    #[command(flatten)]
    controller: Controller,
    #[command(flatten)]
    options: ebbtide_assign::Options,
}

#[derive(Args)]
struct Uninstall {
    #[command(flatten)]
    options: uninstall::Options,
    /// The format of the report on standard output. What is done is logged on standard error meanwhile.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Args)]
struct UninstallCluster {
    /// Kubeconfig file for the API server; in a pod the kubelet provides the access.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The agents' namespace [default: that of the pod or of the kubeconfig].
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only look whether pods have addresses of Ebbtide's.
    #[arg(long)]
    check: bool,
    /// Print what would be removed, and remove nothing.
    #[arg(long, conflicts_with = "check")]
    dry_run: bool,
    /// How many seconds to wait for the end of pods, controller and nodes' uninstallation.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
    /// The DaemonSet that uninstalls the nodes, which must be ready on all of them before.
    #[arg(long, value_name = "NAME")]
    daemonset: Option<String>,
    /// The format of the report on standard output. What is done is logged on standard error meanwhile.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Args)]
struct Run {
    /// This node's name, as in `nodeName` of pools.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = node_name)]
    node_name: String,
    /// The directory of SpiderIPPool and SpiderMultusConfig manifests (*.yaml), which is watched.
    /// [default: /etc/ebbtide/manifests]
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Read pools and networks from the API server instead. This is the default in a pod, unless --manifests is given.
    #[arg(long, conflicts_with = "manifests")]
    kube: bool,
    /// Kubeconfig file for the API server; in a pod the kubelet provides the access. Implies --kube.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// The network of pods that name none: a SpiderMultusConfig, NAMESPACE/NAME or NAME. Wins over
    /// `defaultNetwork` of the configuration file.
    #[arg(long, env = "DEFAULT_NETWORK", value_name = "NETWORK")]
    default_network: Option<NetworkRef>,
    /// The directory of persistent data, such as the assigned addresses.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ebbtide")]
    state_dir: PathBuf,
    /// The directory of the socket, cni.sock.
    #[arg(long, value_name = "DIR", default_value = "/run/ebbtide")]
    run_dir: PathBuf,
    /// The directory of pinned eBPF maps, on a bpf file system.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/ebbtide")]
    bpf_dir: PathBuf,
    /// The directory of writable sysctls: in a container, a mount of the host's /proc/sys.
    #[arg(long, value_name = "DIR", default_value = sysctl::ROOT)]
    sysctl_dir: PathBuf,
    /// The mount of the host's root directory in the agent's container. The host's programs (delegated IPAM plugins,
    /// iptables-save, nft) run with it as their root [default: the agent's own root].
    #[arg(long, value_name = "DIR")]
    host_root: Option<PathBuf>,
    #[command(flatten)]
    install: install::options::Options,
    /// The configuration file (YAML) [default: built-in settings].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where metrics and probes are served: ADDRESS:PORT, or `off`. Wins over `metrics.address` of the configuration
    /// file.
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<ListenAddress>,
    /// The format of the log on standard error. RUST_LOG filters it.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// Parses a controller's name; two with an empty one would both be elected.
fn own_name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: give a name that no other controller has".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// Parses a node's name; no pool would name an empty one.
fn node_name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: give the name that `nodeName` of pools has for this node".to_owned()),
        name => Ok(name.to_owned()),
    }
}

fn main() -> ExitCode {
    heap::use_one_arena();
    let result = match Cli::parse().command {
        Command::Run(options) => {
            log::start(options.log_format);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build();
            runtime
                .context("start the tokio runtime")
                .and_then(|runtime| runtime.block_on(run(*options)))
        }
        Command::Controller(options) => {
            log::start(options.log_format);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            runtime
                .context("start the tokio runtime")
                .and_then(|runtime| runtime.block_on(control(options)))
        }
        Command::CloudController(options) => {
            log::start(options.controller.log_format);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            runtime
                .context("start the tokio runtime")
                .and_then(|runtime| runtime.block_on(control_cloud(*options)))
        }
        Command::Uninstall(options) => {
            log::start(LogFormat::Text);
            match uninstall(&options) {
                Ok(outcome) => return ExitCode::from(outcome.exit_code()),
                Err(e) => {
                    error!("{}", error_chain(&e));
                    let known = e.downcast_ref::<uninstall::Error>();
                    return ExitCode::from(known.map_or(1, uninstall::Error::exit_code));
                }
            }
        }
        Command::UninstallCluster(options) => {
            log::start(LogFormat::Text);
            match uninstall_cluster(options) {
                Ok(outcome) => return ExitCode::from(outcome.exit_code()),
                Err(e) => Err(e),
            }
        }
        Command::Crds { dir } => {
            log::start(LogFormat::Text);
            write_crds(&dir)
        }
        Command::Probe(command) => {
            log::start(LogFormat::Text);
            match command {
                Probe::Serve(options) => probe::run_serve(&options),
                Probe::Ask => probe::run_ask(),
            }
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            error!("{}", error_chain(&e));
            ExitCode::FAILURE
        }
    }
}

async fn control(options: Controller) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let metrics = Metrics::default();
    let kubeconfig = options.kubeconfig.as_deref();
    let client = kube::connect_counting(kubeconfig, &metrics.api_calls).await?;
    let leading = Leading::default();
    metrics::serve_controller(&metrics, &leading, options.metrics_address);
    let work = move |cluster| leading.clone().during(kube::controller::work(cluster));
    info!(name = options.name, "standing for election");
    let cluster = kube::Cluster::start_controller(client, options.name);
    tokio::select! {
        () = kube::leader::lead(cluster, work) => bail!("the watch of the Lease ended"),
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listen for SIGINT"),
    }
}

async fn control_cloud(options: CloudController) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let controller = options.controller;
    let client = kube::connect(controller.kubeconfig.as_deref()).await?;
    tokio::select! {
        ended = ebbtide_assign::run(client, controller.name, options.options) => Ok(ended?),
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listen for SIGINT"),
    }
}

fn uninstall(Uninstall { options, output }: &Uninstall) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    runtime.block_on(async {
        // Registered before anything slow. It may be ended at any time.
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let report = tokio::select! {
            report = uninstall::run(options) => report.context("remove Ebbtide from this node")?,
            _ = terminate.recv() => bail!("SIGTERM: not all may be removed; uninstall again"),
        };
        uninstall::log_end(&report);
        let mut out = std::io::stdout().lock();
        let written = match output {
            Output::Text => report.print(&mut out),
            Output::Json => serde_json::to_writer_pretty(&mut out, &report)
                .map_err(std::io::Error::from)
                .and_then(|()| writeln!(out)),
        };
        written.context("write the report")?;
        drop(out);
        if options.stays() {
            tokio::select! {
                _ = terminate.recv() => {}
                interrupted = tokio::signal::ctrl_c() => interrupted.context("listen for SIGINT")?,
            }
        }
        Ok(report.outcome)
    })
}

fn uninstall_cluster(options: UninstallCluster) -> anyhow::Result<kube::uninstall::Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    let report = runtime.block_on(async {
        let client = kube::connect(options.kubeconfig.as_deref()).await?;
        let wanted = kube::uninstall::Options {
            namespace: options.namespace,
            check: options.check,
            dry_run: options.dry_run,
            wait: std::time::Duration::from_secs(options.wait),
            daemonset: options.daemonset,
        };
        let report = kube::uninstall::run(client, &wanted).await;
        report.context("remove what Ebbtide wrote into the API server")
    })?;
    let mut out = std::io::stdout().lock();
    let written = match options.output {
        Output::Json => serde_json::to_writer_pretty(&mut out, &report)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out)),
        Output::Text if report.dry_run => report
            .removed
            .iter()
            .try_for_each(|what| writeln!(out, "would remove {what}")),
        Output::Text => Ok(()),
    };
    written.context("write the report")?;
    Ok(report.outcome)
}

fn write_crds(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    for (name, text) in kube::crds::files()? {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

type Declared = (Option<Arc<kube::Cluster>>, watch::Receiver<Arc<Catalog>>);

/// Returns the declared objects, followed from now on: from the API server or from files.
async fn declared(options: &Run, metrics: &Metrics) -> anyhow::Result<Declared> {
    let in_pod = options.manifests.is_none() && kube::client::in_cluster();
    if options.kube || options.kubeconfig.is_some() || in_pod {
        let kubeconfig = options.kubeconfig.as_deref();
        let client = kube::connect_counting(kubeconfig, &metrics.api_calls).await?;
        let node = options.node_name.clone();
        let (cluster, catalog) = kube::Cluster::start(client, node, &options.state_dir);
        return Ok((Some(cluster), catalog));
    }
    let dir = options.manifests.clone();
    let dir = dir.unwrap_or_else(|| PathBuf::from("/etc/ebbtide/manifests"));
    let (sender, catalog) = watch::channel(Arc::new(catalog::files::load(&dir)));
    tokio::spawn(catalog::files::watch(dir, sender));
    Ok((None, catalog))
}

/// Sets the host's root. A failure is no reason to end: the agent only lacks what needs the host's programs.
fn use_host_root(path: Option<PathBuf>) {
    match path.map_or_else(|| Ok(HostRoot::default()), HostRoot::open) {
        Ok(root) => HostRoot::set(root),
        Err(e) => {
            warn!("{e}; programs of the host's are looked for in the agent's container instead")
        }
    }
}

async fn run(options: Run) -> anyhow::Result<()> {
    let mut settings = match &options.config {
        Some(path) => Settings::load(path)?,
        None => Settings::default(),
    };
    if let Some(network) = &options.default_network {
        settings.default_network = Some(network.clone());
    }
    let release = nix::sys::utsname::uname().context("ask which kernel this is")?;
    if let Some(reason) = doctor::too_old(&release.release().to_string_lossy()) {
        bail!("{reason}, which is the oldest that the programs run on: use a newer one");
    }
    formats::refuse_newer(&options.state_dir)?;
    for dir in [&options.state_dir, &options.run_dir] {
        private::make_directory(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    sysctl::set_root(options.sysctl_dir.clone());
    use_host_root(options.host_root.clone());
    // Registered before anything slow, so that a SIGTERM during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;

    let metrics = Metrics::default();
    let (cluster, catalog) = declared(&options, &metrics).await?;
    let directories = Directories {
        state: options.state_dir.clone(),
        bpf: options.bpf_dir,
    };
    let address = options.metrics_address.unwrap_or(settings.metrics.address);
    let agent = Agent::open(options.node_name, settings, &directories, catalog)?;
    let traces = Traces::from_environment(&agent.node_name, cluster.is_some());
    let agent = agent.with_metrics(metrics).with_traces(traces);
    let agent = agent.following_cloud(&options.state_dir).await;
    let agent = Arc::new(agent.keeping_pools().with_cluster(cluster.clone()));
    doctor::admit(&agent).await?;
    let running = agent.running_containers().await;
    listener::serve(&agent, address);
    if let Some(cluster) = cluster.clone() {
        let pods = Arc::clone(&agent);
        let interfaces = move || pods.interfaces();
        let changes = agent.pools.subscribe();
        tokio::spawn(kube::publish::run(
            Arc::clone(&cluster),
            changes,
            interfaces,
        ));
        let taking_over =
            kube::takeover::run(Arc::clone(&cluster), agent.pools.clone(), options.state_dir);
        tokio::spawn(taking_over);
        tokio::spawn(kube::sticky::run(cluster, agent.pools.clone()));
    }

    let withdrawn = Arc::clone(&agent);
    tokio::spawn(async move { withdrawn.report_withdrawn().await });
    let repaired = Arc::clone(&agent);
    tokio::spawn(async move { reconcile::told::tell(&repaired).await });
    let sharing = Arc::clone(&agent);
    tokio::spawn(async move { sharing.share_cloud().await });
    let socket = options.run_dir.join("cni.sock");
    let installation = options.install.prepare(&socket)?;
    let server =
        Server::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    if let Some(installation) = installation {
        installation.install(&agent.installation);
        tokio::spawn(installation.follow(agent.installation.clone()));
    }
    agent.metrics.set_ready(true);
    info!(node = %agent.node_name, socket = %socket.display(), "ready");
    if let Err(e) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        error!("tell systemd that the agent is ready: {e}");
    }
    tokio::spawn(reconcile::run(Arc::clone(&agent), running));
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: running pods keep their network"),
            _ = interrupt.recv() => info!("SIGINT: running pods keep their network"),
        }
    };
    server.serve(Arc::clone(&agent), stop).await;
    agent.traces.flush().await;
    if let Some(cluster) = cluster {
        cluster.save_last().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_name() {
        for (text, name) in [
            ("", None),
            (" ", None),
            ("node-1", Some("node-1")),
            (" a ", Some("a")),
        ] {
            assert_eq!(node_name(text).ok().as_deref(), name, "{text:?}");
        }
    }
}
