//! Releases of containerd, and their configuration: 1.6 to 2.x.

use std::{fmt, path::Path};

use super::release::Release;

/// A release of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Runtime {
    major: u16,
    minor: u16,
}

impl Runtime {
    /// Returns release `major`.`minor`.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Parses its answer to `--version`: `containerd github.com/containerd/containerd/v2 2.1.9 0123abc`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let version = text.split_whitespace().nth(2)?.trim_start_matches('v');
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self::new(next()?, next()?))
    }

    /// Returns why a kubelet of this release cannot use it; `None` if it can.
    pub(super) fn refuses(self, kubelet: Release) -> Option<String> {
        // containerd 2 has no CRI v1alpha2 any more; kubelets know v1 since 1.23.
        let refused = self >= Self::new(2, 0) && kubelet < Release::new(23);
        refused.then(|| {
            format!("{self} does not speak with the kubelet of {kubelet}: one of 1.x does")
        })
    }

    /// Returns its configuration, with its files below `state`, its socket at `socket`, and `sandbox` as the pause
    /// image.
    pub(super) fn config(self, state: &Path, socket: &Path, sandbox: &str) -> String {
        let (state, socket) = (state.display(), socket.display());
        let is_new = self >= Self::new(2, 0);
        let version = if is_new { 3 } else { 2 };
        let cri = if is_new {
            self.cri_of_new(sandbox)
        } else {
            Self::cri_of_old(sandbox)
        };
        format!(
            r#"version = {version}
root = "{state}/containerd/root"
state = "{state}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{socket}"
{cri}"#
        )
    }

    fn cri_of_old(sandbox: &str) -> String {
        // Without CAP_SYS_RESOURCE nobody may lower oom_score_adj, hence restrict_oom_score_adj.
        format!(
            r#"[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
        )
    }

    /// Images, containers and the CRI service are three plugins since 2.0. NRI is off: its socket would be shared by
    /// all nodes of a kernel.
    fn cri_of_new(self, sandbox: &str) -> String {
        let programs = match self >= Self::new(2, 1) {
            true => r#"bin_dirs = ["/opt/cni/bin"]"#,
            false => r#"bin_dir = "/opt/cni/bin""#,
        };
        format!(
            r#"[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    {programs}
    conf_dir = "/etc/cni/net.d"
"#
        )
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "containerd {}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_of_what_containerd_says() {
        for (text, release) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1",
                Some((1, 6)),
            ),
            (
                "containerd github.com/containerd/containerd v1.7.27 05044ec0a9a7",
                Some((1, 7)),
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown ",
                Some((2, 1)),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.0.0-rc.1 x",
                Some((2, 0)),
            ),
            ("containerd github.com/containerd/containerd", None),
            ("", None),
        ] {
            let expected = release.map(|(major, minor)| Runtime::new(major, minor));
            assert_eq!(Runtime::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn each_release_has_its_settings_where_it_looks_for_them() {
        let old = [
            "version = 2",
            "sandbox_image = \"pause\"",
            "bin_dir = \"/opt/cni/bin\"",
        ];
        let of_two = [
            "version = 3",
            "sandbox = \"pause\"",
            "bin_dir = \"/opt/cni/bin\"",
        ];
        let newest = [
            "version = 3",
            "sandbox = \"pause\"",
            "bin_dirs = [\"/opt/cni/bin\"]",
        ];
        for (major, minor, expected) in [
            (1, 6, old),
            (1, 7, old),
            (2, 0, of_two),
            (2, 1, newest),
            (2, 3, newest),
        ] {
            let runtime = Runtime::new(major, minor);
            let config = runtime.config(Path::new("/s"), Path::new("/s/sock"), "pause");
            for part in expected {
                assert!(config.contains(part), "{runtime}: no {part}: {config}");
            }
            for section in config
                .lines()
                .filter(|line| line.contains("containerd.cri.v1"))
            {
                assert!(major >= 2, "{runtime}: {section}");
            }
            let restricted = config.matches("restrict_oom_score_adj = true").count();
            assert_eq!(restricted, 1, "{runtime}: {config}");
        }
    }

    #[test]
    fn old_kubelets_need_a_runtime_of_their_time() {
        for (major, minor, release, refused) in [
            (1, 6, 20, false),
            (1, 7, 22, false),
            (2, 0, 22, true),
            (2, 1, 23, false),
            (2, 1, 36, false),
        ] {
            let kubelet = Release::new(release);
            let why = Runtime::new(major, minor).refuses(kubelet);
            assert_eq!(why.is_some(), refused, "{major}.{minor} {kubelet}: {why:?}");
        }
    }
}
