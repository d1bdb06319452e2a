//! `NetworkAttachmentDefinition`, of the Network Plumbing Working Group's specification (v1.3).

use ebbtide_types::{IpvlanMode, ObjectName};
use kube::{CustomResource, core::DynamicObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Cluster,
    object::{Kind, by_age, name_of},
};

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

/// Returns Ebbtide's configuration in a NetworkAttachmentDefinition: none if no such object exists,
/// an error if it is another plugin's.
pub fn configuration(cluster: &Cluster, name: &ObjectName) -> Option<Result<String, String>> {
    let found = cluster.get(Kind::Attachment, name)?;
    Some(own_plugin(text_of(&found)))
}

/// Whether a SpiderMultusConfig of this name exists, even one that was left out.
#[must_use]
pub fn is_declared(cluster: &Cluster, name: &ObjectName) -> bool {
    cluster.get(Kind::Network, name).is_some()
}

/// Returns the networks that NetworkAttachmentDefinitions define themselves: their names, masters
/// and modes, the oldest first.
#[must_use]
pub fn described(cluster: &Cluster) -> Vec<(ObjectName, String, IpvlanMode)> {
    let mut all = cluster.all(Kind::Attachment);
    all.sort_by(by_age);
    let networks = all.iter().filter_map(|object| {
        let (master, mode) = description(text_of(object))?;
        Some((name_of(&object.metadata), master, mode))
    });
    networks.collect()
}

/// Returns the master and the mode of an Ebbtide configuration that names its master.
fn description(text: &str) -> Option<(String, IpvlanMode)> {
    let own: Value = serde_json::from_str(&own_plugin(text).ok()?).ok()?;
    let master = own
        .get("master")?
        .as_str()
        .filter(|name| !name.is_empty())?;
    let mode = match own.get("mode").and_then(Value::as_str) {
        None | Some("") => IpvlanMode::default(),
        Some(mode) => mode.parse().ok()?,
    };
    Some((master.to_owned(), mode))
}

fn text_of(object: &DynamicObject) -> &str {
    let text = object.data.pointer("/spec/config").and_then(Value::as_str);
    text.unwrap_or_default()
}

/// Returns the `ebbtide` plugin of a configuration or a list of plugins, as a configuration of its own.
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
    fn a_definition_that_names_its_master_says_its_mode() {
        let said = |master: &str, mode| Some((master.to_owned(), mode));
        for (text, expected) in [
            (
                r#"{"type":"ebbtide","master":"ens5"}"#,
                said("ens5", IpvlanMode::L3),
            ),
            (
                r#"{"type":"ebbtide","master":"ens5","mode":""}"#,
                said("ens5", IpvlanMode::L3),
            ),
            (
                r#"{"plugins":[{"type":"ebbtide","master":"ens5","mode":"l2"}]}"#,
                said("ens5", IpvlanMode::L2),
            ),
            (r#"{"type":"ebbtide","master":"ens5","mode":"l4"}"#, None),
            (r#"{"type":"ebbtide","network":"a/b"}"#, None),
            (r#"{"type":"ipvlan","master":"ens5","mode":"l2"}"#, None),
            ("[", None),
        ] {
            assert_eq!(description(text), expected, "{text}");
        }
    }

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
