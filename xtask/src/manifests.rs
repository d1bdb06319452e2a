//! `manifests`: generates `deploy/ebbtide.yaml`, the policies, `deploy/policy*.yaml`, and `deploy/cloud-controller.yaml` from
//! the Helm chart with its default values. The chart is their only source.

mod monitoring;
mod refused;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::helm;
use crate::workspace::Workspace;
use crate::{exec, ui};

/// The namespace of all objects, unless the user chooses another one.
const NAMESPACE: &str = "ebbtide-system";

/// The chart's templates with objects, in the order in which they must be applied.
const TEMPLATES: [&str; 5] = [
    "serviceaccount",
    "rbac",
    "configmap",
    "controller",
    "daemonset",
];

const HEAD: &str = "\
# Ebbtide on Kubernetes: `kubectl apply -f deploy/crds -f deploy/ebbtide.yaml`, and from Kubernetes 1.30 on
# `-f deploy/policy-accounts.yaml`, without which a token taken from one node may write what is another node's.
# Made by `cargo xtask manifests` from deploy/helm/ebbtide and its default values: change it there.
# Nobody publishes the image under the name below: import yours on each node, or name your registry (docs/image.md).
";

/// The head of the policy for the CRDs. It is a file of its own, as older API servers do not know its kind.
const POLICY_HEAD: &str = "\
# Optional, from Kubernetes 1.31 on: `kubectl apply -f deploy/policy.yaml`.
# Made by `cargo xtask manifests` from deploy/helm/ebbtide: change it there.
";

/// The head of the policies for the accounts, which are a file of their own for the same reason.
const ACCOUNTS_HEAD: &str = "\
# From Kubernetes 1.30 on: `kubectl apply -f deploy/policy-accounts.yaml`, in whatever order with deploy/ebbtide.yaml.
# Made by `cargo xtask manifests` from deploy/helm/ebbtide: change it there.
";

/// The head of the cloud controller's file, which nobody needs who gives out addresses by hand.
const CLOUD_HEAD: &str = "\
# Optional: the controller that asks AWS for more addresses (docs/cloud-controller.md). Set its region, and annotate its
# ServiceAccount with its role, or make a Pod Identity association: `kubectl apply -f deploy/cloud-controller.yaml`.
# Made by `cargo xtask manifests` from deploy/helm/ebbtide: change it there.
# Nobody publishes the image under the name below: import yours on each node, or name your registry (docs/image.md).
";

/// The head of what removes everything.
const UNINSTALL_HEAD: &str = "\
# Removes everything of Ebbtide's from all nodes, and what was written into the API server (docs/operate.md):
#   kubectl delete pods that use Ebbtide's networks
#   kubectl -n ebbtide-system delete daemonset/ebbtide deployment/ebbtide-controller
#   kubectl apply -f deploy/uninstall.yaml
#   kubectl -n ebbtide-system wait --for=condition=complete job/ebbtide-uninstall --timeout=5m
#   kubectl delete -f deploy/uninstall.yaml -f deploy/ebbtide.yaml
# Made by `cargo xtask manifests` from deploy/helm/ebbtide: change it there.
# Nobody publishes the image under the name below: import yours on each node, or name your registry (docs/image.md).
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

/// Renders the chart, and writes or compares the files.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if let Some(values) = &options.values {
        ui::line(manifests(ws, values)?.trim_end());
        return Ok(());
    }
    if options.check {
        return check(ws);
    }
    for (file, text) in made(ws)? {
        let path = ws.root.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        ui::line(ws.shown(&path));
    }
    Ok(())
}

/// Checks that the files are what the chart makes, and that the chart reports unknown values.
pub(crate) fn check(ws: &Workspace) -> Result<()> {
    for (file, text) in made(ws)? {
        if fs::read_to_string(ws.root.join(file)).unwrap_or_default() != text {
            bail!("{file} is not what the chart makes: run `cargo xtask manifests`");
        }
    }
    by_digest(ws)?;
    quoted_namespaces(ws)?;
    presets(ws)?;
    for_schedulers(ws)?;
    monitoring::check(ws)?;
    refused::check(ws)?;
    people_know(ws)
}

