//! Generates the CustomResourceDefinitions from the types.

use ebbtide_ipam::catalog::manifest::{
    SpiderCoordinator, SpiderIpPool, SpiderMultusConfig, SpiderReservedIp,
};
use ebbtide_types::yaml;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::{attachment::NetworkAttachmentDefinition, endpoint::SpiderEndpoint};

/// An error in writing a definition.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be written as JSON.
    #[error("write a CustomResourceDefinition as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It cannot be written as YAML.
    #[error("write a CustomResourceDefinition as YAML: {0}")]
    Yaml(#[from] yaml::Error),
}

/// Returns every definition as a file's name and its YAML, in the order of the names.
///
/// # Errors
/// If one cannot be written as JSON or YAML: a defect.
pub fn files() -> Result<Vec<(String, String)>, Error> {
    let definitions = [
        NetworkAttachmentDefinition::crd(),
        SpiderCoordinator::crd(),
        endpoint(),
        SpiderIpPool::crd(),
        SpiderMultusConfig::crd(),
        SpiderReservedIp::crd(),
    ];
    definitions
        .into_iter()
        .map(|definition| {
            let names = &definition.spec.names;
            let file = format!("{}_{}.yaml", definition.spec.group, names.plural);
            let mut value = serde_json::to_value(&definition)?;
            simplify(&mut value);
            complete(&mut value);
            let text = yaml::write(&value)?;
            Ok((
                file,
                format!("# Made by `cargo xtask crds` from the agent's types.\n{text}"),
            ))
        })
        .collect()
}

/// Removes `nullable` from every schema: the API server then prunes an explicit `null`, so that
/// rules and readers meet missing fields only. Empty defaults are removed, too: readers apply them
/// to a missing field, and the API server must not write them.
fn simplify(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
            }
            let empty = |value: &Value| match value {
                Value::String(text) => text.is_empty(),
                Value::Array(_) | Value::Object(_) => true,
                _ => false,
            };
            if fields.contains_key("type") && fields.get("default").is_some_and(empty) {
                fields.remove("default");
            }
            fields.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        _ => {}
    }
}

/// Adds the rule that label selectors' `In` and `NotIn` have values, and `Exists` and
/// `DoesNotExist` none. Done here, since kube merges the schemas of a type's alternatives.
fn complete(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let properties = fields.get("properties");
            let is_expression = ["key", "operator", "values"]
                .iter()
                .all(|name| properties.is_some_and(|all| all.get(name).is_some()));
            if is_expression {
                let alternatives = json!([
                    {
                        "properties": {"operator": {"enum": ["In", "NotIn"]}, "values": {"minItems": 1}},
                        "required": ["values"],
                    },
                    {
                        "properties": {"operator": {"enum": ["Exists", "DoesNotExist"]}, "values": {"maxItems": 0}},
                    },
                ]);
                fields.insert("oneOf".into(), alternatives);
            }
            fields.values_mut().for_each(complete);
        }
        Value::Array(items) => items.iter_mut().for_each(complete),
        _ => {}
    }
}

/// Makes the status an ordinary field, as with Spiderpool: one write creates the whole object.
fn endpoint() -> CustomResourceDefinition {
    let mut definition = SpiderEndpoint::crd();
    for version in &mut definition.spec.versions {
        version.subresources = None;
    }
    definition
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_definitions_are_those_of_the_types() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
        let made = files().unwrap();
        for (name, text) in &made {
            let committed = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            assert!(
                committed == *text,
                "deploy/crds/{name} is out of step: cargo xtask crds"
            );
        }
        let known = std::fs::read_dir(&dir).unwrap().count();
        assert_eq!(
            known,
            made.len(),
            "a file in deploy/crds belongs to no type"
        );
    }
}
