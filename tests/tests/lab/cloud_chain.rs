//! From a pod that finds no address to the pod that has one, and back: pods ask the real agent, the real cloud controller sees
//! it by a real API server, and asks moto, which acts as EC2. What moto has assigned a bridge carries into the VPC, which
//! delivers nothing else, and whose metadata service tells it to the agent.
//!
//! Nothing else is played. moto ignores `Ipv4PrefixCount`, so this is about single addresses.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_cluster::{ControlPlane, Options, Place};
use ebbtide_tests::moto::{Eni, Moto};
use ebbtide_vpc::{
    agent::Agent,
    manifests,
    metadata::{Cloud, MetadataDouble},
    patience::{PATIENCE, eventually},
    ping::ping,
    plan::{Family, Plan},
    pod::Pod,
    process::Process,
    snapshot::{Snapshot, ip},
    traffic::{Client, Protocol, Server},
    vpc::Vpc,
    workspace,
};
use ipnet::IpNet;
use serde_json::{Value, json};

/// The directory of the shipped manifests.
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
const NAMESPACE: &str = "ebbtide-system";
const NODE: &str = "master";
const NIC: &str = "ens6";
const MAP: &str = "ebbtide-cloud.master";
const PORT: u16 = 8080;

/// How long all of the chain may take: the controller waits for half a minute after its election, and for two minutes where
/// it does not know what became of a request. Where moto assigns an address again that was taken, the agent does not believe
/// it for five minutes (`RETURN` in agent/cloud/src/ledger.rs).
const LONG: Duration = Duration::from_secs(480);
const PAUSE: Duration = Duration::from_millis(500);

/// All of it.
struct Site {
    agent: Agent,
    _controllers: [Process; 2],
    _watch: Process,
    cluster: ControlPlane,
    double: MetadataDouble,
    vpc: Vpc,
    moto: Moto,
    eni: Eni,
    /// The addresses of the pods that live.
    live: Mutex<BTreeSet<IpAddr>>,
    /// Whoever has it asks moto for others in place of the addresses that EC2 never assigns.
    replaces: Mutex<()>,
}

/// A VPC of which one NIC is moto's, and has nothing assigned.
fn vpc(moto: &Moto) -> Result<(Vpc, Eni)> {
    let mut plan = Plan {
        metadata: Some(Cloud::Aws),
        ..Plan::default()
    };
    let mut nics = plan.nodes.iter_mut().flat_map(|node| &mut node.nics);
    let nic = nics.find(|nic| nic.node == NODE && nic.name == NIC);
    let nic = nic.context("no such NIC")?;
    let eni = moto.instance_like("m5.large", nic)?;
    let bytes = eni.mac.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
    nic.mac = bytes.try_into().ok().context("a MAC has six bytes")?;
    let vpc = Vpc::build(plan)?;
    for block in vpc.assigned(NODE, NIC) {
        vpc.unassign(NODE, NIC, block)?;
    }
    Ok((vpc, eni))
}

/// Makes the node, the networks, the accounts, and the pods whose tokens the agent and the controllers have.
fn objects(cluster: &ControlPlane, vpc: &Vpc, eni: &Eni) -> Result<()> {
    cluster.install_crds(&Path::new(DEPLOY).join("crds"))?;
    for file in ["ebbtide.yaml", "cloud-controller.yaml"] {
        let path = Path::new(DEPLOY).join(file).display().to_string();
        cluster.kubectl(&["apply", "-f", &path])?;
    }
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {"node.kubernetes.io/instance-type": "m5.large"}},
        "spec": {"providerID": format!("aws:///eu-west-1a/{}", eni.instance)},
    });
    cluster.apply(&node.to_string())?;
    cluster.apply(&manifests::without_pools(&vpc.plan))?;
    for name in ["ebbtide", "ebbtide-controller", "ebbtide-cloud-controller"] {
        cluster.apply(&object(NAMESPACE, name, name).to_string())?;
    }
    Ok(())
}

/// Returns a pod as the API server has it.
fn object(namespace: &str, name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": NODE, "serviceAccountName": account,
            "containers": [{"name": "c", "image": "none"}],
        },
    })
}

