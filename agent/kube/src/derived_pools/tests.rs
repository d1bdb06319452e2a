use std::path::Path;

use super::*;

const NETWORKS: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: cloud, namespace: shop, annotations: {ebbtide.io/addresses: metadata}}
spec: {cniType: ipvlan, ipvlan: {master: [ens6]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: declared, namespace: shop}
spec: {cniType: ipvlan, ipvlan: {master: [ens6]}}
";

fn node_pool(name: &str, ranges: &str, used: &str) -> NodePool {
    NodePool {
        name: name.into(),
        networks: vec!["kube-system/stolen".into()],
        family: Family::V4,
        subnet: "10.0.1.0/24".parse().unwrap(),
        gateway: Some("10.0.1.1".parse().unwrap()),
        ranges: ranges.into(),
        used: used.into(),
        resting: String::new(),
        held: String::new(),
        surrendered: String::new(),
    }
}

fn told(node: &str, pools: Vec<NodePool>) -> (String, NodeCloud) {
    let nic = NodeNic {
        id: "eni-6".into(),
        mac: "02:00:00:00:00:06".to_owned().try_into().unwrap(),
        link: "ens6".into(),
        waiting: BTreeMap::new(),
        blocks: Vec::new(),
        pools,
    };
    let told = NodeCloud {
        version: 1,
        node: node.into(),
        cloud: "aws".into(),
        nics: vec![nic],
    };
    (node.to_owned(), told)
}

fn desired_of(told: Vec<(String, NodeCloud)>) -> (BTreeMap<String, DerivedPool>, Vec<String>) {
    let nodes = ["node1", "node2"].map(|node| (node.to_owned(), format!("u-{node}")));
    let declared = Catalog::from_texts([(Path::new("n.yaml"), NETWORKS)]);
    desired(&nodes.into(), &told.into_iter().collect(), &declared)
}

#[test]
fn a_pool_is_published_for_its_node_and_the_networks_that_want_it() {
    let pools = vec![node_pool(
        "node1-ens6-v4",
        "10.0.1.5-10.0.1.6, 10.0.1.9",
        "10.0.1.5",
    )];
    let (pools, faults) = desired_of(vec![told("node1", pools)]);
    assert_eq!(faults, Vec::<String>::new());
    let object = pools["node1-ens6-v4"].object("node1-ens6-v4");
    assert_eq!(
        object,
        json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
            "metadata": {
                "name": "node1-ens6-v4", "labels": {"ebbtide.io/node": "node1"},
                "annotations": {"ebbtide.io/derived": "aws eni-6"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "u-node1"}],
            },
            "spec": {
                "ipVersion": 4, "subnet": "10.0.1.0/24", "ips": ["10.0.1.5-10.0.1.6", "10.0.1.9"],
                "gateway": "10.0.1.1", "nodeName": ["node1"], "multusName": ["shop/cloud"], "default": true,
                "disable": false,
            },
        })
    );
    // Nobody takes it for a declared one.
    assert_eq!(Catalog::from_objects([&object]), Catalog::default());
}

#[test]
fn what_a_node_must_not_claim_is_no_pool() {
    let of_v6 = NodePool {
        family: Family::V6,
        ..node_pool("node1-ens6-v6", "fd00::5", "")
    };
    for (what, pool, said) in [
        (
            "another node's",
            node_pool("node2-ens6-v4", "10.0.1.5", ""),
            "no name of that node's",
        ),
        (
            "a person's",
            node_pool("mine", "10.0.1.5", ""),
            "no name of that node's",
        ),
        (
            "outside",
            node_pool("node1-ens6-v4", "10.0.2.5", ""),
            "outside of 10.0.1.0/24",
        ),
        (
            "no addresses",
            node_pool("node1-ens6-v4", "x", ""),
            "has ranges that",
        ),
        ("two families", of_v6, "outside of"),
    ] {
        let (pools, faults) = desired_of(vec![told("node1", vec![pool])]);
        assert!(pools.is_empty(), "{what}");
        assert!(faults[0].contains(said), "{what}: {faults:?}");
    }
    let gone = told("node3", vec![node_pool("node3-ens6-v4", "10.0.1.5", "")]);
    assert!(
        desired_of(vec![gone]).0.is_empty(),
        "a node that is not there"
    );
}

