//! Maintains a NetworkAttachmentDefinition for each SpiderMultusConfig: for Multus, and for others
//! who search for networks by that kind.

use ebbtide_ipam::catalog::manifest::{API_VERSION, MultusConfigSpec};
use ebbtide_types::ObjectName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{
    attachment::NetworkAttachmentDefinition,
    cluster::Cluster,
    object::{Kind, name_of},
};

/// The annotation with the definition's name, if it differs from the network's.
const NAME: &str = "multus.spidernet.io/cr-name";
/// The annotation with the version of the CNI configuration.
const VERSION: &str = "multus.spidernet.io/cni-version";
/// The annotation with the CNI configuration's name, if it differs from the definition's.
const CONFIGURATION: &str = "cni.spidernet.io/cniconfig-name";

/// The field manager of Ebbtide's writes.
pub(super) const MANAGER: &str = "ebbtide";

/// The desired state of one definition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Desired {
    name: ObjectName,
    config: String,
    annotations: std::collections::BTreeMap<String, String>,
    owner: OwnerReference,
}

/// Returns the definition of a network; none if Ebbtide does not write one.
pub(super) fn desired(network: &DynamicObject) -> Option<Desired> {
    let meta = &network.metadata;
    if meta.deletion_timestamp.is_some() {
        return None;
    }
    let spec: MultusConfigSpec = serde_json::from_value(network.data.get("spec")?.clone()).ok()?;
    let annotations = meta.annotations.clone().unwrap_or_default();
    let own = name_of(meta);
    let name = annotations.get(NAME).unwrap_or(&own.name).clone();
    let config = match spec.cni_type.as_deref() {
        Some("ipvlan") => chain(&spec, &annotations, &name, &own)?.to_string(),
        // Another plugin's: kept for Multus verbatim. Multus would fail each pod for an invalid
        // one; the catalog reports it.
        Some("custom") | None => {
            let config = spec.custom_cni.unwrap_or_default();
            let is_json =
                || serde_json::from_str::<serde_json::Map<String, Value>>(&config).is_ok();
            if !config.trim().is_empty() && !is_json() {
                return None;
            }
            config
        }
        Some(_) => return None,
    };
    Some(Desired {
        name: ObjectName {
            namespace: own.namespace,
            name,
        },
        config,
        annotations,
        owner: OwnerReference {
            api_version: API_VERSION.into(),
            kind: Kind::Network.name().into(),
            name: own.name,
            uid: meta.uid.clone()?,
            controller: Some(true),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        },
    })
}

/// Returns the plugin list, with Ebbtide first, which looks up its settings by the network's name.
fn chain(
    spec: &MultusConfigSpec,
    annotations: &std::collections::BTreeMap<String, String>,
    name: &str,
    network: &ObjectName,
) -> Option<Value> {
    let mut plugins = vec![json!({
        "type": "ebbtide",
        "network": network.to_string(),
        "ipam": { "type": "ebbtide" },
        // Multus passes requested addresses only to plugins with this capability.
        "capabilities": { "ips": true },
    })];
    for text in spec.chain_cni_json_data.iter().flatten() {
        plugins.push(serde_json::from_str(text).ok()?);
    }
    let or =
        |key: &str, default: &str| annotations.get(key).map_or(default, |text| text).to_owned();
    Some(json!({
        "cniVersion": or(VERSION, "0.3.1"),
        "name": or(CONFIGURATION, name),
        "plugins": plugins,
    }))
}

/// Whether the existing definition is in the desired state.
fn is_in_step(found: &DynamicObject, desired: &Desired) -> bool {
    let config = found.data.pointer("/spec/config").and_then(Value::as_str);
    let owners = found
        .metadata
        .owner_references
        .as_deref()
        .unwrap_or_default();
    let annotations = found.metadata.annotations.clone().unwrap_or_default();
    config.unwrap_or_default() == desired.config
        && owners.contains(&desired.owner)
        && desired
            .annotations
            .iter()
            .all(|(key, value)| annotations.get(key) == Some(value))
}

/// Whether the definition has another controller than this network. One without a controller is
/// taken over, as Spiderpool does.
fn is_foreign(found: &DynamicObject, desired: &Desired) -> bool {
    let owners = found
        .metadata
        .owner_references
        .as_deref()
        .unwrap_or_default();
    let controller = owners.iter().find(|owner| owner.controller == Some(true));
    controller.is_some_and(|owner| owner.uid != desired.owner.uid)
}