impl Site {
    fn start() -> Result<Option<Self>> {
        let Some(moto) = Moto::start()? else {
            return Ok(None);
        };
        let (vpc, eni) = vpc(&moto)?;
        let netns = vpc.node(NODE).clone();
        let options = Options {
            api_server_arguments: vec!["--disable-admission-plugins=ServiceAccount".into()],
            place: Some(Place {
                netns: netns.clone(),
                address: vpc.nic(NODE, "ens5").primary(Family::V4),
            }),
            ..Options::default()
        };
        let Some(cluster) = ControlPlane::start(options)? else {
            return Ok(None);
        };
        objects(&cluster, &vpc, &eni)?;
        let double = MetadataDouble::start(&vpc)?;
        double.at(NODE, |knobs| {
            knobs.ids.insert(NIC.into(), eni.id.clone());
        });
        // As a person does at first, by hand.
        moto.assign(&eni, 1)?;
        let endpoint = moto.reached_from(&netns)?;
        let part = |arguments: &[&str], account: &str| -> Result<Process> {
            let config = cluster.kubeconfig_of(NAMESPACE, account, Some(account))?;
            let mut command = netns.command(workspace::BINARIES.file("ebbtide-agent")?);
            command
                .args(arguments)
                .args(["--name", account, "--kubeconfig"])
                .arg(config)
                .env("AWS_ACCESS_KEY_ID", "AKID")
                .env("AWS_SECRET_ACCESS_KEY", "secret");
            let log = cluster.directory().join(format!("{account}.log"));
            Ok(Process::start(command, &log)?)
        };
        let asking = "cloud-controller --region eu-west-1 --warm 1 --slack 0 --idle-seconds 1";
        let asking: Vec<&str> = asking.split(' ').chain(["--endpoint", &endpoint]).collect();
        let controllers = [
            part(&["controller"], "ebbtide-controller")?,
            part(&asking, "ebbtide-cloud-controller")?,
        ];
        let config = cluster.kubeconfig_of(NAMESPACE, "ebbtide", Some("ebbtide"))?;
        let lines = "cloud: aws\nmetadataSeconds: 5\ncooldownSeconds: 5\n";
        let mut agent = Agent::start_in_cluster(&netns, NODE, &config, lines)?;
        agent.wait_ready()?;
        let is_there = |list: &Value| list.to_string().contains(MAP);
        cluster.wait_until(&["-n", NAMESPACE, "configmaps"], is_there)?;
        let watch = watch(&cluster)?;
        Ok(Some(Self {
            agent,
            _controllers: controllers,
            _watch: watch,
            cluster,
            double,
            vpc,
            moto,
            eni,
            live: Mutex::default(),
            replaces: Mutex::default(),
        }))
    }

