//! Container images made here: nothing is pulled.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use ebbtide_vpc::{
    skip::{Need, skip},
    workspace,
};
use xtask::oci::{self, Entry};

use super::{binaries::Binaries, control_plane::ControlPlane};

/// Debian's busybox: shell, web server, clients; and, asleep, what holds a pod's namespaces.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// The applets that are called by name.
const APPLETS: [&str; 20] = [
    "cat", "chmod", "echo", "hostname", "httpd", "ip", "kill", "ls", "mkdir", "nc", "pidof",
    "ping", "printf", "ps", "sh", "sleep", "timeout", "tr", "true", "wget",
];

impl ControlPlane {
    /// An archive with [`BUSYBOX`].
    ///
    /// # Errors
    /// When there is no busybox on this machine.
    pub fn busybox_image(&self) -> Result<PathBuf> {
        let busybox = self.binaries.file("busybox")?;
        let bytes = fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?;
        let mut entries: Vec<Entry> = ["bin", "etc", "tmp", "www"]
            .iter()
            .map(|name| Entry::directory(name))
            .collect();
        entries.push(Entry::program("bin/busybox".to_owned(), bytes));
        for applet in APPLETS {
            entries.push(Entry::link(&format!("bin/{applet}"), "busybox"));
        }
        let config = serde_json::json!({
            "Entrypoint": ["/bin/busybox"],
            "Cmd": ["sleep", "2147483647"],
            "Env": ["PATH=/bin"],
        });
        let image = oci::image(&entries, &config, BUSYBOX)?;
        let path = self.path("busybox.tar");
        fs::write(&path, image.archive).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// The archive that `cargo xtask image` makes.
///
/// # Errors
/// When it is not there.
pub fn ebbtide() -> Result<PathBuf> {
    workspace::IMAGE.file("ebbtide.tar")
}

impl Binaries {
    /// Whether everything a node needs is here; if not, a [`skip`] says what is missing.
    #[must_use]
    pub fn serve_nodes(&self) -> bool {
        const NEEDED: [&str; 9] = [
            "kubelet",
            "kube-proxy",
            "kube-scheduler",
            "kube-controller-manager",
            "containerd",
            "runc",
            "conntrack",
            "busybox",
            "iptables",
        ];
        let missing = NEEDED.iter().find(|name| self.file(name).is_err());
        let missing = match missing {
            Some(name) => Some(format!("{name} is missing, and a node needs it")),
            None => self.runtime_refuses(),
        };
        if let Some(reason) = &missing {
            skip(Need::Node, reason);
        }
        missing.is_none()
    }

    /// Why the container runtime is none for the kubelet.
    fn runtime_refuses(&self) -> Option<String> {
        let kubelet = self.release("kubelet");
        match kubelet.and_then(|kubelet| Ok(self.runtime()?.refuses(kubelet))) {
            Ok(refuses) => refuses,
            Err(error) => Some(format!("{error:#}")),
        }
    }
}