/// Checks that the chart reads every value of the presets.
fn presets(ws: &Workspace) -> Result<()> {
    let dir = ws.root.join("deploy/helm/presets");
    for file in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = file?.path();
        let text = fs::read_to_string(&path)?;
        // They are JSON below comments, which is YAML as well.
        let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let files = render(ws, &values.concat())
            .with_context(|| format!("cannot render {}", path.display()))?;
        let notes = files.get("ebbtide/templates/NOTES.txt");
        if notes.is_none_or(|notes| notes.contains("have no effect")) {
            bail!(
                "{}: the chart reads not all of its values: {notes:?}",
                path.display()
            );
        }
    }
    Ok(())
}

/// Checks the values by which people place and mark pods.
fn for_schedulers(ws: &Workspace) -> Result<()> {
    for who in ["agent", "controller"] {
        let values = serde_json::json!({ who: {
            "affinity": {"nodeAffinity": {"x-affinity": {}}},
            "tolerations": [{"key": "x-taint", "operator": "Exists"}],
            "priorityClassName": "x-priority",
            "podAnnotations": {"x-annotation": "1"},
            "podLabels": {"x-label": "1"},
            "extraEnv": [{"name": "X_ENV", "value": "1"}],
        }});
        let text = manifests(ws, &values.to_string())?;
        for word in [
            "x-affinity",
            "x-taint",
            "x-priority",
            "x-annotation",
            "x-label",
            "X_ENV",
        ] {
            if text.matches(word).count() != 1 {
                bail!("{word} of the values of {who} is to be in one pod: {text}");
            }
        }
    }
    Ok(())
}

/// Checks the values that users know from Spiderpool's chart.
fn people_know(ws: &Workspace) -> Result<()> {
    let values = r#"{"ipam": {"enableStatefulSet": true, "enableIPv6": false, "gc": {"enabled": true}},
        "plugins": {"installCNI": true}, "multus": {"multusCNI": {"defaultCniCRName": "ipvlan-ens5", "install": true}},
        "global": {"imageRegistryOverride": "mirror.example.org"},
        "coordinator": {"mode": "underlay", "hijackCIDR": ["10.250.0.0/16"]},
        "clusterDefaultPool": {"installIPv4IPPool": true}, "spiderpoolController": {"tls": {"method": "auto"}},
        "agent": {"nodeSelector": {"a": "b"}, "config": {"cooldownSeconds": 30}}}"#;
    let files = render(ws, values)?;
    for (file, word) in [
        (
            "templates/daemonset.yaml",
            "image: mirror.example.org/ebbtide/ebbtide:",
        ),
        ("templates/daemonset.yaml", "value: \"ipvlan-ens5\""),
        ("templates/configmap.yaml", "stickyAddresses: true"),
        ("templates/NOTES.txt", "plugins.installCNI is not needed"),
        ("templates/NOTES.txt", "\n  ipam.enableIPv6: "),
        ("templates/NOTES.txt", "\n  ipam.gc.enabled: "),
        ("templates/NOTES.txt", "\n  multus.multusCNI.install: "),
        ("templates/NOTES.txt", "\n  coordinator.mode: "),
        (
            "templates/NOTES.txt",
            "\n  coordinator.hijackCIDR: no SpiderCoordinator",
        ),
        (
            "templates/NOTES.txt",
            "\n  clusterDefaultPool.installIPv4IPPool: no pool is made",
        ),
        (
            "templates/NOTES.txt",
            "\n  spiderpoolController.tls.method: the controller's values",
        ),
    ] {
        let name = format!("ebbtide/{file}");
        if !files.get(&name).is_some_and(|text| text.contains(word)) {
            bail!(
                "the chart's {file} does not say {word:?}: {:?}",
                files.get(&name)
            );
        }
    }
    let notes = |files: &BTreeMap<String, String>| {
        let notes = files.get("ebbtide/templates/NOTES.txt").cloned();
        notes.unwrap_or_default()
    };
    for (name, said) in [
        ("the defaults", notes(&render(ws, "{}")?)),
        ("these values", notes(&files)),
    ] {
        let own = [
            "agent.",
            "controller.",
            "cloudController.",
            "cni.",
            "metrics.",
            "image.",
            "admissionPolicy.",
            "accountPolicy.",
            "imagePull",
        ];
        let wrong = said
            .lines()
            .find(|line| own.iter().any(|own| line.trim().starts_with(own)));
        if let Some(line) = wrong {
            bail!("the notes for {name} say of a value that the chart reads: {line}");
        }
    }
    Ok(())
}

