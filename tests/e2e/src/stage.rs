//! The stage of the test: the VPC with a control plane and two machines with two NICs each, and what a person installs
//! on them.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_cluster::{Binaries, ControlPlane, Machine, Options, Place, images};
use ebbtide_vpc::{
    metadata::MetadataDouble,
    plan::{Family, MadeOf, Plan},
    process::Process,
    skip::{Need, skip},
    vpc::Vpc,
};
use serde_json::Value;

use super::{
    addresses::Addresses,
    cloud::{App, Cloud},
    http::{self, Answer},
};

/// The default time limit: this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(300);
/// The port of the servers in pods.
pub(super) const POD_PORT: u16 = 80;
/// The port of the servers in pods on the host network.
pub(super) const HOST_PORT: u16 = 8081;
/// The namespace of the agents.
pub(super) const NAMESPACE: &str = "ebbtide-system";
/// The label selector of the agents.
pub(super) const AGENTS: &str = "app.kubernetes.io/name=ebbtide";
/// The ConfigMap that kubeadm leaves in a cluster, as far as agents read it.
const KUBEADM: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: kubeadm-config, namespace: kube-system}
data: {ClusterConfiguration: 'networking: {serviceSubnet: "@SERVICES@"}'}
"#;
const APPS: &str = include_str!("apps.yaml");

/// The VPC and the cluster in it.
#[derive(Debug)]
pub struct Stage {
    /// The web server outside.
    _outside: Process,
    machines: RefCell<Vec<Machine>>,
    /// The nodes' metadata service.
    _metadata: Option<MetadataDouble>,
    pub(super) cloud: Cloud,
    pub(super) addresses: Addresses,
    pub(super) cluster: ControlPlane,
    pub(super) vpc: Vpc,
}

/// A pod, as the API server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) app: String,
    pub(super) node: String,
    pub(super) address: IpAddr,
    pub(super) restarts: u64,
}

impl Stage {
    /// Starts the VPC and the control plane. Returns `None`, after a [`skip`], if this machine lacks something.
    ///
    /// # Errors
    /// If a component does not start.
    pub fn build(cloud: Cloud, addresses: Addresses) -> Result<Option<Self>> {
        if std::env::var_os("EBBTIDE_OUT").is_some() {
            skip(
                Need::Host,
                "this is a guest, and the cluster's nodes are guests themselves",
            );
            return Ok(None);
        }
        let there = Binaries::find();
        if !there.is_some_and(|binaries| binaries.serve_nodes()) {
            return Ok(None);
        }
        let vpc = Vpc::build(cloud.plan())?;
        let place = Place {
            netns: vpc.node(Plan::CONTROL).clone(),
            address: vpc.nic(Plan::CONTROL, "ens5").primary(Family::V4),
        };
        let options = Options {
            controllers: true,
            place: Some(place),
            ..Options::default()
        };
        let Some(cluster) = ControlPlane::start(options)? else {
            return Ok(None);
        };
        let services = KUBEADM.replace("@SERVICES@", &ControlPlane::SERVICES.to_string());
        cluster.apply(&services)?;
        let outside = Self::serve_outside(&cluster, &vpc)?;
        Ok(Some(Self {
            _outside: outside,
            machines: RefCell::default(),
            _metadata: addresses.serve(cloud, &vpc)?,
            cloud,
            addresses,
            cluster,
            vpc,
        }))
    }

