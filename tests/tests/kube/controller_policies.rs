//! What the account policies refuse and allow for the controller.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    account_objects::{ENDPOINTS, MAPS, map, of_others, with},
    accounts::{NAMESPACE, site, until_refused, without_policies},
    attempt::{Act, Holder, attempt},
};

const POOLS: &str = "/apis/spiderpool.spidernet.io/v2beta1/spiderippools";
const NETWORKS: &str = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Networks and pools that the controller works on, and a foreign NetworkAttachmentDefinition.
const DECLARED: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: a, namespace: default}
spec: {cniType: ipvlan, ipvlan: {master: [ens5]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: shared, labels: {team: a}, finalizers: [example.com/mine]}
spec: {subnet: 10.9.0.0/24, ips: [10.9.0.1-10.9.0.4]}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: foreign
  namespace: default
  ownerReferences: [{apiVersion: v1, kind: Pod, name: x, uid: x, controller: true}]
spec: {config: '{}'}
";

fn definition(name: &str, kind: &str, uid: &Value) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default", "ownerReferences": [{
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": kind, "name": "a", "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        }]},
        "spec": {"config": "{}"},
    })
}

/// A pool as the controller publishes it for node-a.
fn published(name: &str) -> Value {
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
        "metadata": {
            "name": name, "labels": {"ebbtide.io/node": "node-a"}, "annotations": {"ebbtide.io/derived": "aws eni-1"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "x"}],
        },
        "spec": {"subnet": "10.7.0.0/24", "ips": ["10.7.0.1"], "nodeName": ["node-a"]},
    })
}

fn completed(pool: &str) -> Value {
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
        "metadata": {"name": pool, "finalizers": ["spiderpool.spidernet.io"]}, "spec": {"ipVersion": 4},
    })
}