/// Checks that an image with a digest is used in every pod.
fn by_digest(ws: &Workspace) -> Result<()> {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let values = serde_json::json!({"image": {"digest": digest, "tag": "v0"}}).to_string();
    let text = manifests(ws, &values)?;
    let images: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: "))
        .collect();
    let wanted = format!("ghcr.io/ebbtide/ebbtide@{digest}");
    if images.len() != 2 || images.iter().any(|image| *image != wanted) {
        bail!("with image.digest every pod is to run {wanted}, and the chart says {images:?}");
    }
    Ok(())
}

/// Checks that the chart can be installed in a namespace whose name is something else to YAML, as `on`, `y` and this number
/// are.
fn quoted_namespaces(ws: &Workspace) -> Result<()> {
    const NUMBER: &str = "1e3";
    let all = r#"{"cloudController": {"enabled": true}, "metrics": {"listen": "node",
        "podMonitor": {"enabled": true}, "prometheusRule": {"enabled": true}, "dashboard": {"enabled": true}}}"#;
    let ends_of_words = |c: char| c.is_whitespace() || "[]{},".contains(c);
    for (name, text) in render_in(ws, NUMBER, all)? {
        if !name.ends_with(".yaml") {
            continue;
        }
        let bare = |line: &&str| line.split(ends_of_words).any(|word| word == NUMBER);
        if let Some(line) = text.lines().find(bare) {
            let line = line.trim();
            bail!(
                "the chart's {name}, in a namespace {NUMBER}: {line}: quote it, or it is a number"
            );
        }
    }
    Ok(())
}

/// Returns the files that are generated.
fn made(ws: &Workspace) -> Result<[(&'static str, String); 5]> {
    let all = r#"{"admissionPolicy": {"enabled": true}, "accountPolicy": {"enabled": true},
        "cloudController": {"enabled": true}}"#;
    let files = render(ws, all)?;
    let policy = |name: &str| {
        let text = files.get(&format!("ebbtide/templates/{name}.yaml"));
        let text = text.with_context(|| format!("the chart has no {name}.yaml"))?;
        anyhow::Ok(text.trim())
    };
    Ok([
        (
            "deploy/ebbtide.yaml",
            format!("{HEAD}{}", manifests(ws, "{}")?),
        ),
        (
            "deploy/policy.yaml",
            format!("{POLICY_HEAD}{}\n", policy("policy")?),
        ),
        (
            "deploy/policy-accounts.yaml",
            format!("{ACCOUNTS_HEAD}{}\n", policy("accounts")?),
        ),
        (
            "deploy/cloud-controller.yaml",
            format!("{CLOUD_HEAD}{}\n", policy("cloud-controller")?),
        ),
        (
            "deploy/uninstall.yaml",
            format!("{UNINSTALL_HEAD}{}\n", without_hooks(policy("uninstall")?)),
        ),
    ])
}

/// Takes Helm's hooks from objects that have no other annotations.
fn without_hooks(text: &str) -> String {
    let lines = text.lines();
    let kept = lines.filter(|line| !line.contains("helm.sh/hook") && *line != "  annotations:");
    kept.collect::<Vec<_>>().join("\n")
}

/// Returns the namespace and the chart's objects, in the order in which they must be applied.
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

/// Renders the chart with `values` (JSON) by Helm's own engine.
fn render(ws: &Workspace, values: &str) -> Result<BTreeMap<String, String>> {
    render_in(ws, NAMESPACE, values)
}

/// Renders the chart for a release in `namespace`.
fn render_in(ws: &Workspace, namespace: &str, values: &str) -> Result<BTreeMap<String, String>> {
    let deploy: PathBuf = ws.root.join("deploy/helm");
    let text = exec::read(
        Command::new(helm::engine(ws)?)
            .arg(deploy.join("render.py"))
            .arg(deploy.join("ebbtide"))
            .args([namespace, values]),
    )?;
    serde_json::from_str(&text).context("what Helm's engine rendered")
}