    /// Returns the names of the nodes.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &str> {
        let nodes = self.vpc.plan.nodes.iter();
        let machines = nodes.filter(|node| node.made_of == MadeOf::Machine);
        machines.map(|node| node.name.as_str())
    }

    /// Starts the machines and waits until the API server knows them.
    ///
    /// # Errors
    /// If one does not start.
    pub fn boot(&self) -> Result<()> {
        let images = [self.cluster.busybox_image()?, images::ebbtide()?];
        let mut machines = self.machines.borrow_mut();
        for name in self.nodes() {
            let machine = Machine::boot(&self.cluster, &self.vpc, name, &images)?;
            machines.push(machine);
        }
        let mut machines = machines.iter_mut();
        machines.try_for_each(|machine| machine.wait(&self.cluster))
    }

    /// Switches a node off for good.
    pub(super) fn switch_off(&self, node: &str) {
        let mut machines = self.machines.borrow_mut();
        machines.retain(|machine| machine.name() != node);
    }

    /// Applies the cloud's example, and starts pods and Services on its networks.
    ///
    /// # Errors
    /// If they do not become ready in time.
    pub fn deploy(&self) -> Result<()> {
        self.apply(&self.addresses.example(self.cloud))?;
        // Only now: before that, STATUS tells a runtime that there are no addresses.
        self.until("the nodes are ready", || {
            for node in self.nodes() {
                ensure!(
                    is_ready(&self.cluster.get(&["node", node])?),
                    "{node} is not"
                );
            }
            Ok(())
        })?;
        self.cluster.apply(APPS)?;
        self.cluster.apply(&self.cloud.manifests())?;
        self.until("the pods are ready", || self.all_ready())
    }

    /// Whether the pods of both apps and the shells are ready.
    pub(super) fn all_ready(&self) -> Result<()> {
        let [first, second] = self.cloud.apps().map(|app| app.name);
        let label = format!("app in ({first}, {second}, host)");
        self.are_ready(&label, self.nodes().count() * 3)
    }

    /// Whether exactly this many pods have a label, and all are ready.
    pub(super) fn are_ready(&self, label: &str, wanted: usize) -> Result<()> {
        let pods = self.cluster.get(&["pods", "-l", label])?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        ensure!(pods.len() == wanted, "{} pods, not {wanted}", pods.len());
        for pod in pods {
            let name = &pod["metadata"]["name"];
            ensure!(
                pod["metadata"]["deletionTimestamp"].is_null(),
                "{name} is ending"
            );
            ensure!(is_ready(pod), "{name} is not ready");
        }
        Ok(())
    }

    /// Applies a file, or all files of a directory.
    pub(super) fn apply(&self, file: &Path) -> Result<()> {
        let file = file.display().to_string();
        self.cluster.kubectl(&["apply", "-f", &file]).map(drop)
    }

    /// Waits until `look` succeeds; the error is its last one.
    pub(super) fn until(&self, what: &str, look: impl Fn() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while let Err(trouble) = look() {
            if start.elapsed() > PATIENCE {
                bail!("waited {PATIENCE:?} until {what}: {trouble:#}");
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Returns the pods of an app, ordered by node.
    pub(super) fn pods(&self, app: &str) -> Result<Vec<Pod>> {
        let label = format!("app={app}");
        let list = self.cluster.get(&["pods", "-l", &label])?;
        let pods = list["items"].as_array().context("no list of pods")?;
        let alive = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let mut pods: Vec<Pod> = alive.map(pod).collect::<Result<_>>()?;
        pods.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(pods)
    }

    /// Returns the pods of both apps on all nodes.
    pub(super) fn web(&self) -> Result<Vec<Pod>> {
        let [first, second] = self.cloud.apps();
        Ok([self.pods(first.name)?, self.pods(second.name)?].concat())
    }

    /// Returns the app that a pod belongs to.
    ///
    /// # Errors
    /// If it belongs to neither.
    pub(super) fn app(&self, pod: &Pod) -> Result<&'static App> {
        let mut apps = self.cloud.apps().iter();
        let app = apps.find(|app| app.name == pod.app);
        app.with_context(|| format!("{} is of no app", pod.name))
    }

    /// Returns the NIC and the pool of a pod's address.
    pub(super) fn place(&self, pod: &Pod) -> Result<(&'static str, String)> {
        let nic = self.app(pod)?.nic;
        Ok((nic, self.pool(&pod.node, nic)))
    }

    /// Returns the name of a NIC's pool.
    pub(super) fn pool(&self, node: &str, nic: &str) -> String {
        self.addresses.pool(self.cloud, node, nic)
    }

    /// Returns the pod of an app on a node.
    pub(super) fn pod(&self, app: &str, node: &str) -> Result<Pod> {
        let pods = self.pods(app)?;
        let mut on_node = pods.into_iter().filter(|pod| pod.node == node);
        on_node
            .next()
            .with_context(|| format!("there is no pod of {app} on {node}"))
    }

    /// Returns a pod's network status. The agent writes it after the pod has started, so this waits.
    pub(super) fn network_status(&self, pod: &Pod) -> Result<Value> {
        let written = |object: &Value| {
            let status = &object["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"];
            status.as_str().map(str::to_owned)
        };
        let arguments = ["pod", &pod.name];
        let object = self
            .cluster
            .wait_until(&arguments, |object| written(object).is_some())?;
        let status = written(&object).context("no network-status")?;
        Ok(serde_json::from_str(&status)?)
    }

    /// Returns the output of a script of `apps.yaml` in a pod. The control plane requests it by the VPC: an exec takes
    /// seconds in user-mode Linux.
    pub(super) fn script(&self, pod: &Pod, page: &str) -> Result<String> {
        let port = if pod.app == "host" {
            HOST_PORT
        } else {
            POD_PORT
        };
        let server = SocketAddr::new(pod.address, port);
        let from = self.vpc.node(Plan::CONTROL);
        let (_, text) = http::get(from, None, server, page, PATIENCE)
            .with_context(|| format!("the pod {} on {}", pod.name, pod.node))?;
        Ok(text)
    }

    /// Returns the answers that a pod gets from each of the servers.
    pub(super) fn ask(&self, pod: &Pod, servers: &[SocketAddr]) -> Result<Vec<Answer>> {
        let list: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let text = self.script(pod, &format!("ask?{}", list.join(",")))?;
        let answers: Vec<Answer> = text
            .lines()
            .map(|line| line.parse().with_context(|| format!("{} asked", pod.name)))
            .collect::<Result<_>>()?;
        ensure!(
            answers.len() == servers.len(),
            "{} got {} answers to {} questions",
            pod.name,
            answers.len(),
            servers.len()
        );
        Ok(answers)
    }

    /// Starts a web server outside the VPC, like those in the pods.
    fn serve_outside(cluster: &ControlPlane, vpc: &Vpc) -> Result<Process> {
        let directory = cluster.directory().join("outside");
        let (script, log) = (directory.join("cgi-bin/who"), directory.join("log"));
        write_program(
            &script,
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s %s outside\\n' \
             \"$REMOTE_ADDR\" \"$REMOTE_PORT\"\n",
        )?;
        let mut httpd = vpc.world.command("busybox");
        httpd
            .args(["httpd", "-f", "-h"])
            .arg(&directory)
            .args(["-p", &Self::outside().to_string()]);
        Process::start(httpd, &log).context("starting busybox httpd")
    }

    /// Returns the address of the web server outside.
    pub(super) fn outside() -> SocketAddr {
        SocketAddr::new(Plan::web_server(Family::V4), 80)
    }

    /// Returns the last lines of the logs of agents and nodes, for a person who looks for a cause.
    #[must_use]
    pub fn logs(&self) -> String {
        let of_agents = [
            "-n",
            NAMESPACE,
            "logs",
            "-l",
            "app.kubernetes.io/name in (ebbtide, ebbtide-controller)",
        ];
        let agents = [&of_agents[..], &["--tail=40", "--prefix"]].concat();
        let pods = self.cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]);
        let agents = self.cluster.kubectl(&agents);
        let machines: String = self.machines.borrow().iter().map(Machine::logs).collect();
        let shown = |text: Result<String>| text.unwrap_or_else(|error| format!("{error:#}"));
        format!("{}\n{}\n{machines}", shown(pods), shown(agents))
    }

    /// Returns the command by which a person uses the cluster from another terminal.
    ///
    /// # Errors
    /// If there is no kubectl.
    pub fn kubectl_command(&self) -> Result<String> {
        self.cluster.kubectl_command()
    }
}

/// Whether a node or pod has the condition Ready.
pub(super) fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn pod(value: &Value) -> Result<Pod> {
    let text = |pointer: &str| {
        let text = value.pointer(pointer).and_then(Value::as_str);
        text.with_context(|| format!("a pod without {pointer}"))
    };
    Ok(Pod {
        name: text("/metadata/name")?.to_owned(),
        app: text("/metadata/labels/app")?.to_owned(),
        node: text("/spec/nodeName")?.to_owned(),
        address: text("/status/podIP")?.parse()?,
        restarts: value["status"]["containerStatuses"][0]["restartCount"]
            .as_u64()
            .unwrap_or_default(),
    })
}

fn write_program(path: &PathBuf, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::write(path, text))
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", path.display()))
}
