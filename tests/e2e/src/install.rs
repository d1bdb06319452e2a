//! What a person installs: definitions, agents and controllers, by the manifests or by the Helm chart.

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::Release;
use serde_json::{Value, json};

use super::{
    cloud::deploy,
    helm,
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
            Some(_) => "helm install",
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
        let configuration = self.addresses.configuration(self.cloud);
        match self.cloud.values() {
            None => self.apply_all(&configuration)?,
            Some(mut values) => {
                values["agent"] = json!({"config": configuration});
                helm::install(self, &values)?;
            }
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

    /// Applies the manifests, as a person without Helm.
    fn apply_all(&self, configuration: &Value) -> Result<()> {
        self.cluster.install_crds(&deploy("crds"))?;
        self.cluster.apply(&configured(configuration)?)?;
        if self.cluster.release()? >= ACCOUNT_POLICIES {
            self.apply(&deploy("policy-accounts.yaml"))?;
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
