//! Pods get the addresses that the cloud has assigned to their NIC, as its metadata service tells: all five clouds'
//! dialects, what changes while the agent runs, and what it must not believe.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    agent::Agent,
    lab::Lab,
    manifests,
    metadata::{Cloud, Does, Fault, MetadataDouble, Torn},
    patience::{PATIENCE, eventually},
    ping::ping,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    node_changes::{PORT, checked, serve_the_world},
    renamed::rename,
};

pub(super) const NODE: &str = "master";

/// The most requests of a node to AWS in a second: a read of two NICs takes some twenty, and two begin in a second.
const MOST: usize = 60;

/// A VPC with its metadata service, and agents whose networks take the addresses that it tells.
pub(super) struct Site {
    pub(super) lab: Lab,
    double: MetadataDouble,
}

impl Site {
    /// Builds the VPC and its metadata service, without agents.
    pub(super) fn build(cloud: Cloud) -> Result<Self> {
        let plan = Plan {
            metadata: Some(cloud),
            ..Plan::default()
        };
        let lab = Lab::without_agents(plan)?;
        // No cloud but Alibaba's tells an IPv6 router: it announces itself, and so the kernel has a default route.
        let router = lab
            .vpc
            .nic(NODE, "ens6")
            .subnet(Family::V6)
            .gateway
            .to_string();
        let route = [
            "-6", "route", "add", "default", "via", &router, "dev", "ens6",
        ];
        ip(
            lab.vpc.node(NODE),
            &[&route[..], &["metric", "2000"]].concat(),
        )?;
        let double = MetadataDouble::start(&lab.vpc)?;
        Ok(Self { lab, double })
    }

    fn start(cloud: Cloud) -> Result<Self> {
        let mut site = Self::build(cloud)?;
        site.lab.start_agents()?;
        Ok(site)
    }

    /// As [`Site::start`], and waits until all that the plan assigns and the cloud tells is usable.
    pub(super) fn known(cloud: Cloud) -> Result<Self> {
        Self::build(cloud)?.started(cloud)
    }

    /// Starts the agents, and waits as [`Site::known`] does.
    pub(super) fn started(mut self, cloud: Cloud) -> Result<Self> {
        self.lab.start_agents()?;
        let site = self;
        let tells = |block: &IpNet| match cloud {
            Cloud::Gcp | Cloud::Tencent => matches!(block, IpNet::V4(_)),
            Cloud::Aws | Cloud::Alibaba | Cloud::Azure => true,
        };
        let planned = |nic: &str| -> BTreeSet<IpNet> {
            let all = site.lab.vpc.assigned(NODE, nic).into_iter();
            all.filter(tells).collect()
        };
        for nic in ["ens5", "ens6"] {
            site.becomes("all of the plan is usable", || {
                let usable = site.blocks(nic, "usable")?;
                ensure!(usable == planned(nic), "{usable:?}");
                Ok(())
            })?;
        }
        Ok(site)
    }

    /// Takes all secondary addresses from a NIC.
    fn bare(&self, nic: &str) -> Result<()> {
        let mut assigned = self.lab.vpc.assigned(NODE, nic).into_iter();
        assigned.try_for_each(|block| self.lab.vpc.unassign(NODE, nic, block))
    }

    fn agent(&self) -> Result<&Agent> {
        let mut agents = self.lab.agents();
        agents
            .find(|agent| agent.node() == NODE)
            .context("no agent")
    }

    /// Kills the agent and starts another one.
    fn restart(&mut self) -> Result<()> {
        let agent = self.lab.agent(NODE);
        agent.kill()?;
        agent.launch()?;
        agent.wait_ready()
    }

    pub(super) fn pod(&self, nic: &str, name: &str) -> Result<Pod> {
        self.lab.pod(NODE, nic, name)
    }

    /// Has the service read until `look` is content.
    pub(super) fn becomes<T>(&self, what: &str, look: impl Fn() -> Result<T>) -> Result<T> {
        let again = || {
            self.agent()?.control(&["cloud", "refresh"])?;
            look()
        };
        eventually(what, again).with_context(|| self.lab.logs())
    }

