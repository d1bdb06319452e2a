//! Container images that are built here: nothing is pulled.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use ebbtide_vpc::{
    skip::{Need, skip},
    workspace,
};
use xtask::oci::{self, Entry};

use super::{binaries::Binaries, control_plane::ControlPlane};

/// The image of Debian's busybox: shell, web server and clients. It also serves as the pause image.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// The applets that get names of their own.
const APPLETS: [&str; 20] = [
    "cat", "chmod", "echo", "hostname", "httpd", "ip", "kill", "ls", "mkdir", "nc", "pidof",
    "ping", "printf", "ps", "sh", "sleep", "timeout", "tr", "true", "wget",
];

impl ControlPlane {
    /// Returns the path of an archive with [`BUSYBOX`].
    ///
    /// # Errors
    /// If there is no busybox on this machine.
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
        let image = oci::image(entries, config, BUSYBOX)?;
        let path = self.path("busybox.tar");
        fs::write(&path, image.archive).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Returns the path of the archive that `cargo xtask image` makes.
///
/// # Errors
/// If it is not there.
pub fn ebbtide() -> Result<PathBuf> {
    workspace::IMAGE.file("ebbtide.tar")
}

impl Binaries {
    /// Whether everything that a node needs is installed. If not, a [`skip`] says what is missing.
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

    /// Returns why the kubelet cannot use the container runtime.
    fn runtime_refuses(&self) -> Option<String> {
        let kubelet = self.release("kubelet");
        match kubelet.and_then(|kubelet| Ok(self.runtime()?.refuses(kubelet))) {
            Ok(refuses) => refuses,
            Err(error) => Some(format!("{error:#}")),
        }
    }
}
