//! Kubernetes' own programs, for the tests that want a real API server. Debian has none of them but
//! etcd: whoever has an archive of the others hands it over once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// Where they are if they are not below `target` (as `setup-envtest` and controller-runtime name it).
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// What an archive must have, for an API server alone.
const WANTED: [&str; 2] = ["kube-apiserver", "kubectl"];

/// Where the tests look for them (`tests/src/cluster/binaries.rs`).
fn directory(ws: &Workspace) -> PathBuf {
    std::env::var_os(ASSETS).map_or_else(|| ws.target.join("kube/bin"), PathBuf::from)
}

/// Whether they are there.
pub(crate) fn is_there(ws: &Workspace) -> bool {
    let directory = directory(ws);
    WANTED.iter().all(|name| directory.join(name).is_file())
}

/// Unpacks `archive`, a tar file with `bin/kube-apiserver` and the like in it, below the target
/// directory. Nothing is done if they are there and `archive` is no newer.
pub(crate) fn unpack(ws: &Workspace, archive: &Path) -> Result<()> {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
    let given = time(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let to = ws.target.join("kube");
    let have = to.join("bin/kube-apiserver");
    if time(&to).is_ok_and(|unpacked| unpacked >= given) && have.is_file() {
        return Ok(());
    }
    ui::note(format_args!("setup: unpacking {}", archive.display()));
    let zstd = archive
        .extension()
        .is_some_and(|end| end == "zst" || end == "zstd");
    if zstd {
        debian::programs(ws, debian::ZSTD)?;
    }
    let half = to.with_extension("new");
    let _ = fs::remove_dir_all(&half);
    fs::create_dir_all(&half).with_context(|| format!("cannot make {}", half.display()))?;
    let mut tar = Command::new("tar");
    if zstd {
        // as long a window as archives of programs that share libraries are made with
        tar.args(["-I", "zstd -d --long=31"]);
    }
    tar.arg("-xf").arg(archive).arg("-C").arg(&half);
    exec::run(&mut tar, Output::OnFailure)?;
    if let Some(name) = WANTED
        .iter()
        .find(|name| !half.join("bin").join(name).is_file())
    {
        let _ = fs::remove_dir_all(&half);
        bail!("{} has no bin/{name} in it", archive.display());
    }
    let _ = fs::remove_dir_all(&to);
    fs::rename(&half, &to).with_context(|| format!("cannot make {}", to.display()))
}