#[test]
fn the_controllers_token_makes_no_service_and_writes_no_more_of_what_is_there_than_it_has_to()
-> Result<()> {
    let Some((cluster, can)) = site()? else {
        return Ok(());
    };
    if !can {
        return without_policies(&cluster);
    }
    of_others(&cluster)?;
    cluster.apply(DECLARED)?;
    let network = cluster.get(&["spidermultusconfig", "a"])?["metadata"]["uid"].clone();
    let config = cluster.kubeconfig_of(NAMESPACE, "ebbtide-controller", Some("controller"))?;
    let controller = Holder::of(&config)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"generateName": "x-"},
        "spec": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 443}]},
    });
    let label = json!({"ebbtide.io/leases": "true"});
    let shared = cluster.get(&["-n", NAMESPACE, "configmap", "ebbtide-leases.shared"])?;
    let shared = with(&shared, "/metadata/resourceVersion", json!(""));
    let mut reclaimed = shared.clone();
    if let Some(data) = reclaimed["data"].as_object_mut() {
        data.remove("node-b");
    }
    let leases = format!("{MAPS}/ebbtide-leases.shared");
    let pool = |what, patch: Value| attempt(what, format!("{POOLS}/shared"), Act::Patch(patch));
    let settings = cluster.get(&["-n", NAMESPACE, "configmap", "ebbtide"])?;
    let settings = with(&settings, "/metadata/resourceVersion", json!(""));
    let web_b = format!("{ENDPOINTS}/web-b");
    let cloud = cluster.get(&["-n", NAMESPACE, "configmap", "ebbtide-cloud.node-a"])?;
    let cloud = with(&cloud, "/metadata/resourceVersion", json!(""));
    let node = json!([{"apiVersion": "v1", "kind": "Node", "name": "new", "uid": "x"}]);
    let of_node = map(
        "ebbtide-cloud.new",
        json!({"ebbtide.io/node-cloud": "true"}),
        json!({}),
    );
    let of_node = with(&of_node, "/metadata/ownerReferences", node);
    let mine = format!("{POOLS}/node-a-ens6-v4");
    let attacks = [
        attempt("a Service", SERVICES, Act::Create(service.clone())),
        attempt(
            "a definition of nobody's",
            NETWORKS,
            Act::Create(with(
                &definition("x", "", &network),
                "/metadata/ownerReferences",
                json!([]),
            )),
        ),
        attempt(
            "a definition of something else's",
            NETWORKS,
            Act::Create(definition("x", "SpiderIPPool", &network)),
        ),
        attempt(
            "another's definition",
            format!("{NETWORKS}/foreign"),
            Act::Patch(json!({"spec": {"config": "{1}"}})),
        ),
        attempt(
            "another's definition taken over",
            format!("{NETWORKS}/foreign"),
            Act::Patch(definition("foreign", "SpiderMultusConfig", &network)),
        ),
        attempt(
            "a pool that is not there",
            format!("{POOLS}/new"),
            Act::Apply(with(
                &completed("new"),
                "/spec",
                json!({"subnet": "10.8.0.0/24", "ips": ["10.8.0.1"]}),
            )),
        ),
        attempt(
            "a published pool without its node as owner",
            POOLS,
            Act::Create(with(
                &published("node-a-ens6-v4"),
                "/metadata/ownerReferences",
                json!([]),
            )),
        ),
        attempt(
            "a published pool without the mark",
            POOLS,
            Act::Create(with(
                &published("node-a-ens6-v4"),
                "/metadata/annotations",
                json!({}),
            )),
        ),
        attempt(
            "a published pool of another node's label",
            POOLS,
            Act::Create(with(
                &published("node-a-ens6-v4"),
                "/metadata/labels",
                json!({"ebbtide.io/node": "node-b"}),
            )),
        ),
        attempt(
            "a published pool for all nodes",
            POOLS,
            Act::Create(with(
                &published("node-a-ens6-v4"),
                "/spec",
                json!({"subnet": "10.7.0.0/24", "ips": ["10.7.0.1"]}),
            )),
        ),
        pool("a declared pool made a published one", {
            let published = published("shared");
            json!({"metadata": published["metadata"], "spec": {"nodeName": ["node-a"]}})
        }),
        attempt(
            "a declared pool deleted",
            format!("{POOLS}/shared"),
            Act::Delete,
        ),
        attempt(
            "what an agent told",
            format!("{MAPS}/ebbtide-cloud.node-a"),
            Act::Replace(with(&cloud, "/data/told.json", json!("{1}"))),
        ),
        attempt(
            "what an agent is asked for",
            format!("{MAPS}/ebbtide-cloud.node-a"),
            Act::Replace(with(&cloud, "/data/asked.json", json!("{1}"))),
        ),
        attempt(
            "a node's map with contents",
            MAPS,
            Act::Create(with(&of_node, "/data", json!({"asked.json": "{}"}))),
        ),
        attempt(
            "a node's map that nothing takes along",
            MAPS,
            Act::Create(with(&of_node, "/metadata/ownerReferences", json!([]))),
        ),
        pool(
            "a pool's addresses",
            json!({"spec": {"ips": ["10.9.0.1-10.9.0.9"]}}),
        ),
        pool("a pool's gateway", json!({"spec": {"gateway": "10.9.0.9"}})),
        pool(
            "a pool's label",
            json!({"metadata": {"labels": {"team": "b"}}}),
        ),
        pool(
            "a finalizer of others removed",
            json!({"metadata": {"finalizers": []}}),
        ),
        pool(
            "a finalizer of others",
            json!({"metadata": {"finalizers": ["example.com/mine", "x/y"]}}),
        ),
        attempt(
            "who has an address",
            &web_b,
            Act::Patch(json!({"status": {"current": {"ips": []}}})),
        ),
        attempt(
            "a finalizer of an endpoint",
            &web_b,
            Act::Patch(json!({"metadata": {"finalizers": ["x/y"]}})),
        ),
        attempt(
            "a ConfigMap",
            MAPS,
            Act::Create(map("x", label.clone(), json!({}))),
        ),
        attempt(
            "one without the label",
            MAPS,
            Act::Create(map("ebbtide-leases.y", json!({}), json!({}))),
        ),
        attempt(
            "a lease from the beginning",
            MAPS,
            Act::Create(map(
                "ebbtide-leases.y",
                label.clone(),
                json!({"node-a": "10.9.0.3"}),
            )),
        ),
        attempt(
            "a lease given",
            &leases,
            Act::Replace(with(&shared, "/data/node-c", json!("10.9.0.9"))),
        ),
        attempt(
            "a lease changed",
            &leases,
            Act::Replace(with(&shared, "/data/node-b", json!("10.9.0.9"))),
        ),
        attempt(
            "leases for ever",
            &leases,
            Act::Replace(with(&shared, "/immutable", json!(true))),
        ),
        attempt(
            "the agents' configuration",
            format!("{MAPS}/ebbtide"),
            Act::Replace(with(
                &settings,
                "/data/config.yaml",
                json!("defaultNetwork: x"),
            )),
        ),
    ];
    for what in [
        "a Service",
        "a definition of nobody's",
        "a pool's label",
        "who has an address",
        "leases for ever",
    ] {
        let probe = attacks.iter().find(|attack| attack.what == what);
        until_refused(&controller, probe.unwrap_or(&attacks[0]));
    }
    let work = [
        attempt(
            "a look for the Services' networks",
            SERVICES,
            Act::DryRun(service),
        ),
        attempt(
            "a definition",
            format!("{NETWORKS}/a"),
            Act::Apply(definition("a", "SpiderMultusConfig", &network)),
        ),
        attempt(
            "a definition changed",
            format!("{NETWORKS}/a"),
            Act::Apply(with(
                &definition("a", "SpiderMultusConfig", &network),
                "/spec/config",
                json!("{2}"),
            )),
        ),
        attempt(
            "a pool completed",
            format!("{POOLS}/shared"),
            Act::Apply(completed("shared")),
        ),
        attempt(
            "a pool's status",
            format!("{POOLS}/shared/status"),
            Act::Patch(json!({"status": {"totalIPCount": 4}})),
        ),
        pool(
            "a pool let go",
            json!({"metadata": {"finalizers": ["example.com/mine"]}}),
        ),
        attempt(
            "Spiderpool's finalizer",
            format!("{ENDPOINTS}/gone"),
            Act::Patch(json!({"metadata": {"finalizers": null}})),
        ),
        attempt(
            "Spiderpool's endpoint",
            format!("{ENDPOINTS}/gone"),
            Act::Delete,
        ),
        attempt(
            "the ConfigMap of a pool",
            MAPS,
            Act::Create(map("ebbtide-leases.new", label, json!({}))),
        ),
        attempt("a gone node's lease", &leases, Act::Replace(reclaimed)),
        attempt("the ConfigMap of a node", MAPS, Act::Create(of_node)),
        attempt(
            "a published pool",
            POOLS,
            Act::Create(published("node-a-ens6-v4")),
        ),
        attempt(
            "a published pool that changed",
            &mine,
            Act::Patch(json!({"spec": {"ips": ["10.7.0.2"], "gateway": "10.7.0.254"}})),
        ),
        attempt("a published pool's end", &mine, Act::Delete),
    ];
    let mut wrong = controller.wrong(&attacks, true);
    wrong.extend(controller.wrong(&work, false));
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}
