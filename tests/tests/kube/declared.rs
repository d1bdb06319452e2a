//! Files and the API server are equivalent: every field and annotation of one file (`declared.yaml`) has the same
//! effect from both.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::Member;
use ebbtide_ipam::catalog::Catalog;
use ebbtide_types::yaml;
use serde_json::{Value, json};

use crate::setup::{DEPLOY, NO_REST, cluster};

const DECLARED: &str = include_str!("declared.yaml");

/// Fields of other types: a network with one of them is not Ebbtide's.
const OTHERS: [&str; 8] = [
    "macvlan",
    "vlan",
    "sriov",
    "ibsriov",
    "ipoib",
    "ovs",
    "bond",
    "customCNI",
];

fn objects() -> Result<Vec<Value>> {
    let documents = yaml::documents(DECLARED);
    let objects = documents.iter().map(|document| Ok(yaml::read(document)?));
    objects.collect()
}

/// Collects the paths of a schema's fields, with `[]` for the items of a list.
fn fields(schema: &Value, path: &str, found: &mut Vec<String>) {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}/{name}");
        if !OTHERS.contains(&name.as_str()) {
            found.push(path.clone());
            fields(schema, &path, found);
            fields(&schema["items"], &format!("{path}/0"), found);
        }
    }
}

#[test]
fn the_file_has_every_field_of_the_definitions() -> Result<()> {
    let objects = objects()?;
    for (kind, plural) in [
        ("SpiderIPPool", "spiderippools"),
        ("SpiderMultusConfig", "spidermultusconfigs"),
        ("SpiderReservedIP", "spiderreservedips"),
        ("SpiderCoordinator", "spidercoordinators"),
    ] {
        let file = format!("crds/spiderpool.spidernet.io_{plural}.yaml");
        let text = fs::read_to_string(Path::new(DEPLOY).join(file))?;
        let definition: Value = yaml::read(&text)?;
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut paths = Vec::new();
        fields(&schema["properties"]["spec"], "/spec", &mut paths);
        ensure!(!paths.is_empty(), "{kind} has no fields");
        for path in paths {
            let mut ours = objects.iter().filter(|object| object["kind"] == kind);
            let is_there = ours.any(|object| object.pointer(&path).is_some());
            // All selectors have one type: the one of pods has all of its fields.
            let selector = path.contains("nodeAffinity/") || path.contains("namespaceAffinity/");
            ensure!(
                is_there || selector,
                "{kind} {path} is in no object of declared.yaml"
            );
        }
    }
    Ok(())
}

/// Returns what a catalog contains, in an order that does not depend on the source.
fn shown(catalog: &Catalog) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for pool in catalog.pools() {
        all.insert(format!("pool {}", pool.name), format!("{pool:#?}"));
    }
    for network in catalog.networks() {
        all.insert(format!("network {}", network.name), format!("{network:#?}"));
    }
    for reserved in catalog.reserved() {
        all.insert(
            format!("reserved {}", reserved.name),
            format!("{reserved:#?}"),
        );
    }
    for problem in catalog.problems() {
        let place = (&problem.object, &problem.field);
        let what = (&problem.message, problem.consequence);
        all.insert(format!("problem {place:?}"), format!("{what:?}"));
    }
    all
}

#[test]
fn every_field_and_annotation_says_the_same_in_a_file_and_at_a_real_api_server() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let from_file = Catalog::from_texts([(Path::new("declared.yaml"), DECLARED)]);
    ensure!(from_file.networks().len() == 3 && from_file.pools().len() == 2);
    ensure!(
        from_file
            .networks()
            .iter()
            .any(|network| network.answer_neighbours)
    );
    cluster.apply(DECLARED)?;
    let state = tempfile::tempdir()?;
    let agent = Member::start(&cluster.kubeconfig(), state.path(), "edge-a", NO_REST)?;
    let expected = shown(&from_file);
    let found = agent.catalog_once(|catalog| shown(catalog) == expected);
    let found =
        found.map_err(|last| anyhow::anyhow!("{:#?}\nis not\n{expected:#?}", shown(&last)))?;
    ensure!(found.problems().len() == from_file.problems().len());
    Ok(())
}

#[test]
fn every_annotation_of_pods_and_namespaces_comes_from_a_real_api_server() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let of_pod = json!({
        "ipam.spidernet.io/ippools": "[]",
        "ipam.spidernet.io/ippool": "{}",
        "ipam.spidernet.io/routes": "[]",
        "ipam.spidernet.io/subnet": "{}",
        "ipam.spidernet.io/subnets": "[]",
        "ipam.spidernet.io/default-route-nic": "net1",
        "v1.multus-cni.io/default-network": "default/a",
        "k8s.v1.cni.cncf.io/networks": "default/b",
        "ebbtide.io/of-the-future": "yes",
    });
    let of_namespace = json!({
        "ipam.spidernet.io/default-ipv4-ippool": "[]",
        "ipam.spidernet.io/default-ipv6-ippool": "[]",
    });
    let object = |kind: &str, name: &str, annotations: &Value| {
        let mut annotations = annotations.clone();
        annotations["example.com/large"] = json!("x".repeat(1000));
        json!({
            "apiVersion": "v1", "kind": kind, "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": "edge-a", "containers": [{"name": "c", "image": "none"}]},
        })
    };
    cluster.kubectl_with(
        &["apply", "--validate=false", "-f", "-"],
        &object("Namespace", "default", &of_namespace).to_string(),
    )?;
    cluster.apply(&object("Pod", "web", &of_pod).to_string())?;
    let state = tempfile::tempdir()?;
    let agent = Member::start(&cluster.kubeconfig(), state.path(), "edge-a", NO_REST)?;
    let subject = agent.subject("web").context("pod web")?;
    for (found, expected) in [
        (&subject.pod.annotations, &of_pod),
        (&subject.namespace.annotations, &of_namespace),
    ] {
        ensure!(
            &serde_json::to_value(found)? == expected,
            "{found:#?} is not {expected:#}"
        );
    }
    Ok(())
}
