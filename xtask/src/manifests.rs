//! `manifests`: `deploy/ebbtide.yaml` from the Helm chart's default values: one is the source of
//! the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::helm;
use crate::workspace::Workspace;
use crate::{exec, ui};

/// Where everything is, unless a person wants it elsewhere.
const NAMESPACE: &str = "ebbtide-system";

/// The chart's templates that make objects, in the order in which they are to be applied.
const TEMPLATES: [&str; 4] = ["serviceaccount", "rbac", "configmap", "daemonset"];

const HEAD: &str = "\
# Ebbtide on Kubernetes: `kubectl apply -f deploy/crds -f deploy/ebbtide.yaml`.
# Made by `cargo xtask manifests` from deploy/helm/ebbtide and its default values: change it there.
";

const NAMESPACE_OBJECT: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: ebbtide-system
";

/// Options of `manifests`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only say whether the file is in step with the chart
    #[arg(long)]
    check: bool,
    /// Print what the chart makes with these values (JSON), as `helm template` does
    #[arg(long, value_name = "VALUES", conflicts_with = "check")]
    values: Option<String>,
}

/// Renders the chart, and writes or compares the file.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if let Some(values) = &options.values {
        ui::line(manifests(ws, values)?.trim_end());
        return Ok(());
    }
    let text = default_manifests(ws)?;
    let path = ws.root.join("deploy/ebbtide.yaml");
    if !options.check {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        ui::line(ws.shown(&path));
        return Ok(());
    }
    check(ws)
}

/// Whether the file is what the chart makes, and whether the chart says what it does not know.
pub(crate) fn check(ws: &Workspace) -> Result<()> {
    let path = ws.root.join("deploy/ebbtide.yaml");
    let found = fs::read_to_string(&path).unwrap_or_default();
    if found != default_manifests(ws)? {
        bail!("deploy/ebbtide.yaml is not what the chart makes: run `cargo xtask manifests`");
    }
    people_know(ws)
}

/// The values that people know from Spiderpool's chart do what they say.
fn people_know(ws: &Workspace) -> Result<()> {
    let values = r#"{"ipam": {"enableStatefulSet": true}, "plugins": {"installCNI": true},
        "multus": {"multusCNI": {"defaultCniCRName": "ipvlan-ens5"}},
        "global": {"imageRegistryOverride": "mirror.example.org"}}"#;
    let files = render(ws, values)?;
    for (file, word) in [
        (
            "templates/daemonset.yaml",
            "image: mirror.example.org/ebbtide/ebbtide:",
        ),
        ("templates/daemonset.yaml", "value: \"ipvlan-ens5\""),
        ("templates/configmap.yaml", "stickyAddresses: true"),
        ("templates/NOTES.txt", "plugins.installCNI is not needed"),
    ] {
        let name = format!("ebbtide/{file}");
        if !files.get(&name).is_some_and(|text| text.contains(word)) {
            bail!(
                "the chart's {file} does not say {word:?}: {:?}",
                files.get(&name)
            );
        }
    }
    Ok(())
}

fn default_manifests(ws: &Workspace) -> Result<String> {
    Ok(format!("{HEAD}{}", manifests(ws, "{}")?))
}

/// The namespace and the chart's objects, in the order in which they are to be applied.
fn manifests(ws: &Workspace, values: &str) -> Result<String> {
    let files = render(ws, values)?;
    let mut documents = vec![NAMESPACE_OBJECT.to_owned()];
    for template in TEMPLATES {
        let name = format!("ebbtide/templates/{template}.yaml");
        let text = files
            .get(&name)
            .with_context(|| format!("the chart has no {name}"))?;
        documents.push(format!("{}\n", text.trim()));
    }
    Ok(documents.join("---\n"))
}

/// The chart's files, rendered with `values` (JSON) by Helm's own engine.
fn render(ws: &Workspace, values: &str) -> Result<BTreeMap<String, String>> {
    let deploy: PathBuf = ws.root.join("deploy/helm");
    let text = exec::read(
        Command::new(helm::ensure(ws)?)
            .arg(deploy.join("render.py"))
            .arg(deploy.join("ebbtide"))
            .args([NAMESPACE, values]),
    )?;
    serde_json::from_str(&text).context("what Helm's engine rendered")
}