    /// Returns the lines of `ebbtidectl cloud` about a NIC's blocks in a state.
    fn lines(&self, nic: &str, state: &str) -> Result<Vec<Value>> {
        let report = self.agent()?.control_json(&["cloud"])?;
        let nics = report["nics"].as_array().context("no list of NICs")?;
        let of_nic = nics.iter().filter(|line| line["link"] == nic);
        let blocks = of_nic
            .filter_map(|line| line["blocks"].as_array())
            .flatten();
        Ok(blocks
            .filter(|line| line["state"] == state)
            .cloned()
            .collect())
    }

    pub(super) fn blocks(&self, nic: &str, state: &str) -> Result<BTreeSet<IpNet>> {
        let lines = self.lines(nic, state)?;
        let blocks = lines.iter().map(|line| {
            let text = line["block"].as_str().context("no block")?;
            Ok(text.parse()?)
        });
        blocks.collect()
    }

    /// Returns the total of each derived pool's addresses.
    fn derived(&self) -> Result<BTreeMap<String, u64>> {
        let pools = self.agent()?.control_json(&["pools"])?;
        let pools = pools.as_array().context("no list of pools")?;
        let derived = pools.iter().filter(|pool| pool["source"].is_string());
        let of = |pool: &Value| Some((pool["name"].as_str()?.to_owned(), pool["total"].as_u64()?));
        Ok(derived.filter_map(of).collect())
    }

    /// Adds pods until one is refused. Returns them, and why.
    fn fill(&self, nic: &str, round: &str) -> Result<(Vec<Pod>, String)> {
        let mut pods = Vec::new();
        loop {
            match self.pod(nic, &format!("{round}{}", pods.len())) {
                Ok(pod) => pods.push(pod),
                Err(e) => return Ok((pods, format!("{e:#}"))),
            }
            ensure!(pods.len() < 30, "more pods than addresses");
        }
    }

    /// Checks that a pod has addresses of its NIC, is reached from outside, and reaches the world.
    fn is_well(&self, pod: &Pod) -> Result<()> {
        let assigned = self.lab.vpc.assigned(NODE, &pod.nic);
        let _servers = Server::on_any(&pod.netns, PORT)?;
        let outside = self.lab.vpc.edge.netns();
        for address in &pod.addresses {
            let context = || format!("{address} of {} on {}", pod.name, pod.nic);
            ensure!(
                assigned.iter().any(|block| block.contains(address)),
                context()
            );
            ping(outside, None, *address, PATIENCE).with_context(context)?;
            let family = Family::of(*address);
            for protocol in Protocol::BOTH {
                for asking in [
                    outside,
                    self.lab.vpc.node("worker1"),
                    self.lab.vpc.node(NODE),
                ] {
                    let client = Client::new(asking, protocol);
                    client.ask(pod.socket(family, PORT)).with_context(context)?;
                }
                let web = (Plan::web_server(family), PORT).into();
                Client::new(&pod.netns, protocol)
                    .ask(web)
                    .with_context(context)?;
            }
        }
        checked(pod)?;
        self.lab.vpc.assert_no_violations()
    }

    /// Checks that the runtime may add pods.
    fn is_ready(&self) -> Result<()> {
        let plugin = self.agent()?.plugin();
        let config = plugin.config(&manifests::network("ens6")).to_string();
        plugin.call("STATUS", None, &config)?.success().map(drop)
    }
}

pub(super) fn v4(pod: &Pod) -> IpNet {
    pod.address(Family::V4).into()
}

