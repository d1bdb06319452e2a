//! An agent with a metadata service and a cluster: it tells what the cloud gave its node, and gives back what is asked for.
//!
//! This kernel need not have ipvlan: no pod has an interface here.

use std::{path::Path, thread};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::{ControlPlane, Options, Place};
use ebbtide_vpc::{
    agent::Agent,
    metadata::{Cloud, MetadataDouble},
    plan::{Family, Plan},
    process::Process,
    vpc::Vpc,
    workspace,
};
use serde_json::{Value, json};

use crate::setup::{DEPLOY, SHORT};

const NODE: &str = "master";
const NIC: &str = "ens6";
const POOL: &str = "master-ens6-v4";

const NETWORK: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: cloud, namespace: default, annotations: {ebbtide.io/addresses: metadata}}
spec: {cniType: ipvlan, ipvlan: {master: [ens6]}}
";

/// A control plane and an agent on a node whose NICs' addresses the metadata service tells.
struct Site {
    agent: Agent,
    cluster: ControlPlane,
    _controller: Process,
    _double: MetadataDouble,
    vpc: Vpc,
}

impl Site {
    fn start() -> Result<Option<Self>> {
        let vpc = Vpc::build(Plan {
            metadata: Some(Cloud::Aws),
            ..Plan::default()
        })?;
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
        cluster.install_crds(&Path::new(DEPLOY).join("crds"))?;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
        cluster.apply(&node.to_string())?;
        cluster.apply(NETWORK)?;
        let double = MetadataDouble::start(&vpc)?;
        let mut controller = netns.command(workspace::BINARIES.file("ebbtide-agent")?);
        controller
            .args(["controller", "--name", "controller", "--kubeconfig"])
            .arg(cluster.kubeconfig());
        let log = cluster.directory().join("controller.log");
        let controller = Process::start(controller, &log)?;
        let config = "cloud: aws\nmetadataSeconds: 5\n";
        let mut agent = Agent::start_in_cluster(&netns, NODE, &cluster.kubeconfig(), config)?;
        agent.wait_ready()?;
        Ok(Some(Self {
            agent,
            cluster,
            _controller: controller,
            _double: double,
            vpc,
        }))
    }

    /// Waits until the agent's report about the pool looks so, and returns the NIC with it.
    fn told(&self, look: impl Fn(&Value) -> bool) -> Result<Value> {
        let map = ["configmap", "ebbtide-cloud.master"];
        let found = self.cluster.wait_until(&map, |map| {
            nic(map).is_some_and(|nic| pool(&nic).is_some_and(&look))
        });
        let found = found.with_context(|| self.agent.log())?;
        nic(&found).context("no NIC")
    }

    fn ask(&self, text: &str) -> Result<()> {
        let patch = json!({"data": {"asked.json": text}}).to_string();
        let map = ["patch", "configmap", "ebbtide-cloud.master"];
        let patch = ["--type=merge", "-p", patch.as_str()];
        self.cluster.kubectl(&[&map[..], &patch].concat()).map(drop)
    }

    /// Returns how many addresses of the pool are asked back, as the agent itself knows it.
    fn asked_back(&self) -> Result<u64> {
        let pools = self.agent.control_json(&["pools"])?;
        let mut pools = pools.as_array().into_iter().flatten();
        let pool = pools.find(|pool| pool["name"] == POOL).context(POOL)?;
        pool["askedBack"].as_u64().context("no count")
    }
}

/// Returns the NIC in a node's ConfigMap.
fn nic(map: &Value) -> Option<Value> {
    let told: Value = serde_json::from_str(map["data"]["told.json"].as_str()?).ok()?;
    let mut nics = told["nics"].as_array()?.iter();
    nics.find(|nic| nic["link"] == NIC).cloned()
}

fn pool(nic: &Value) -> Option<&Value> {
    let mut pools = nic["pools"].as_array()?.iter();
    pools.find(|pool| pool["name"] == POOL)
}

#[test]
fn what_is_asked_back_is_nobodys_before_it_is_told_and_after_a_restart_without_the_api_server()
-> Result<()> {
    let Some(mut site) = Site::start()? else {
        return Ok(());
    };
    // What the cloud assigned is told, and seen by people.
    let listed = |kind: &str, name: &'static str| {
        let has = move |list: &Value| list.to_string().contains(name);
        site.cluster.wait_until(&[kind], has).map(drop)
    };
    listed("configmaps", "ebbtide-cloud.master")?;
    listed("spiderippools", POOL)?;
    let nic = site.told(|pool| pool["ranges"].as_str().is_some_and(|text| !text.is_empty()))?;
    let id = nic["id"].as_str().context("the NIC's name")?.to_owned();
    let mut assigned = site.vpc.assigned(NODE, NIC).into_iter();
    let mut v4 = assigned.by_ref().filter(|block| block.addr().is_ipv4());
    let (first, second) = v4.next().zip(v4.next()).context("two addresses")?;
    let there = ["spiderippool", POOL];
    let published = site.cluster.wait_until(&there, |pool| {
        pool["metadata"]["annotations"]["ebbtide.io/derived"] == format!("aws {id}")
            && pool["status"]["totalIPCount"].as_u64() > Some(1)
    })?;

    // It stays the agent's own: two of its pools would be a conflict.
    let names = site.agent.control(&["pools"])?;
    ensure!(
        names.matches(POOL).count() == 2 && names.contains(&format!("{POOL} is what the cloud")),
        "{names}"
    );

    // Asked for, one of them is nobody's.
    let back = json!({"version": 1, "back": {&id: {"v4": first.addr()}}}).to_string();
    site.ask(&back)?;
    site.told(|pool| pool["surrendered"] == first.addr().to_string())?;
    ensure!(site.asked_back()? == 1, "{}", site.agent.log());
    let shown = site.agent.control(&["cloud"])?;
    ensure!(
        shown.contains("given back") && shown.contains(&first.addr().to_string()),
        "{shown}"
    );

    // And it stays so: for an agent that starts without an API server, and one that cannot read what it is asked.
    site.agent.kill()?;
    site.cluster.stop_api_server()?;
    site.agent.launch()?;
    site.agent.wait_listening()?;
    ensure!(site.asked_back()? == 1, "{}", site.agent.log());
    site.cluster.start_api_server()?;
    site.ask(r#"{"version": 2}"#)?;
    thread::sleep(SHORT);
    ensure!(site.asked_back()? == 1, "{}", site.agent.log());

    // When nobody asks any more, it rests.
    site.ask(r#"{"version": 1, "back": {}}"#)?;
    site.told(|pool| {
        let rests = pool["resting"].as_str().unwrap_or_default();
        pool["surrendered"].is_null() && rests.contains(&first.addr().to_string())
    })?;
    ensure!(site.asked_back()? == 1, "{}", site.agent.log());

    // What the cloud takes away is gone from what people see.
    let before = published["status"]["totalIPCount"].as_u64();
    site.vpc.unassign(NODE, NIC, second)?;
    site.cluster.wait_until(&there, |pool| {
        pool["status"]["totalIPCount"]
            .as_u64()
            .map(|count| count + 1)
            == before
    })?;
    site.told(|pool| {
        let held = pool["held"].as_str().unwrap_or_default();
        held.contains(&second.addr().to_string())
    })?;
    Ok(())
}
