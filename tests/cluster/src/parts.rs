//! The components of a node and their configuration: containerd, kubelet, kube-proxy. It is the same for nodes in
//! namespaces and nodes that are machines.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{control_plane::ControlPlane, mode::ProxyMode, pki::Subject};

/// A node, as its components know it.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) cluster: &'a ControlPlane,
    pub(super) name: &'a str,
    /// Its address, which its Service proxy binds to as well.
    pub(super) address: IpAddr,
    /// The directory of its files, which has the same path on the node.
    pub(super) files: &'a Path,
    /// The directory of containerd's images, containers and socket.
    pub(super) state: &'a Path,
    /// The control group above those of its pods, in every hierarchy.
    pub(super) cgroup: &'a str,
}

impl Parts<'_> {
    /// Writes containerd's configuration; returns its arguments.
    pub(super) fn containerd(&self) -> Result<Vec<String>> {
        let runtime = self.cluster.binaries.runtime()?;
        let sandbox = super::images::BUSYBOX;
        let config = runtime.config(self.state, &self.socket(), sandbox);
        let config = self.write("containerd.toml", &config)?;
        Ok(vec!["--config".into(), config.display().to_string()])
    }

    /// Returns the path of containerd's socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    /// Writes the kubelet's configuration and certificates; returns its arguments.
    pub(super) fn kubelet(&self) -> Result<Vec<String>> {
        let cluster = self.cluster;
        let names = [self.name.to_owned(), self.address.to_string()];
        let subject = Subject {
            name: &format!("system:node:{}", self.name),
            group: Some("system:nodes"),
            serves: &names,
        };
        let file = format!("kubelet-{}", self.name);
        let server = cluster.server_for_nodes();
        let kubeconfig = cluster.pki.kubeconfig(&file, &subject, &server)?;
        let resolver = self.write("resolv.conf", "nameserver 127.0.0.1\n")?;
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": cluster.pki.file("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": cluster.pki.file(&format!("{file}.crt")),
            "tlsPrivateKeyFile": cluster.pki.file(&format!("{file}.key")),
            "readOnlyPort": 0,
            "healthzPort": 0,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.cgroup),
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "clusterDomain": "cluster.local",
            "resolvConf": resolver,
            "volumePluginDir": self.state.join("volumeplugins"),
            "serializeImagePulls": false,
            // A test's node never evicts pods, and keeps images that nobody could pull again.
            "evictionHard": {
                "memory.available": "0%", "nodefs.available": "0%",
                "nodefs.inodesFree": "0%", "imagefs.available": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "1s",
            "nodeStatusReportFrequency": "1m",
            "syncFrequency": "10s",
            "oomScoreAdj": 0,
        });
        let release = cluster.binaries.release("kubelet")?;
        let runtime = format!("unix://{}", self.socket().display());
        release.complete_kubelet(&mut config, &runtime);
        let config = self.write("kubelet.json", &config.to_string())?;
        let mut arguments = vec![
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--root-dir=/var/lib/kubelet".into(),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", self.address),
        ];
        arguments.extend(release.kubelet_arguments(&runtime));
        Ok(arguments)
    }

    /// Writes kube-proxy's certificate. Returns its arguments for a mode, or `None` if it does not run.
    pub(super) fn proxy(&self, mode: ProxyMode) -> Result<Option<Vec<String>>> {
        if mode == ProxyMode::Nobody {
            return Ok(None);
        }
        let release = self.cluster.binaries.release("kube-proxy")?;
        let by_mode = release.proxy_arguments(mode).map_err(anyhow::Error::msg)?;
        let subject = Subject {
            name: "system:kube-proxy",
            group: None,
            serves: &[],
        };
        let file = format!("kube-proxy-{}", self.name);
        let server = self.cluster.server_for_nodes();
        let kubeconfig = self.cluster.pki.kubeconfig(&file, &subject, &server)?;
        let mut arguments = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", self.name),
            format!("--bind-address={}", self.address),
            "--healthz-bind-address=".into(),
            "--metrics-bind-address=127.0.0.1:10249".into(),
            // The limits of connection tracking belong to the whole machine.
            "--conntrack-max-per-core=0".into(),
            "--conntrack-min=0".into(),
            "--conntrack-tcp-timeout-established=0s".into(),
            "--conntrack-tcp-timeout-close-wait=0s".into(),
        ];
        arguments.extend(by_mode);
        Ok(Some(arguments))
    }

    /// Writes a file of the node.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
