//! `NetworkAttachmentDefinition`, of the Network Plumbing Working Group's specification (v1.3).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Cluster,
    object::{Kind, name_of},
};
use crate::catalog::NetworkRef;

/// A CNI configuration that pods ask for by name.
#[derive(
    CustomResource, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize,
)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    plural = "network-attachment-definitions",
    singular = "network-attachment-definition",
    shortname = "net-attach-def",
    namespaced,
    doc = "A CNI configuration that pods ask for by name: the Kubernetes Network Plumbing Working Group's way of describing additional networks.",
    derive = "PartialEq"
)]
pub struct NetworkAttachmentDefinitionSpec {
    /// The configuration, JSON of a CNI plugin or plugin list. Empty: it is in a file on each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

/// Our plugin's configuration in a NetworkAttachmentDefinition: none if there is no such object, an
/// error if it is another plugin's.
pub fn configuration(cluster: &Cluster, reference: &NetworkRef) -> Option<Result<String, String>> {
    let found = cluster.all(Kind::Attachment).into_iter().find(|object| {
        let name = name_of(&object.metadata);
        reference.matches(&name)
    })?;
    let text = found.data.pointer("/spec/config").and_then(Value::as_str);
    Some(own_plugin(text.unwrap_or_default()))
}

/// The `ebbtide` plugin of a configuration or a list of plugins, as a configuration of its own.
fn own_plugin(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("has no configuration: it is in a file on each node".into());
    }
    let conf: Value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
    let plugins = match conf.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.clone(),
        None => vec![conf.clone()],
    };
    let kind = |plugin: &Value| {
        plugin
            .get("type")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let kinds: Vec<String> = plugins.iter().filter_map(kind).collect();
    let mut own = plugins
        .into_iter()
        .find(|plugin| kind(plugin).as_deref() == Some("ebbtide"))
        .ok_or_else(|| format!("is of type {}", kinds.join(", ")))?;
    for key in ["cniVersion", "name"] {
        if own.get(key).is_none()
            && let Some(value) = conf.get(key)
        {
            own[key] = value.clone();
        }
    }
    Ok(own.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_plugin_is_found_alone_and_in_a_list() {
        let list =
            r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"ebbtide","network":"a/b"}]}"#;
        for text in [
            r#"{"cniVersion":"0.3.1","name":"n","type":"ebbtide","network":"a/b"}"#,
            list,
        ] {
            let own: Value = serde_json::from_str(&own_plugin(text).unwrap()).unwrap();
            assert_eq!(own["name"], "n");
            assert_eq!(own["cniVersion"], "0.3.1");
            assert_eq!(own["network"], "a/b");
        }
        for (text, said) in [
            ("", "file"),
            ("{", "JSON"),
            (r#"{"type":"macvlan"}"#, "macvlan"),
            (
                r#"{"plugins":[{"type":"bridge"},{"type":"portmap"}]}"#,
                "bridge, portmap",
            ),
        ] {
            assert!(own_plugin(text).unwrap_err().contains(said), "{text}");
        }
    }
}