/// Pods that are added at once wait for the first two reads.
fn gives_pods_the_addresses_of_their_nic(cloud: Cloud, families: &[Family]) -> Result<()> {
    let site = Site::start(cloud)?;
    let _world = serve_the_world(&site.lab)?;
    let mut pods = Vec::new();
    for nic in ["ens5", "ens6"] {
        let pod = site.pod(nic, nic)?;
        let of: BTreeSet<Family> = pod.addresses.iter().map(|own| Family::of(*own)).collect();
        ensure!(
            of == families.iter().copied().collect(),
            "{:?}",
            pod.addresses
        );
        site.is_well(&pod)?;
        let lines = site.lines(nic, "usable")?;
        let own = v4(&pod).to_string();
        let line = lines.iter().find(|line| line["block"] == own.as_str());
        let line = line.with_context(|| format!("no line of {own}: {lines:?}"))?;
        ensure!(
            line["pods"][0]
                .as_str()
                .is_some_and(|text| text.contains(nic)),
            "{line}"
        );
        let pools = site.agent()?.control_json(&["pools"])?;
        let name = format!("{NODE}-{nic}-v4");
        let pool = pools
            .as_array()
            .and_then(|all| all.iter().find(|pool| pool["name"] == name.as_str()));
        let pool = pool.with_context(|| format!("{name} is not among {pools}"))?;
        ensure!(pool["total"] == 5 && pool["used"] == 1, "{pool}");
        ensure!(pool["source"].is_string(), "{pool}");
        pods.push(pod);
    }
    let report = site.agent()?.control_json(&["cloud"])?;
    ensure!(
        report["error"].is_null() && report["lastRead"].is_u64(),
        "{report}"
    );
    ensure!(
        report["wanted"] == serde_json::json!(["ens5", "ens6"]),
        "{report}"
    );
    let own = site.lab.vpc.nic(NODE, "ens5").primary(Family::V4);
    for request in site
        .double
        .requests()
        .iter()
        .filter(|request| request.node == NODE)
    {
        ensure!(
            request.cloud == Some(cloud) && request.source.ip() == own,
            "{request:?}"
        );
        ensure!(request.status != Some(429), "{request:?}");
    }
    let busiest = site.double.busiest_second(NODE);
    ensure!(busiest <= MOST, "{busiest} requests in a second");
    pods.into_iter().try_for_each(Pod::delete)
}

#[test]
fn pods_get_the_addresses_of_their_nic_on_aws() -> Result<()> {
    gives_pods_the_addresses_of_their_nic(Cloud::Aws, &Family::BOTH)
}

#[test]
fn pods_get_the_addresses_of_their_nic_on_alibaba_cloud() -> Result<()> {
    gives_pods_the_addresses_of_their_nic(Cloud::Alibaba, &Family::BOTH)
}

#[test]
fn pods_get_the_addresses_of_their_nic_on_azure() -> Result<()> {
    gives_pods_the_addresses_of_their_nic(Cloud::Azure, &Family::BOTH)
}

#[test]
fn pods_get_the_addresses_of_their_nic_on_google_cloud() -> Result<()> {
    gives_pods_the_addresses_of_their_nic(Cloud::Gcp, &[Family::V4])
}

#[test]
fn pods_get_the_addresses_of_their_nic_on_tencent_cloud() -> Result<()> {
    gives_pods_the_addresses_of_their_nic(Cloud::Tencent, &[Family::V4])
}

/// A range that is assigned while the agent runs: the next pod has it, and its ADD waits for that.
fn a_range_arrives(cloud: Cloud, block: &str, command: &str) -> Result<()> {
    let mut site = Site::build(cloud)?;
    site.bare("ens6")?;
    site.lab.start_agents()?;
    let _world = serve_the_world(&site.lab)?;
    let refusal = site
        .pod("ens6", "early")
        .err()
        .context("a pod without an address")?;
    let refusal = format!("{refusal:#}");
    for part in ["no secondary addresses are assigned to NIC", command] {
        ensure!(refusal.contains(part), "{refusal}");
    }
    let block: IpNet = block.parse()?;
    site.lab.vpc.assign(NODE, "ens6", block)?;
    let asked = Instant::now();
    let pod = site.pod("ens6", "late")?;
    ensure!(
        block.contains(&pod.address(Family::V4)),
        "{:?}",
        pod.addresses
    );
    ensure!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    site.is_well(&pod)?;
    let derived = site.derived()?;
    let of_nic = derived.iter().filter(|(name, _)| name.contains("-ens6-"));
    ensure!(
        of_nic.map(|(_, total)| total).sum::<u64>() == 16,
        "{derived:?}"
    );
    // Without anybody who asks for it.
    let further: IpNet = match cloud {
        Cloud::Gcp => "10.99.0.64/28".parse()?,
        _ => "210.22.16.128/28".parse()?,
    };
    thread::sleep(Duration::from_secs(1));
    site.lab.vpc.assign(NODE, "ens6", further)?;
    eventually("it is usable", || {
        ensure!(site.blocks("ens6", "usable")?.contains(&further));
        Ok(())
    })
    .with_context(|| site.lab.logs())?;
    pod.delete()
}

