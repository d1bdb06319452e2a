//! What is asked of a control plane, by kubectl as its administrator.

use std::{
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::control_plane::{ControlPlane, PATIENCE, PAUSE};

impl ControlPlane {
    /// The beginning of a command line by which a person talks to it from elsewhere on this machine.
    ///
    /// # Errors
    /// When there is no kubectl.
    pub fn kubectl_command(&self) -> Result<String> {
        let kubectl = self.binaries.file("kubectl")?;
        let inside = match &self.options.place {
            Some(place) => format!("nsenter --net={} ", place.netns.path().display()),
            None => String::new(),
        };
        let config = self.kubeconfig();
        let (kubectl, config) = (kubectl.display(), config.display());
        Ok(format!("{inside}{kubectl} --kubeconfig {config}"))
    }

    /// Runs kubectl as the administrator and gives what it printed.
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// As [`ControlPlane::kubectl`], with `input` as its standard input (`-f -`).
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.kubectl_output(arguments, input)?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// As [`ControlPlane::kubectl_with`], for who wants to know which of many objects were refused.
    ///
    /// # Errors
    /// When it cannot be run. That it fails is none.
    pub fn kubectl_output(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = self
            .command("kubectl")?
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            // its cache of what the server offers
            .env("HOME", self.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl may end without reading it: its own words say why.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().context("waiting for kubectl")
    }

    /// Replaces the status of an object that has one apart: `path` is the object's own.
    ///
    /// # Errors
    /// What the API server has against it.
    pub fn set_status(&self, path: &str, status: &serde_json::Value) -> Result<()> {
        let object = self.kubectl(&["get", "--raw", path])?;
        let mut object: serde_json::Value = serde_json::from_str(&object)?;
        object["status"] = status.clone();
        let status = format!("{path}/status");
        self.kubectl_with(
            &["replace", "--raw", &status, "-f", "-"],
            &object.to_string(),
        )
        .map(drop)
    }

    /// Waits until `look` is true of what `kubectl get ARGUMENTS -o json` prints.
    ///
    /// # Errors
    /// When it does not become so: with what was there last.
    pub fn wait_until(
        &self,
        arguments: &[&str],
        look: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let start = Instant::now();
        loop {
            let found = self.get(arguments)?;
            if look(&found) {
                return Ok(found);
            }
            if start.elapsed() > PATIENCE {
                bail!("waited {PATIENCE:?} for {arguments:?}: {found:#}");
            }
            thread::sleep(PAUSE);
        }
    }

    /// `kubectl apply` of manifests.
    ///
    /// # Errors
    /// What the API server has against them.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifests)
    }

    /// Applies the CustomResourceDefinitions in `directory` and waits until they are served.
    ///
    /// # Errors
    /// What the API server has against them.
    pub fn install_crds(&self, directory: &Path) -> Result<()> {
        let directory = directory.display().to_string();
        // kubectl knows the fields of the API server's release: before 1.25 not those of CEL rules,
        // which such a server drops.
        self.kubectl(&["apply", "--validate=false", "-f", &directory])?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all"])
            .map(drop)
    }

    /// What `kubectl ARGUMENTS -o json` prints, parsed.
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub fn get(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.kubectl(&[&["get"], arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {arguments:?}: {text:?}"))
    }
}