#[test]
fn what_somebody_edited_is_put_back_and_nothing_else_is_written() {
    let name = "node1-ens6-v4";
    let (pools, _) = desired_of(vec![told("node1", vec![node_pool(name, "10.0.1.5", "")])]);
    let wanted = &pools[name];
    let with = |edit: &dyn Fn(&mut Value)| -> DynamicObject {
        let mut object = wanted.object(name);
        edit(&mut object);
        serde_json::from_value(object).unwrap()
    };
    assert_eq!(wanted.patch(&with(&|_| {})), None);
    let others = with(&|object| {
        object["metadata"]["labels"]["team"] = json!("a");
        object["metadata"]["annotations"]["example.com/x"] = json!("y");
        object["metadata"]["finalizers"] = json!(["example.com/mine"]);
    });
    assert_eq!(wanted.patch(&others), None, "people may label it");
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "u-node1"}]);
    for (place, edited, patch) in [
        (
            "/spec/ips",
            json!(["10.0.1.5", "10.0.1.7"]),
            json!({"spec": {"ips": ["10.0.1.5"]}}),
        ),
        (
            "/spec/excludeIPs",
            json!(["10.0.1.5"]),
            json!({"spec": {"excludeIPs": null}}),
        ),
        (
            "/spec/disable",
            json!(true),
            json!({"spec": {"disable": false}}),
        ),
        (
            "/metadata/annotations",
            json!({}),
            json!({"metadata": {"annotations": {"ebbtide.io/derived": "aws eni-6"}}}),
        ),
        (
            "/metadata/labels",
            json!({}),
            json!({"metadata": {"labels": {"ebbtide.io/node": "node1"}}}),
        ),
        (
            "/metadata/ownerReferences",
            json!([]),
            json!({"metadata": {"ownerReferences": owner}}),
        ),
    ] {
        let object = with(&|object| {
            let (parent, key) = place.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[key] = edited.clone();
        });
        assert_eq!(wanted.patch(&object), Some(patch), "{place}");
        assert!(!wanted.is_elsewhere(&object), "{place}");
    }
    let elsewhere = with(&|object| object["spec"]["subnet"] = json!("10.0.2.0/24"));
    assert!(wanted.is_elsewhere(&elsewhere));
}

#[test]
fn two_nodes_that_claim_one_address_are_found() {
    for (what, one, other, found) in [
        ("apart", ("10.0.1.5-10.0.1.6", ""), ("10.0.1.7", ""), None),
        (
            "both may give it out",
            ("10.0.1.5-10.0.1.8", ""),
            ("10.0.1.7", ""),
            Some("10.0.1.7"),
        ),
        (
            "a pod has it still",
            ("10.0.1.5", "10.0.1.7"),
            ("10.0.1.7", ""),
            Some("10.0.1.7"),
        ),
        (
            "two pods have it",
            ("", "10.0.1.7"),
            ("", "10.0.1.7"),
            Some("10.0.1.7"),
        ),
        (
            "behind a longer one",
            ("10.0.1.5-10.0.1.90, 10.0.1.95", ""),
            ("10.0.1.80", ""),
            Some("10.0.1.80"),
        ),
    ] {
        let (pools, faults) = desired_of(vec![
            told("node1", vec![node_pool("node1-ens6-v4", one.0, one.1)]),
            told("node2", vec![node_pool("node2-ens6-v4", other.0, other.1)]),
        ]);
        assert!(faults.is_empty(), "{what}: {faults:?}");
        let twice = twice(&pools);
        let addresses: Vec<String> = twice.iter().map(|one| one.address.to_string()).collect();
        assert_eq!(addresses.first().map(String::as_str), found, "{what}");
        assert!(twice.len() <= 1, "{what}: {twice:?}");
    }
    // Two pools of one node are its own affair.
    let both = vec![
        node_pool("node1-ens6-v4", "10.0.1.5", ""),
        node_pool("node1-ens7-v4", "10.0.1.5", ""),
    ];
    assert_eq!(twice(&desired_of(vec![told("node1", both)]).0), []);
}