#[test]
fn a_prefix_that_is_assigned_while_the_agent_runs_gives_pods_sixteen_addresses() -> Result<()> {
    a_range_arrives(
        Cloud::Aws,
        "210.22.16.64/28",
        "aws ec2 assign-private-ip-addresses",
    )
}

#[test]
fn an_alias_range_outside_of_the_subnet_gives_pods_addresses_that_work() -> Result<()> {
    a_range_arrives(Cloud::Gcp, "10.99.0.0/28", "gcloud compute instances")
}

#[test]
fn what_the_cloud_takes_away_stays_its_pods_and_is_nobodys_afterwards() -> Result<()> {
    let site = Site::known(Cloud::Aws)?;
    // It goes to the node's other NIC while a pod has it by the first one.
    let moved = site.pod("ens6", "moved")?;
    let address = v4(&moved);
    site.lab.vpc.reassign(NODE, "ens5", address)?;
    site.becomes("held on the one, and waiting on the other", || {
        let held = site.lines("ens6", "held")?;
        let line = held
            .iter()
            .find(|line| line["block"] == address.to_string().as_str());
        let line = line.with_context(|| format!("{held:?}"))?;
        ensure!(
            line["pods"][0]
                .as_str()
                .is_some_and(|pod| pod.contains("moved")),
            "{line}"
        );
        let waiting = site.lines("ens5", "waiting")?;
        let why = waiting.first().and_then(|line| line["why"].as_str());
        ensure!(
            why.is_some_and(|why| why.contains("pods have addresses of it by NIC")),
            "{waiting:?}"
        );
        Ok(())
    })?;
    thread::sleep(Duration::from_secs(6));
    ensure!(
        !site.blocks("ens5", "usable")?.contains(&address),
        "{address} is in use by ens6"
    );
    checked(&moved)?;
    moved.delete()?;
    site.becomes("usable on the other NIC", || {
        ensure!(site.blocks("ens5", "usable")?.contains(&address));
        Ok(())
    })?;

    // It goes from a running pod.
    let kept = site.pod("ens6", "kept")?;
    let address = v4(&kept);
    site.lab.vpc.unassign(NODE, "ens6", address)?;
    site.becomes("held", || {
        ensure!(site.blocks("ens6", "held")?.contains(&address));
        Ok(())
    })?;
    checked(&kept)?;
    ensure!(
        site.derived()?.get("master-ens6-v4") == Some(&3),
        "{:?}",
        site.derived()?
    );
    kept.delete()?;
    let (pods, refusal) = site.fill("ens6", "p")?;
    ensure!(
        pods.iter().all(|pod| v4(pod) != address),
        "{address} was given to a pod"
    );
    ensure!(pods.len() == 3, "{} pods, then {refusal}", pods.len());
    Ok(())
}

#[test]
fn an_agent_that_starts_while_the_service_fails_goes_on_with_what_was_known() -> Result<()> {
    let mut site = Site::known(Cloud::Aws)?;
    let _world = serve_the_world(&site.lab)?;
    let pods = [site.pod("ens5", "a")?, site.pod("ens6", "b")?];
    let pools = site.derived()?;
    for does in [Does::Hang, Does::Status(500), Does::Status(403)] {
        let context = || format!("{does:?}");
        site.double
            .everywhere(|knobs| knobs.faults = vec![Fault::always("", does)]);
        site.restart()?;
        let now = site.derived()?;
        ensure!(now == pools, "{does:?}: {now:?} instead of {pools:?}");
        site.is_ready().with_context(context)?;
        let began = Instant::now();
        let new = site.pod("ens6", "new").with_context(context)?;
        ensure!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
        for pod in pods.iter().chain([&new]) {
            site.is_well(pod).with_context(context)?;
        }
        let report = site.agent()?.control_json(&["cloud", "refresh"])?;
        ensure!(report["error"].is_string(), "{does:?}: {report}");
        new.delete()?;
    }
    pods.into_iter().try_for_each(Pod::delete)
}