/// Writes what is missing or different. True if everything is in the desired state.
pub(super) async fn reconcile(cluster: &Cluster) -> bool {
    let mut done = true;
    for network in cluster.all(Kind::Network) {
        let Some(desired) = desired(&network) else {
            continue;
        };
        if let Some(found) = cluster.get(Kind::Attachment, &desired.name) {
            if is_foreign(&found, &desired) {
                warn!(
                    "NetworkAttachmentDefinition {} belongs to another object: left alone",
                    desired.name
                );
                continue;
            }
            if is_in_step(&found, &desired) {
                continue;
            }
        }
        match apply(cluster, &desired).await {
            Ok(()) => info!("NetworkAttachmentDefinition {} written", desired.name),
            Err(e) => {
                warn!("NetworkAttachmentDefinition {}: {e}", desired.name);
                done = false;
            }
        }
    }
    done
}

async fn apply(cluster: &Cluster, desired: &Desired) -> kube::Result<()> {
    let api: Api<NetworkAttachmentDefinition> =
        Api::namespaced(cluster.client.clone(), &desired.name.namespace);
    let object = json!({
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": Kind::Attachment.name(),
        "metadata": {
            "name": desired.name.name,
            "annotations": desired.annotations,
            "ownerReferences": [desired.owner],
        },
        "spec": { "config": desired.config },
    });
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&desired.name.name, &params, &Patch::Apply(&object))
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(annotations: Value, spec: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"name": "ipvlan-ens5", "namespace": "default", "uid": "u", "annotations": annotations},
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn a_network_becomes_a_plugin_list_of_ours() {
        let spec = json!({"cniType": "ipvlan", "ipvlan": {"master": ["ens5"]}});
        let desired = desired(&network(json!({}), spec)).unwrap();
        assert_eq!(desired.name.to_string(), "default/ipvlan-ens5");
        let config: Value = serde_json::from_str(&desired.config).unwrap();
        assert_eq!(
            config,
            json!({"cniVersion": "0.3.1", "name": "ipvlan-ens5", "plugins": [
                {"type": "ebbtide", "network": "default/ipvlan-ens5", "ipam": {"type": "ebbtide"},
                    "capabilities": {"ips": true}},
            ]})
        );
        assert_eq!(desired.owner.uid, "u");
    }

    #[test]
    fn names_versions_and_more_plugins_are_as_the_network_says() {
        let annotations = json!({NAME: "other", VERSION: "1.0.0", CONFIGURATION: "conf"});
        let spec = json!({"cniType": "ipvlan", "ipvlan": {"master": ["ens5"]},
            "chainCNIJsonData": ["{\"type\":\"tuning\"}"]});
        let wanted = desired(&network(annotations, spec)).unwrap();
        assert_eq!(wanted.name.to_string(), "default/other");
        let config: Value = serde_json::from_str(&wanted.config).unwrap();
        assert_eq!(
            (&config["name"], &config["cniVersion"]),
            (&json!("conf"), &json!("1.0.0"))
        );
        assert_eq!(config["plugins"][0]["network"], "default/ipvlan-ens5");
        assert_eq!(config["plugins"][1]["type"], "tuning");

        let custom = json!({"cniType": "custom", "customCNI": "{\"type\":\"bridge\"}"});
        let wanted = desired(&network(json!({}), custom)).unwrap();
        assert_eq!(wanted.config, "{\"type\":\"bridge\"}");
        assert!(desired(&network(json!({}), json!({"cniType": "sriov"}))).is_none());
    }

    #[test]
    fn what_belongs_to_somebody_else_is_told_from_what_is_merely_out_of_step() {
        let spec = json!({"cniType": "ipvlan", "ipvlan": {"master": ["ens5"]}});
        let wanted = desired(&network(json!({}), spec)).unwrap();
        let found = |owners: Value, config: &str| -> DynamicObject {
            serde_json::from_value(json!({
                "metadata": {"name": "ipvlan-ens5", "ownerReferences": owners},
                "spec": {"config": config},
            }))
            .unwrap()
        };
        let ours = json!([wanted.owner]);
        assert!(is_in_step(&found(ours.clone(), &wanted.config), &wanted));
        assert!(!is_in_step(&found(ours.clone(), "{}"), &wanted));
        assert!(!is_in_step(&found(json!([]), &wanted.config), &wanted));
        assert!(!is_foreign(&found(json!([]), "{}"), &wanted));
        let other = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "other", "controller": true}]);
        assert!(is_foreign(&found(other, &wanted.config), &wanted));
    }
}
