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
    ];
    let mut wrong = controller.wrong(&attacks, true);
    wrong.extend(controller.wrong(&work, false));
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}