#[test]
fn a_ghost_that_is_told_again_after_a_restart_is_not_believed() -> Result<()> {
    let mut site = Site::known(Cloud::Aws)?;
    let ghost: IpNet = site.lab.vpc.nic(NODE, "ens6").subnet(Family::V4).secondary[0].into();
    site.lab.vpc.unassign(NODE, "ens6", ghost)?;
    site.becomes("held", || {
        ensure!(site.blocks("ens6", "held")?.contains(&ghost));
        Ok(())
    })?;
    site.double
        .everywhere(|knobs| knobs.ghost = Duration::from_secs(3600));
    site.restart()?;
    site.becomes("told again", || {
        let waiting = site.lines("ens6", "waiting")?;
        let why = waiting.first().and_then(|line| line["why"].as_str());
        ensure!(
            why.is_some_and(|why| why.starts_with("told again")),
            "{waiting:?}"
        );
        Ok(())
    })?;
    let (pods, refusal) = site.fill("ens6", "p")?;
    ensure!(
        pods.len() == 4 && pods.iter().all(|pod| v4(pod) != ghost),
        "{} pods, then {refusal}",
        pods.len()
    );
    Ok(())
}

#[test]
fn answers_that_are_torn_wrong_or_missing_take_nothing_from_pods() -> Result<()> {
    let site = Site::known(Cloud::Aws)?;
    let pod = site.pod("ens6", "p")?;
    let usable = ["ens5", "ens6"].map(|nic| site.blocks(nic, "usable"));
    let [ens5, ens6] = usable;
    let before = (ens5?, ens6?);
    for (name, fault) in [
        ("no list", Fault::always("macs/", Does::Empty)),
        ("no address", Fault::times("local-ipv4s", Does::Empty, 2)),
        ("no key", Fault::times("local-ipv4s", Does::Status(404), 4)),
        ("no service", Fault::always("", Does::Status(404))),
        ("no JSON", Fault::always("ipv6s", Does::Garbage)),
        ("too much", Fault::always("local-ipv4s", Does::Endless)),
        ("too often", Fault::always("macs/", Does::Status(429))),
        ("no token", Fault::times("", Does::Status(401), 3)),
    ] {
        site.double.forget_requests();
        site.double
            .everywhere(|knobs| knobs.faults = vec![fault.clone()]);
        for _ in 0..2 {
            site.agent()?.control(&["cloud", "refresh"])?;
        }
        let now = (
            site.blocks("ens5", "usable")?,
            site.blocks("ens6", "usable")?,
        );
        ensure!(now == before, "{name}: {now:?}\n{}", site.lab.logs());
        let busiest = site.double.busiest_second(NODE);
        ensure!(busiest <= MOST, "{name}: {busiest} requests in a second");
        site.double.everywhere(|knobs| knobs.faults.clear());
        site.agent()?.control(&["cloud", "refresh"])?;
    }
    site.double.expire_tokens(NODE);
    let report = site.agent()?.control_json(&["cloud", "refresh"])?;
    ensure!(report["error"].is_null(), "{report}");
    // Of two moments: what is new at the second one is believed later, and nothing is lost.
    site.double
        .everywhere(|knobs| knobs.torn = Some(Torn::alternating()));
    let new: IpNet = "210.22.16.64/28".parse()?;
    site.lab.vpc.assign(NODE, "ens6", new)?;
    for _ in 0..3 {
        site.agent()?.control(&["cloud", "refresh"])?;
    }
    let now = (
        site.blocks("ens5", "usable")?,
        site.blocks("ens6", "usable")?,
    );
    ensure!(now.0 == before.0 && before.1.is_subset(&now.1), "{now:?}");
    site.double.everywhere(|knobs| knobs.torn = None);
    checked(&pod)?;
    pod.delete()
}

#[test]
fn a_service_that_asks_for_a_pause_gets_it_whoever_is_in_a_hurry() -> Result<()> {
    let site = Site::known(Cloud::Azure)?;
    site.double.everywhere(|knobs| knobs.azure_rate = 0);
    thread::sleep(Duration::from_secs(1));
    site.double.forget_requests();
    for _ in 0..4 {
        site.agent()?.control(&["cloud", "refresh"])?;
    }
    // It says: in a second.
    let busiest = site.double.busiest_second(NODE);
    ensure!(busiest <= 2, "{busiest} requests in a second");
    let usable = site.blocks("ens6", "usable")?;
    ensure!(usable.len() == 10, "{usable:?}");
    site.pod("ens6", "p")?.delete()
}

