//! What a person installs: definitions, agents and controllers, by the manifests or by the Helm chart.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_cluster::Release;
use ebbtide_vpc::workspace;
use serde_json::{Value, json};

use super::{
    cloud::deploy,
    stage::{NAMESPACE, Stage, is_ready},
};

/// The first release with policies that restrict the accounts further.
const ACCOUNT_POLICIES: Release = Release::new(30);
/// The agents' configuration in deploy/ebbtide.yaml.
const CONFIGURATION: &str = "  config.yaml: |\n    {}\n";

impl Stage {
    /// Returns how Ebbtide is installed.
    pub(super) fn installation(&self) -> &'static str {
        match self.cloud.values() {
            None => "kubectl apply -f deploy/crds -f deploy/ebbtide.yaml",
            Some(_) => "kubectl apply -f deploy/crds; helm template ... | kubectl apply -f -",
        }
    }

    /// Installs the agent as deploy/README.md says, and waits until it runs on the nodes.
    ///
    /// # Errors
    /// If they do not become so in time.
    pub fn install(&self) -> Result<()> {
        for node in self.nodes() {
            let ready = self.cluster.get(&["node", node])?;
            ensure!(!is_ready(&ready), "{node} is ready without a network");
        }
        self.cluster.install_crds(&deploy("crds"))?;
        let configuration = self.addresses.configuration(self.cloud);
        let manifests = match self.cloud.values() {
            None => configured(&configuration)?,
            Some(mut values) => {
                values["agent"] = json!({"config": configuration});
                chart(&values)?
            }
        };
        self.cluster.apply(&manifests)?;
        if self.cluster.release()? >= ACCOUNT_POLICIES {
            self.apply(&deploy("policy-accounts.yaml"))?;
        }
        for (what, object) in [
            ("the agents are ready", "daemonset/ebbtide"),
            ("the controllers are ready", "deployment/ebbtide-controller"),
        ] {
            let rollout = ["rollout", "status", object, "--timeout=5s"];
            let rollout = [&["-n", NAMESPACE], &rollout[..]].concat();
            self.until(what, || self.cluster.kubectl(&rollout).map(drop))?;
        }
        Ok(())
    }
}

/// Returns deploy/ebbtide.yaml with this configuration of the agents.
fn configured(configuration: &Value) -> Result<String> {
    let path = deploy("ebbtide.yaml");
    let manifests = std::fs::read_to_string(&path);
    let manifests = manifests.with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        manifests.contains(CONFIGURATION),
        "{} has no empty config.yaml",
        path.display()
    );
    // JSON is YAML.
    let own = CONFIGURATION.replace("{}", &configuration.to_string());
    Ok(manifests.replace(CONFIGURATION, &own))
}

/// Returns the manifests of the Helm chart with these values, as `helm template` prints them.
fn chart(values: &Value) -> Result<String> {
    let mut helm = Command::new(workspace::XTASK.file("xtask")?);
    helm.args(["manifests", "--values", &values.to_string()]);
    let ran = helm.output().context("starting xtask manifests")?;
    if !ran.status.success() {
        bail!(
            "rendering the Helm chart: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    Ok(String::from_utf8(ran.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_have_a_place_for_the_configuration() -> Result<()> {
        let manifests = configured(&json!({"cloud": "aws"}))?;
        assert!(manifests.contains("  config.yaml: |\n    {\"cloud\":\"aws\"}\n"));
        Ok(())
    }
}
