//! Checks the configurations of other plugins that a network contains as text.

use super::{Invalid, manifest::MultusConfigSpec};

/// Checks that another plugin's configuration, which is kept verbatim for Multus, is valid.
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

/// Checks that the chained plugins' configurations are valid: with an invalid one, Multus would fail every pod.
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
