//! Configurations of other plugins, as texts in a network.

use super::{Invalid, manifest::MultusConfigSpec};

/// Whether another plugin's configuration, which is kept for Multus as it is, is one.
pub(super) fn check_custom(object: &str, spec: &MultusConfigSpec) -> Result<(), Invalid> {
    let text = spec.custom_cni.as_deref().unwrap_or_default();
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Err(error) if !text.trim().is_empty() => Err(Invalid::new(
            object,
            "spec.customCNI",
            text,
            format!("is not a JSON object: {error}"),
            "write a CNI configuration as JSON, or leave it empty",
        )),
        _ => Ok(()),
    }
}

/// Whether the chain's further plugins are configurations at all: Multus would fail every pod for it.
pub(super) fn check_chain(object: &str, spec: &MultusConfigSpec) -> Result<(), Invalid> {
    let texts = spec.chain_cni_json_data.as_deref().unwrap_or_default();
    for (position, text) in texts.iter().enumerate() {
        let reason = match serde_json::from_str::<serde_json::Value>(text) {
            Err(error) => format!("is not JSON: {error}"),
            Ok(value) => match value.get("type").and_then(serde_json::Value::as_str) {
                Some(kind) if !kind.is_empty() => continue,
                _ => "is not a plugin's configuration: it has no `type`".into(),
            },
        };
        return Err(Invalid::new(
            object,
            format!("spec.chainCNIJsonData[{position}]"),
            text,
            reason,
            "write one plugin's configuration as JSON, as in {\"type\": \"tuning\"}",
        ));
    }
    Ok(())
}
