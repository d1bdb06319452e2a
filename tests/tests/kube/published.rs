//! The pools that agents derived from the cloud, as people see them in the cluster, and what an agent is asked to give back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::{ControlPlane, Controller, Member};
use ebbtide_kube::{
    self as kube, Cluster,
    cloud_map::Wish,
    node_cloud::{NodeCloud, NodeNic, NodePool},
};
use ebbtide_types::Family;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::setup::{NO_REST, SHORT, cluster};

const NETWORK: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: cloud, namespace: default, annotations: {ebbtide.io/addresses: metadata}}
spec: {cniType: ipvlan, ipvlan: {master: [ens6]}}
";

/// A person's own pools: one with the mark of published ones, and one with the name of one.
const OWN: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: mine, annotations: {ebbtide.io/derived: aws eni-6}}
spec: {subnet: 10.5.0.0/24, ips: [10.5.0.5]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: node-a-ens7-v4}
spec: {subnet: 10.6.0.0/24, ips: [10.6.0.5], nodeName: [node-a]}
";

const POOL: &str = "node-a-ens6-v4";

/// The report of a node's agent, with these addresses on ens6.
fn report(node: &str, ranges: &str) -> NodeCloud {
    let pool = |link: &str, ranges: &str, subnet: &str| NodePool {
        name: format!("{node}-{link}-v4"),
        networks: vec!["default/cloud".into()],
        family: Family::V4,
        subnet: subnet.parse().unwrap_or_default(),
        gateway: None,
        ranges: ranges.into(),
        used: String::new(),
        resting: String::new(),
        held: String::new(),
        surrendered: String::new(),
    };
    NodeCloud {
        version: 1,
        node: node.into(),
        cloud: "aws".into(),
        nics: vec![NodeNic {
            id: "eni-6".into(),
            mac: ebbtide_types::Mac([2, 0, 0, 0, 0, 6]),
            link: "ens6".into(),
            waiting: BTreeMap::new(),
            blocks: Vec::new(),
            pools: vec![
                pool("ens6", ranges, "10.0.1.0/24"),
                pool("ens7", "10.0.7.5", "10.0.7.0/24"),
            ],
        }],
    }
}

/// The part of an agent that writes the report.
struct Teller {
    cluster: Arc<Cluster>,
    runtime: Runtime,
    _state: tempfile::TempDir,
}

impl Teller {
    fn start(of: &ControlPlane, node: &str) -> Result<Self> {
        let runtime = Runtime::new()?;
        let state = tempfile::tempdir()?;
        let cluster = runtime.block_on(async {
            let client = kube::connect(Some(&of.kubeconfig())).await?;
            anyhow::Ok(Cluster::start(client, node.to_owned(), state.path()).0)
        })?;
        Ok(Self {
            cluster,
            runtime,
            _state: state,
        })
    }

