//! Downloads and unpacks packages without installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::lists::{self, Lists, Suite};
use super::retry::with_lists_anew;
use crate::exec::{self, Output};
use crate::workspace::Workspace;

/// Downloads `package` from the suites that this machine uses.
///
/// It uses the machine's package lists as long as they work, then lists of xtask's own.
pub(crate) fn download(ws: &Workspace, package: &str) -> Result<PathBuf> {
    let own = Lists::own(ws)?;
    let attempt = || {
        let machines = lists::machines();
        let options = if own.are_there() {
            &own.options
        } else {
            &machines
        };
        fetch(&ws.downloads(), options, package, None)
    };
    with_lists_anew(attempt, || own.read())
        .with_context(|| format!("cannot download Debian's package {package}"))
}

/// Downloads one version of `package` from a suite of Debian that the machine need not use (`bookworm`, `bookworm/arm64`).
pub(crate) fn download_from(
    ws: &Workspace,
    suite: &str,
    package: &str,
    version: &str,
) -> Result<PathBuf> {
    let lists = Suite::new(ws, suite)?;
    // Packages of two architectures differ at the end of their names only.
    let dir = match lists.architecture {
        Some(architecture) => ws.downloads().join(architecture),
        None => ws.downloads(),
    };
    let attempt = || {
        lists.ready()?;
        fetch(&dir, &lists.lists.options, package, Some(version))
    };
    with_lists_anew(attempt, || lists.read())
        .with_context(|| format!("no archive of apt's serves {package} {version} in {suite}"))
}

/// A function that returns the archive's index paragraph of the newest package with a name.
pub(crate) type Show<'s> = dyn Fn(&str) -> Result<String> + 's;

/// Queries the current contents of `suite`: its package lists are read each time.
pub(crate) fn ask<T>(
    ws: &Workspace,
    suite: &str,
    questions: impl FnOnce(&Show<'_>) -> Result<T>,
) -> Result<T> {
    let lists = Suite::new(ws, suite)?;
    lists.read()?;
    questions(&|package| {
        let mut show = Command::new("apt-cache");
        show.args(&lists.lists.options)
            .args(["--no-all-versions", "show", package]);
        exec::read(&mut show)
            .with_context(|| format!("no archive of apt's serves {package} in {suite}"))
    })
}

/// Runs `apt-get download` into `dir`, unless the file is there.
fn fetch(dir: &Path, options: &[String], package: &str, version: Option<&str>) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let wanted = version.map_or_else(|| package.to_owned(), |one| format!("{package}={one}"));
    let mut download = Command::new("apt-get");
    download
        .args(options)
        .args(["-q", "download", &wanted])
        .current_dir(dir);
    exec::run(&mut download, Output::OnFailure)?;
    let prefix = prefix(package, version);
    newest(dir, &prefix).with_context(|| format!("apt left no {prefix}*.deb in {}", dir.display()))
}

/// Returns the beginning of apt's file name for a package: the colon of an epoch is escaped.
fn prefix(package: &str, version: Option<&str>) -> String {
    version.map_or_else(
        || format!("{package}_"),
        |version| format!("{package}_{}_", version.replace(':', "%3a")),
    )
}

fn newest(dir: &Path, prefix: &str) -> Option<PathBuf> {
    fs::read_dir(dir)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(prefix) && name.ends_with(".deb")
        })
        .max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok())
        .map(|entry| entry.path())
}

/// Fails if a package is not the pinned one.
pub(crate) fn verify(deb: &Path, sha256: &str) -> Result<()> {
    let sum = exec::read(Command::new("sha256sum").arg(deb))?;
    if sum.split_whitespace().next() != Some(sha256) {
        bail!(
            "{} has another sha256 than {sha256}: remove it and try again",
            deb.display()
        );
    }
    Ok(())
}

/// Unpacks `debs` together to `to`, completely or not at all.
pub(crate) fn unpack(debs: &[PathBuf], to: &Path) -> Result<()> {
    let half = to.with_extension("new");
    let _ = fs::remove_dir_all(&half);
    fs::create_dir_all(&half).with_context(|| format!("cannot make {}", half.display()))?;
    for deb in debs {
        exec::run(
            Command::new("dpkg").arg("-x").arg(deb).arg(&half),
            Output::OnFailure,
        )?;
    }
    let _ = fs::remove_dir_all(to);
    fs::rename(&half, to).with_context(|| format!("cannot make {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_that_was_downloaded_before_is_not_taken_for_the_wanted_one() {
        let dir = std::env::temp_dir().join(format!("xtask-debs-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        for name in [
            "uml_1%3a6.1_amd64.deb",
            "uml_7_amd64.deb",
            "uml-doc_9_all.deb",
        ] {
            fs::write(dir.join(name), "").expect("write");
        }
        let found = newest(&dir, &prefix("uml", Some("1:6.1")));
        assert_eq!(found, Some(dir.join("uml_1%3a6.1_amd64.deb")));
        assert_eq!(newest(&dir, &prefix("uml", Some("8"))), None);
        let any = newest(&dir, &prefix("uml", None)).expect("one of two");
        assert!(!any.ends_with("uml-doc_9_all.deb"));
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
