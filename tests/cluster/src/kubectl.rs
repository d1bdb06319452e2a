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
    /// Returns the beginning of a command line by which a person uses the cluster from elsewhere on this machine.
    ///
    /// # Errors
    /// If there is no kubectl.
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

    /// Runs kubectl as the administrator and returns its output.
    ///
    /// # Errors
    /// If it fails; the error has its output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// As [`ControlPlane::kubectl`], with `input` as its standard input (`-f -`).
    ///
    /// # Errors
    /// If it fails; the error has its output.
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

    /// As [`ControlPlane::kubectl_with`], but returns the output of a failed command, too: it tells which of many
    /// objects were refused.
    ///
    /// # Errors
    /// If it cannot be run. That it fails is not an error.
    pub fn kubectl_output(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = self
            .command("kubectl")?
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            // kubectl keeps a cache of the server's API below it.
            .env("HOME", self.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl may end before it has read everything; its own error is reported.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().context("waiting for kubectl")
    }

    /// Runs a client of the API server, such as a plugin of kubectl's or Helm, as the administrator, with kubectl in its
    /// search path. Returns its output whether it succeeds or not.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn client(&self, program: &Path, arguments: &[&str]) -> Result<Output> {
        self.client_command(program)?
            .args(arguments)
            .output()
            .with_context(|| format!("running {}", program.display()))
    }

    /// Returns a call of such a client.
    ///
    /// # Errors
    /// If there is no kubectl.
    pub fn client_command(&self, program: &Path) -> Result<std::process::Command> {
        let kubectl = self.binaries.file("kubectl")?;
        let mut path = kubectl
            .parent()
            .unwrap_or(Path::new("/"))
            .as_os_str()
            .to_owned();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut command = match &self.options.place {
            Some(place) => place.netns.command(program),
            None => std::process::Command::new(program),
        };
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.directory())
            .env("PATH", path)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Replaces the status of an object that has a status subresource; `path` is the object's own.
    ///
    /// # Errors
    /// If the API server refuses it.
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

    /// Waits until `look` returns true for the output of `kubectl get ARGUMENTS -o json`.
    ///
    /// # Errors
    /// If it does not become so in time; the error has the last state.
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

    /// Applies manifests by `kubectl apply`.
    ///
    /// # Errors
    /// If the API server refuses them.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifests)
    }

    /// Applies the CustomResourceDefinitions in `directory` and waits until they are served.
    ///
    /// # Errors
    /// If the API server refuses them.
    pub fn install_crds(&self, directory: &Path) -> Result<()> {
        let directory = directory.display().to_string();
        // kubectl validates by its own schema of CRDs, and before 1.25 it does not know the fields of CEL rules. The
        // API server drops these fields.
        self.kubectl(&["apply", "--validate=false", "-f", &directory])?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all"])
            .map(drop)
    }

    /// Returns the parsed output of `kubectl ARGUMENTS -o json`.
    ///
    /// # Errors
    /// If it fails; the error has its output.
    pub fn get(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.kubectl(&[&["get"], arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {arguments:?}: {text:?}"))
    }
}