/// A declared pool with two of the addresses that the cloud assigned, and a network that takes declared pools.
const DECLARED: &str = "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: declared}
spec:
  default: true
  subnet: 210.22.16.0/24
  ips: [210.22.16.11-210.22.16.12]
  gateway: 210.22.16.1
  nodeName: [master]
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: plain, namespace: default}
spec: {cniType: ipvlan, ipvlan: {master: [ens6], mode: l3}}
";

#[test]
fn declared_pools_win_and_only_networks_that_say_so_take_what_the_cloud_assigned() -> Result<()> {
    let mut site = Site::build(Cloud::Aws)?;
    site.lab.start_agents_with(DECLARED)?;
    let total = |expected: u64| {
        site.becomes("the pool has what is not declared", || {
            let derived = site.derived()?;
            ensure!(
                derived.get("master-ens6-v4") == Some(&expected),
                "{derived:?}"
            );
            Ok(())
        })
    };
    total(3)?;
    let declared: BTreeSet<IpAddr> = ["210.22.16.11".parse()?, "210.22.16.12".parse()?].into();
    let plugin = site.agent()?.plugin();
    let plain = |name: &str| Pod::create(&plugin, NODE, "ens6", "default/plain", name);
    let pods = [plain("a")?, plain("b")?];
    let given: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
    ensure!(given == declared, "{given:?}");
    let refusal = plain("c").err().context("a third pod of two addresses")?;
    ensure!(format!("{refusal:#}").contains("declared"), "{refusal:#}");
    let (others, refusal) = site.fill("ens6", "p")?;
    ensure!(others.len() == 3, "{} pods, then {refusal}", others.len());
    ensure!(
        others
            .iter()
            .all(|pod| !declared.contains(&pod.address(Family::V4)))
    );
    site.lab.vpc.assert_no_violations()
}

/// The same network by the NIC's other name.
const RENAMED: &str = "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata:
  name: ipvlan-enp6s0
  namespace: default
  annotations: {ebbtide.io/addresses: metadata}
spec: {cniType: ipvlan, ipvlan: {master: [enp6s0], mode: l3}}
";

#[test]
fn the_pool_follows_the_nic_to_its_new_name() -> Result<()> {
    let mut site = Site::build(Cloud::Aws)?;
    site.lab.start_agents_with(RENAMED)?;
    let pod = site.pod("ens6", "before")?;
    rename(&site.lab, "ens6", "enp6s0")?;
    eventually("the pool of the new name", || {
        let derived = site.derived()?;
        ensure!(derived.get("master-enp6s0-v4") == Some(&5), "{derived:?}");
        ensure!(!derived.contains_key("master-ens6-v4"), "{derived:?}");
        Ok(())
    })
    .with_context(|| site.lab.logs())?;
    let (pods, refusal) = site.fill("enp6s0", "p")?;
    ensure!(pods.len() == 4, "{} pods, then {refusal}", pods.len());
    ensure!(
        pods.iter()
            .all(|other| other.address(Family::V4) != pod.address(Family::V4))
    );
    site.lab.vpc.assert_no_violations()
}

#[test]
fn without_a_cloud_pods_are_refused_with_the_reason_and_nobody_is_asked() -> Result<()> {
    let mut site = Site::known(Cloud::Aws)?;
    let pod = site.pod("ens6", "before")?;
    for (lines, said) in [
        ("cloud: none\n", "cloud"),
        // This machine's firmware is of no cloud.
        ("", "cloud"),
    ] {
        let agent = site.lab.agent(NODE);
        agent.stop()?;
        agent.configure(lines)?;
        site.double.forget_requests();
        agent.launch()?;
        agent.wait_ready()?;
        let began = Instant::now();
        let refusal = site
            .pod("ens6", "after")
            .err()
            .context("a pod without a cloud")?;
        let refusal = format!("{refusal:#}");
        ensure!(
            refusal.contains("no address of NIC ens6") && refusal.contains(said),
            "{refusal}"
        );
        let report = site.agent()?.control_json(&["cloud", "refresh"])?;
        ensure!(
            report["cloud"].is_null() && report["whyNone"].is_string(),
            "{report}"
        );
        ensure!(
            began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
        let asked = site.double.requests();
        ensure!(
            asked.iter().all(|request| request.node != NODE),
            "{asked:?}"
        );
        checked(&pod)?;
    }
    pod.delete()
}
