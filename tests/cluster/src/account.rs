//! Service accounts' tokens, and kubeconfigs with them: what a pod has, or whoever stole it from one.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::control_plane::ControlPlane;

impl ControlPlane {
    /// Writes a kubeconfig with a token of a service account, bound to `pod`, as the kubelet requests it, or to
    /// nothing. Its namespace is the account's, as in a pod.
    ///
    /// # Errors
    /// If there is no such account or pod, or the file cannot be written.
    pub fn kubeconfig_of(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<&str>,
    ) -> Result<PathBuf> {
        let mut spec =
            json!({"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600});
        if let Some(pod) = pod {
            let object = self.get(&["-n", namespace, "pod", pod])?;
            spec["boundObjectRef"] = json!({
                "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": object["metadata"]["uid"],
            });
        }
        let request =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer =
            self.kubectl_with(&["create", "--raw", &path, "-f", "-"], &request.to_string())?;
        let answer: Value = serde_json::from_str(&answer)?;
        let token = answer["status"]["token"].as_str().context("no token")?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": self.server(), "certificate-authority": self.pki.file("ca.crt"),
            }}],
            "users": [{"name": account, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {
                "cluster": "test", "user": account, "namespace": namespace,
            }}],
            "current-context": "test",
        });
        let name = pod.unwrap_or("unbound");
        let path = self.path(&format!("{account}-{name}.kubeconfig"));
        fs::write(&path, config.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