    fn live(&self) -> BTreeSet<IpAddr> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.clone()
    }

    fn change_live(&self, change: impl FnOnce(&mut BTreeSet<IpAddr>)) {
        change(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns what moto has assigned to the NIC. EC2 never assigns the first four addresses of a subnet, nor the last one;
    /// moto does, and is asked for others.
    fn assigned(&self) -> Result<BTreeSet<IpAddr>> {
        let subnet = self.vpc.nic(NODE, NIC).subnet(Family::V4).primary;
        let (IpAddr::V4(first), IpAddr::V4(last)) = (subnet.network(), subnet.broadcast()) else {
            bail!("{subnet} is not of IPv4");
        };
        // Two that replaced the same address would leave one too many.
        let _replaces = self.replaces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut assigned = BTreeSet::new();
        for text in self.moto.assigned(&self.eni)? {
            let address: Ipv4Addr = text.parse()?;
            if u32::from(address) < u32::from(first) + 4 || address == last {
                self.moto.unassign(&self.eni, &text)?;
                self.moto.assign(&self.eni, 1)?;
            } else {
                assigned.insert(address.into());
            }
        }
        Ok(assigned)
    }

    /// The bridge: carries what EC2 has assigned into the VPC, until the end. Returns what was taken away from the NIC.
    fn bridge(&self, is_over: &AtomicBool) -> Result<BTreeSet<IpAddr>> {
        let mut taken = BTreeSet::new();
        loop {
            // Looked at first: what was taken before the end is seen in the last round.
            let is_last = is_over.load(Ordering::Relaxed);
            let has = self.assigned()?;
            let had: BTreeSet<IpAddr> = self.delivered();
            for address in had.difference(&has) {
                // Before it is looked at who lives: a pod that ends later lived when it was taken.
                taken.insert(*address);
                let live = self.live();
                ensure!(
                    !live.contains(address),
                    "{address} is a live pod's, and was taken away"
                );
                self.vpc.unassign(NODE, NIC, *address)?;
            }
            for address in has.difference(&had) {
                self.vpc.assign(NODE, NIC, *address)?;
            }
            if is_last {
                return Ok(taken);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Returns the addresses that the VPC delivers to the NIC.
    fn delivered(&self) -> BTreeSet<IpAddr> {
        let blocks = self.vpc.assigned(NODE, NIC).into_iter();
        blocks.map(|block: IpNet| block.addr()).collect()
    }

    /// Adds a pod as a runtime does: again and again.
    fn pod(&self, name: &str) -> Result<Pod> {
        let start = Instant::now();
        let network = manifests::network(NIC);
        let object = self.cluster.get(&["pod", name])?;
        let uid = object["metadata"]["uid"].as_str().context("no UID")?;
        let plugin = self.agent.plugin().with_uid(uid);
        loop {
            match Pod::create(&plugin, NODE, NIC, &network, name) {
                Ok(pod) => {
                    self.change_live(|live| live.extend(&pod.addresses));
                    return Ok(pod);
                }
                Err(_) if start.elapsed() < LONG => thread::sleep(PAUSE),
                Err(error) => return Err(error.context(format!("{name}: not within {LONG:?}"))),
            }
        }
    }

    /// Adds pods, all at once.
    fn pods(&self, names: &[&str]) -> Result<Vec<Pod>> {
        for name in names {
            let object = object("default", name, "default");
            self.cluster.apply(&object.to_string())?;
        }
        thread::scope(|scope| {
            let add = |name| scope.spawn(move || self.pod(name));
            let adding: Vec<_> = names.iter().map(|name| add(*name)).collect();
            let added = adding.into_iter().map(|adding| match adding.join() {
                Ok(added) => added,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            added.collect()
        })
    }

    fn delete(&self, pod: Pod) -> Result<()> {
        let (name, addresses) = (pod.name.clone(), pod.addresses.clone());
        self.change_live(|live| live.retain(|address| !addresses.contains(address)));
        pod.delete()?;
        self.cluster
            .kubectl(&["delete", "pod", &name, "--grace-period=0", "--force"])
            .map(drop)
    }

    /// Checks that a pod is reached from outside, and reaches the world.
    fn is_well(&self, pod: &Pod) -> Result<()> {
        let context = || format!("{} with {:?}", pod.name, pod.addresses);
        let address = pod.address(Family::V4);
        ensure!(self.delivered().contains(&address), context());
        let _servers = Server::on_any(&pod.netns, PORT)?;
        for protocol in Protocol::BOTH {
            let client = Client::new(self.vpc.edge.netns(), protocol);
            let asked = client.ask(pod.socket(Family::V4, PORT));
            asked.with_context(context)?;
        }
        let world = Plan::web_server(Family::V4);
        ping(&pod.netns, None, world, PATIENCE).with_context(context)?;
        Ok(())
    }

    /// Waits until EC2 has so many addresses for pods.
    fn until_assigned(&self, count: usize) -> Result<()> {
        let start = Instant::now();
        loop {
            let has = self.assigned()?;
            if has.len() == count {
                return Ok(());
            }
            ensure!(
                start.elapsed() < LONG,
                "{has:?}, and {count} were expected; pods have {:?}",
                self.live()
            );
            thread::sleep(PAUSE);
        }
    }

    /// Returns all that was ever told as surrendered of the NIC, which has no IPv6 addresses for pods.
    fn surrendered(&self) -> Result<BTreeSet<IpAddr>> {
        let text = std::fs::read(self.cluster.directory().join("told.log"))?;
        let mut all = BTreeSet::new();
        for map in serde_json::Deserializer::from_slice(&text).into_iter::<Value>() {
            // The last one may be written at this moment.
            let Ok(map) = map else { break };
            let told = map["data"]["told.json"].as_str().unwrap_or("{}");
            let told: Value = serde_json::from_str(told)?;
            let nics = told["nics"].as_array().into_iter().flatten();
            let nics = nics.filter(|nic| nic["link"] == NIC);
            let pools = nics.filter_map(|nic| nic["pools"].as_array()).flatten();
            for pool in pools.filter_map(|pool| pool["surrendered"].as_str()) {
                all.extend(addresses(pool)?);
            }
        }
        Ok(all)
    }

    /// Checks that an Event on the node has this reason.
    fn has_event(&self, reason: &str) -> Result<()> {
        let field = format!("involvedObject.kind=Node,reason={reason}");
        let events = ["events", "-n", "default", "--field-selector", &field];
        let all = self.cluster.get(&events)?;
        let has = all["items"].as_array().is_some_and(|all| !all.is_empty());
        ensure!(has, "no Event {reason} on the node");
        Ok(())
    }

    /// Removes a rule, which comes back with an Event on the node.
    fn a_rule_is_repaired(&self) -> Result<()> {
        let node = self.vpc.node(NODE);
        ip(node, &["rule", "del", "pref", "1003", "oif", NIC])?;
        eventually("a rule that was removed is back", || {
            let now = Snapshot::of(node)?;
            ensure!(now.mentions(&format!("oif {NIC}")), "{now:#?}");
            self.has_event("Repaired")
        })
    }

    /// Returns the logs, for messages.
    fn logs(&self) -> String {
        let mut logs = self.agent.log();
        for name in ["ebbtide-controller", "ebbtide-cloud-controller"] {
            let path = self.cluster.directory().join(format!("{name}.log"));
            let log = std::fs::read_to_string(path).unwrap_or_default();
            logs += &format!("\n--- {name}\n{log}");
        }
        logs
    }
}

/// Writes all versions of the node's ConfigMap into a file.
fn watch(cluster: &ControlPlane) -> Result<Process> {
    let kubectl = cluster.kubectl_command()?;
    let mut command = Command::new("sh");
    let script = format!("exec {kubectl} -n {NAMESPACE} get configmap {MAP} -o json --watch");
    command.args(["-c", &script]);
    Ok(Process::start(
        command,
        &cluster.directory().join("told.log"),
    )?)
}

/// Returns the addresses of a list of ranges.
fn addresses(text: &str) -> Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for range in text.split(", ").filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (Ipv4Addr, Ipv4Addr) = (first.parse()?, last.parse()?);
        let bits = u32::from(first)..=u32::from(last);
        all.extend(bits.map(|bits| IpAddr::from(Ipv4Addr::from(bits))));
    }
    Ok(all)
}

/// More pods than addresses come, some go, and more come.
fn history(site: &Site) -> Result<()> {
    let mut pods = site.pods(&["a", "b", "c", "d"])?;
    for pod in &pods {
        site.is_well(pod)?;
    }
    ensure!(site.live().len() == 4, "{:?}", site.live());
    site.a_rule_is_repaired()?;
    // One more than pods have is kept.
    site.until_assigned(5)?;

    // Two pods end. Their addresses rest, are asked back, surrendered, and taken away.
    for pod in pods.drain(2..) {
        site.delete(pod)?;
    }
    site.until_assigned(3)?;
    for pod in &pods {
        site.is_well(pod)?;
    }
    pods.extend(site.pods(&["e", "f"])?);
    for pod in &pods {
        site.is_well(pod)?;
    }
    for pod in pods {
        site.delete(pod)?;
    }
    site.until_assigned(1)
}

#[test]
fn pods_get_what_the_controller_asks_ec2_for_and_only_what_was_surrendered_is_taken() -> Result<()>
{
    let Some(mut site) = Site::start()? else {
        return Ok(());
    };
    let is_over = AtomicBool::new(false);
    let (done, taken) = thread::scope(|scope| {
        let site = &site;
        let bridge = scope.spawn(|| site.bridge(&is_over));
        let done = history(site);
        is_over.store(true, Ordering::Relaxed);
        let taken = match bridge.join() {
            Ok(taken) => taken,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        (done, taken)
    });
    let taken = taken.with_context(|| site.logs())?;
    done.with_context(|| site.logs())?;
    // kubectl writes what it sees a moment later.
    eventually("all that was taken was surrendered", || {
        let surrendered = site.surrendered()?;
        ensure!(
            taken.len() >= 4 && taken.is_subset(&surrendered),
            "{taken:?} were taken, and {surrendered:?} surrendered"
        );
        Ok(())
    })
    .with_context(|| site.logs())?;
    ensure!(site.double.count(NODE, "local-ipv4s") > 0);
    for reason in ["Assigned", "AskedBack", "Unassigned"] {
        site.has_event(reason).with_context(|| site.logs())?;
    }
    site.agent.stop()?;
    site.vpc.assert_no_violations()
}
