//! Kubernetes' programs for the tests with a real API server. Debian only has etcd; a user who has an archive with the
//! others gives it to `setup` once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// The variable with their directory if they are not below `target` (named as by `setup-envtest` and
/// controller-runtime).
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The programs that an archive must have, for an API server alone.
const WANTED: [&str; 2] = ["kube-apiserver", "kubectl"];

/// Returns the directory where the tests look for them (`tests/cluster/src/binaries.rs`).
fn directory(ws: &Workspace) -> PathBuf {
    std::env::var_os(ASSETS).map_or_else(|| ws.target.join("kube/bin"), PathBuf::from)
}

/// Whether they are installed.
pub(crate) fn is_there(ws: &Workspace) -> bool {
    let directory = directory(ws);
    WANTED.iter().all(|name| directory.join(name).is_file())
}

/// Unpacks `archive`, a tar file with `bin/kube-apiserver` and the like, below the target directory. Does nothing if
/// they are there and `archive` is not newer.
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
        // The window with which archives of programs with common libraries are compressed.
        tar.args(["-I", "zstd -d --long=31"]);
    }
    tar.arg("-xf").arg(archive).arg("-C").arg(&half);
    exec::run(&mut tar, Output::OnFailure)?;
    if let Some(name) = WANTED
        .iter()
        .find(|name| !half.join("bin").join(name).is_file())
    {
        let _ = fs::remove_dir_all(&half);
        bail!(
            "{} has no bin/{name} in it: pack Kubernetes' programs below bin/",
            archive.display()
        );
    }
    let _ = fs::remove_dir_all(&to);
    fs::rename(&half, &to).with_context(|| format!("cannot make {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_unpacked_whole_or_refused_and_what_was_there_stays() {
        let dir = std::env::temp_dir().join(format!("xtask-kube-{}", std::process::id()));
        let ws = Workspace {
            root: dir.clone(),
            target: dir.join("target"),
        };
        fs::create_dir_all(dir.join("bin")).expect("temporary directory");
        let pack = |names: &[&str]| {
            let archive = dir.join("kube.tar");
            let mut tar = Command::new("tar");
            tar.arg("-cf").arg(&archive).arg("-C").arg(&dir);
            for name in names {
                fs::write(dir.join("bin").join(name), *name).expect("a program");
                tar.arg(format!("bin/{name}"));
            }
            exec::run(&mut tar, Output::OnFailure).expect("tar runs");
            archive
        };
        let there = || WANTED.map(|name| ws.target.join("kube/bin").join(name).is_file());
        let error = unpack(&ws, &pack(&["kubectl"])).expect_err("no API server");
        assert!(error.to_string().contains("bin/kube-apiserver"), "{error}");
        assert_eq!(there(), [false, false]);
        unpack(&ws, &pack(&WANTED)).expect("all that is wanted");
        assert_eq!(there(), [true, true]);
        unpack(&ws, &pack(&["kubectl"])).expect_err("no API server, and newer");
        assert_eq!(there(), [true, true]);
        assert!(!ws.target.join("kube.new").exists());
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
