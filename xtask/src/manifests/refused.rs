//! What the chart's schema refuses before anything is installed, and the name of the test's namespace.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::render_in;
use crate::workspace::Workspace;

/// The blocks that no other chart has: an unknown value there is a misspelt one.
const OWN: [&str; 10] = [
    "image",
    "admissionPolicy",
    "accountPolicy",
    "cni",
    "uninstall",
    "test",
    "controller",
    "cloudController",
    "metrics",
    "agent",
];

/// Values that objects are not valid without. `null` takes a default away.
const NEEDED: [&str; 8] = [
    "image.registry",
    "image.repository",
    "cni.binDir",
    "cni.confDir",
    "metrics.port",
    "metrics.controllerPort",
    "cloudController.slack",
    "multus.multusCNI",
];

/// Parts of the Kubernetes API, which has its own checks.
const OF_KUBERNETES: [&str; 1] = ["agent.updateStrategy"];

/// Checks the schema, and that the test's namespace is never the release's own.
pub(super) fn check(ws: &Workspace) -> Result<()> {
    let path = ws.root.join("deploy/helm/ebbtide/values.schema.json");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let schema: Value = serde_json::from_str(&text).context("values.schema.json")?;
    for name in OWN {
        let block = property(&schema, name).with_context(|| format!("no {name} in the schema"))?;
        ensure!(
            requires(&schema, name),
            "values.schema.json does not require {name}"
        );
        closed(block, name)?;
    }
    for path in NEEDED {
        let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = parents
            .split('.')
            .try_fold(&schema, |block, name| property(block, name));
        ensure!(
            parent.is_some_and(|parent| requires(parent, name)),
            "values.schema.json does not require {path}"
        );
    }
    test_namespace(ws)
}

fn property<'s>(block: &'s Value, name: &str) -> Option<&'s Value> {
    block.get("properties")?.get(name)
}

fn requires(block: &Value, name: &str) -> bool {
    let required = block.get("required").and_then(Value::as_array);
    required.is_some_and(|required| required.iter().any(|one| one == name))
}

/// Checks that a block, and each block in it, refuses what it does not know, and the absence of a block.
fn closed(block: &Value, path: &str) -> Result<()> {
    let Some(Value::Object(properties)) = block.get("properties") else {
        return Ok(());
    };
    if OF_KUBERNETES.contains(&path) {
        return Ok(());
    }
    if block.get("additionalProperties") != Some(&Value::Bool(false)) {
        bail!("values.schema.json accepts any value in {path}: a misspelt one is to be refused");
    }
    for (name, inner) in properties {
        let path = format!("{path}.{name}");
        let is_block = inner.get("properties").is_some() && !OF_KUBERNETES.contains(&&*path);
        ensure!(
            !is_block || requires(block, name),
            "values.schema.json does not require {path}"
        );
        closed(inner, &path)?;
    }
    Ok(())
}

/// Checks the namespace of `helm test`'s pods, of releases in namespaces with names of all lengths.
fn test_namespace(ws: &Workspace) -> Result<()> {
    for length in [1, 50, 51, 62, 63] {
        let namespace = "n".repeat(length);
        let files = render_in(ws, &namespace, "{}")?;
        let test = files.get("ebbtide/templates/test.yaml");
        let test = test.context("the chart has no test.yaml")?;
        let within = test
            .lines()
            .find_map(|line| line.trim().strip_prefix("- --within="));
        let within =
            within.context("test.yaml does not say in which namespace the test's pods are")?;
        let ends_well = within.ends_with(|end: char| end.is_ascii_alphanumeric());
        ensure!(
            within != namespace && within.len() <= 63 && ends_well,
            "in a namespace of {length} letters the test's pods are in {within:?}"
        );
    }
    Ok(())
}