    /// Writes the report as soon as there is a ConfigMap for it.
    fn tell(&self, report: &NodeCloud) -> Result<()> {
        self.runtime.block_on(async {
            for _ in 0..120 {
                if self.cluster.tell(report).await? {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            anyhow::bail!("no ConfigMap was made for the node")
        })
    }

    fn wish_once(&self, look: impl Fn(&Wish) -> bool) -> Result<()> {
        for _ in 0..120 {
            if look(&self.cluster.wish()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        anyhow::bail!("{:?}", self.cluster.wish())
    }
}

fn ips(pool: &Value) -> &Value {
    &pool["spec"]["ips"]
}

fn patch(cluster: &ControlPlane, object: &[&str], patch: &Value) -> Result<()> {
    let text = patch.to_string();
    let arguments = [&["patch"], object, &["--type=merge", "-p", &text]].concat();
    cluster.kubectl(&arguments).map(drop)
}

fn node(cluster: &ControlPlane, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    cluster.apply(&object.to_string()).map(drop)
}

#[test]
fn what_agents_derived_is_seen_kept_as_it_is_never_read_back_and_goes_with_its_node() -> Result<()>
{
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    node(&cluster, "node-a")?;
    cluster.apply(OWN)?;
    let _controller = Controller::start(&cluster.kubeconfig(), "controller")?;
    let agent = Teller::start(&cluster, "node-a")?;
    std::thread::sleep(SHORT);
    let maps = cluster.get(&["configmaps"])?.to_string();
    ensure!(
        !maps.contains("ebbtide-cloud."),
        "no network wants the metadata: {maps}"
    );
    cluster.apply(NETWORK)?;
    agent.tell(&report("node-a", "10.0.1.5-10.0.1.6"))?;

    let there = ["spiderippool", POOL];
    let is_listed = |list: &Value| list.to_string().contains(POOL);
    cluster.wait_until(&["spiderippools"], is_listed)?;
    let pool = cluster.wait_until(&there, |pool| pool["status"]["totalIPCount"] == 2)?;
    ensure!(ips(&pool) == &json!(["10.0.1.5-10.0.1.6"]), "{pool:#}");
    let metadata = &pool["metadata"];
    ensure!(
        metadata["annotations"]["ebbtide.io/derived"] == "aws eni-6"
            && metadata["labels"]["ebbtide.io/node"] == "node-a"
            && metadata["ownerReferences"][0]["kind"] == "Node"
            && metadata["finalizers"].is_null()
            && pool["spec"]["nodeName"] == json!(["node-a"])
            && pool["spec"]["multusName"] == json!(["default/cloud"]),
        "{pool:#}"
    );

    // Who has an address is told as of other pools.
    let endpoint = json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint",
        "metadata": {"name": "web", "namespace": "default", "labels": {"ebbtide.io/node": "node-a"}},
        "status": {"current": {"uid": "u-1", "node": "node-a", "ips": [
            {"interface": "eth0", "ipv4": "10.0.1.5/24", "ipv4Pool": POOL},
        ]}},
    });
    cluster.apply(&endpoint.to_string())?;
    cluster.wait_until(&there, |pool| pool["status"]["allocatedIPCount"] == 1)?;

    // It follows.
    agent.tell(&report("node-a", "10.0.1.5, 10.0.1.9"))?;
    let follows = |pool: &Value| ips(pool) == &json!(["10.0.1.5", "10.0.1.9"]);
    cluster.wait_until(&there, follows)?;

    // What somebody edits or deletes is put back.
    for edited in [
        json!({"spec": {"ips": ["10.0.1.99"], "excludeIPs": ["10.0.1.5"]}}),
        json!({"metadata": {"annotations": {"ebbtide.io/derived": null}}}),
        json!({"metadata": {"ownerReferences": null, "labels": {"team": "a"}}, "spec": {"disable": true}}),
    ] {
        patch(&cluster, &there, &edited)?;
        cluster
            .wait_until(&there, |pool| {
                follows(pool)
                    && pool["spec"]["excludeIPs"].is_null()
                    && pool["spec"]["disable"] == false
                    && pool["metadata"]["annotations"]["ebbtide.io/derived"] == "aws eni-6"
                    && pool["metadata"]["ownerReferences"][0]["name"] == "node-a"
            })
            .with_context(|| edited.to_string())?;
    }
    cluster.kubectl(&["delete", "spiderippool", POOL])?;
    cluster.wait_until(&["spiderippools"], is_listed)?;

    // People's own pools stay theirs, whatever mark or name they have.
    let own = cluster.get(&["spiderippool", "node-a-ens7-v4"])?;
    ensure!(
        ips(&own) == &json!(["10.6.0.5"]) && own["metadata"]["ownerReferences"].is_null(),
        "{own:#}"
    );
    let of_mine = "involvedObject.name=mine,reason=NoEffect";
    cluster.wait_until(&["events", "-A", "--field-selector", of_mine], |list| {
        list["items"][0]["message"]
            .as_str()
            .is_some_and(|text| text.contains("ebbtide.io/derived"))
    })?;

    // Agents take no addresses from it.
    let state = tempfile::tempdir()?;
    let member = Member::start(&cluster.kubeconfig(), state.path(), "node-a", NO_REST)?;
    member.knows_pool("mine")?;
    let catalog = member
        .catalog_once(|catalog| !catalog.networks().is_empty())
        .map_err(|_| anyhow::anyhow!("no network"))?;
    ensure!(catalog.pool(POOL).is_none(), "{:?}", catalog.pools());
    drop(member);

    // Nothing known is not nothing: a report that cannot be read keeps what is there.
    let map = ["configmap", "ebbtide-cloud.node-a"];
    let newer = json!({"data": {"told.json": r#"{"version": 2}"#}});
    patch(&cluster, &map, &newer)?;
    std::thread::sleep(SHORT);
    let pool = cluster.get(&there)?;
    ensure!(follows(&pool), "{pool:#}");

    // Two nodes that claim one address.
    node(&cluster, "node-b")?;
    agent.tell(&report("node-a", "10.0.1.5"))?;
    let other = Teller::start(&cluster, "node-b")?;
    other.tell(&report("node-b", "10.0.1.4-10.0.1.7"))?;
    cluster.wait_until(
        &["events", "-A", "--field-selector", "reason=AddressTwice"],
        |list| {
            let text = list["items"][0]["message"].as_str().unwrap_or_default();
            text.contains("10.0.1.5")
        },
    )?;

    // The network, the node: what was derived for them goes with them.
    let mut nothing = report("node-b", "");
    nothing.nics.clear();
    other.tell(&nothing)?;
    let names = |list: &Value| {
        let items = list["items"].as_array().into_iter().flatten();
        let names = items.filter_map(|each| each["metadata"]["name"].as_str().map(str::to_owned));
        names.collect::<Vec<_>>()
    };
    cluster.wait_until(&["spiderippools"], |list| {
        !names(list).iter().any(|name| name.starts_with("node-b"))
    })?;
    cluster.kubectl(&["delete", "node", "node-a"])?;
    cluster.wait_until(&["spiderippools"], |list| {
        names(list) == ["mine", "node-a-ens7-v4"]
    })?;
    Ok(())
}

#[test]
fn an_agent_hears_what_it_is_asked_to_give_back() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let agent = Teller::start(&cluster, "node-a")?;
    node(&cluster, "node-a")?;
    cluster.apply(NETWORK)?;
    let _controller = Controller::start(&cluster.kubeconfig(), "controller")?;
    agent.tell(&report("node-a", "10.0.1.5"))?;
    agent.wish_once(|wish| *wish == Wish::Back(BTreeMap::new()))?;
    let map = ["configmap", "ebbtide-cloud.node-a"];
    let ask = |text: &str| patch(&cluster, &map, &json!({"data": {"asked.json": text}}));
    ask(r#"{"version": 1, "back": {"eni-6": {"v4": "10.0.1.5"}}}"#)?;
    agent.wish_once(|wish| {
        let Wish::Back(back) = wish else { return false };
        back.get("eni-6")
            .is_some_and(|sets| sets[0].to_string() == "10.0.1.5")
    })?;
    // Its own report does not touch the wish.
    agent.tell(&report("node-a", "10.0.1.6"))?;
    let there = cluster.get(&map)?;
    ensure!(
        there["data"]["asked.json"]
            .as_str()
            .is_some_and(|text| text.contains("10.0.1.5"))
            && there["data"]["told.json"]
                .as_str()
                .is_some_and(|text| text.contains("10.0.1.6")),
        "{there:#}"
    );
    ask(r#"{"version": 7}"#)?;
    agent.wish_once(|wish| matches!(wish, Wish::Unknown(_)))?;
    cluster.kubectl(&["delete", "configmap", "ebbtide-cloud.node-a"])?;
    agent.wish_once(|wish| *wish == Wish::Back(BTreeMap::new()))?;
    Ok(())
}
