//! Debian's archive: programs are installed when we are root, everything else is only downloaded
//! and unpacked below the target directory, which needs no root.
//!
//! The archive's address always comes from apt's own configuration. apt verifies what it downloads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// A program and the package that brings it.
type Program = (&'static str, &'static str);

/// What is used inside a guest (its root file system is this machine's), and to unpack kernels.
pub(crate) const GUEST: &[Program] = &[
    ("ip", "iproute2"),
    ("xtables-legacy-multi", "iptables"),
    ("ping", "iputils-ping"),
    ("depmod", "kmod"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
];

/// What a guest under QEMU needs besides.
pub(crate) const QEMU: &[Program] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
];

/// What a node of a cluster is made of, besides Kubernetes' own programs.
pub(crate) const NODE: &[Program] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("conntrack", "conntrack"),
    ("etcd", "etcd-server"),
    ("busybox", "busybox-static"),
];

/// What people use today, for `bench`.
pub(crate) const PEERS: &[Program] = &[
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
    ("/usr/sbin/xtables-nft-multi", "iptables"),
];

/// Installs the packages of the programs that are missing; a name with a slash is a file's.
pub(crate) fn programs(ws: &Workspace, wanted: &[Program]) -> Result<()> {
    let is_there = |program: &str| match program.contains('/') {
        true => Path::new(program).is_file(),
        false => exec::find(program).is_some(),
    };
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !exec::is_root()? {
        bail!(
            "programs of these Debian packages are missing: run as root: apt-get install {packages}"
        );
    }
    ui::note(format_args!("setup: installing {packages}"));
    if !missing.iter().all(|package| is_known(&[], package)) {
        exec::run(
            Command::new("apt-get").args(["-q", "update"]),
            Output::OnFailure,
        )?;
    }
    let mut install = Command::new("apt-get");
    install
        .args(["-qy", "--no-install-recommends", "install"])
        .args(&missing);
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(&ws.target);
    exec::run(&mut install, Output::OnFailure)
}

/// apt options that put what changes (lists, cache) below `dir`: no root, nothing else touched.
fn private(dir: &Path) -> Result<Vec<String>> {
    let (lists, cache) = (dir.join("lists"), dir.join("cache"));
    for part in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    }
    Ok(vec![
        format!("-oDir::State::Lists={}", lists.display()),
        format!("-oDir::Cache={}", cache.display()),
        // the unprivileged user of a root's apt cannot write below our directory
        "-oAPT::Sandbox::User=root".to_owned(),
    ])
}

fn is_known(options: &[String], package: &str) -> bool {
    let mut show = Command::new("apt-cache");
    exec::read(
        show.args(options)
            .args(["--no-all-versions", "show", package]),
    )
    .is_ok_and(|text| text.contains("\nFilename:"))
}

/// apt options with which `package` is known: the machine's own lists, or else private ones.
fn options_for(ws: &Workspace, package: &str) -> Result<Vec<String>> {
    if is_known(&[], package) {
        return Ok(vec!["-oAPT::Sandbox::User=root".to_owned()]);
    }
    let options = private(&ws.target.join("apt/system"))?;
    if !is_known(&options, package) {
        ui::note("setup: reading the package lists of Debian's archive");
        exec::run(
            Command::new("apt-get")
                .args(&options)
                .args(["-q", "update"]),
            Output::OnFailure,
        )?;
    }
    Ok(options)
}

/// Downloads `package` from the suites that this machine uses.
pub(crate) fn download(ws: &Workspace, package: &str) -> Result<PathBuf> {
    let options = options_for(ws, package)?;
    fetch(ws, &options, package, package)
}

/// Downloads one version of `package` from a suite of Debian that the machine need not use.
pub(crate) fn download_from(
    ws: &Workspace,
    suite: &str,
    package: &str,
    version: &str,
) -> Result<PathBuf> {
    with_suite(ws, suite, |options| {
        fetch(ws, options, package, &format!("{package}={version}"))
    })
    .with_context(|| format!("no archive of apt's serves {package} {version} in {suite}"))
}

/// What the archive says of the newest `package` in `suite`: the paragraph of its index.
pub(crate) fn show_from(ws: &Workspace, suite: &str, package: &str) -> Result<String> {
    with_suite(ws, suite, |options| {
        exec::read(Command::new("apt-cache").args(options).args([
            "--no-all-versions",
            "show",
            package,
        ]))
    })
    .with_context(|| format!("no archive of apt's serves {package} in {suite}"))
}

/// Does `work` with the apt options for a suite that the machine need not use, of each archive
/// that it knows until one will do.
fn with_suite<T>(ws: &Workspace, suite: &str, work: impl Fn(&[String]) -> Result<T>) -> Result<T> {
    let known = exec::read(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(SIGNED_BY)",
        "Created-By: Packages",
    ]))?;
    let archives = archives(&known);
    if archives.is_empty() {
        bail!("apt has no source of packages: see /etc/apt/sources.list");
    }
    let dir = ws.target.join("apt").join(suite);
    let mut options = private(&dir)?;
    let list = dir.join("sources.list");
    options.push(format!("-oDir::Etc::SourceList={}", list.display()));
    options.push("-oDir::Etc::SourceParts=/dev/null".to_owned());
    // what is installed on this machine is no version that an archive serves
    options.push("-oDir::State::Status=/dev/null".to_owned());
    let mut last = None;
    for (address, key) in archives {
        let signed = key.map_or_else(String::new, |key| format!("[signed-by={key}] "));
        fs::write(&list, format!("deb {signed}{address} {suite} main\n"))
            .with_context(|| format!("cannot write {}", list.display()))?;
        let mut update = Command::new("apt-get");
        update
            .args(&options)
            .args(["-q", "-oAPT::Update::Error-Mode=any", "update"]);
        match exec::run(&mut update, Output::OnFailure).and_then(|()| work(&options)) {
            Ok(result) => return Ok(result),
            Err(error) => last = Some(error),
        }
    }
    Err(last.with_context(|| format!("no archive was asked for {suite}"))?)
}

/// Addresses (and keyrings) from `apt-get indextargets`, each once, the plain archive first.
fn archives(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut found: Vec<(&str, Option<&str>)> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else {
            continue;
        };
        if !found.iter().any(|(known, _)| *known == address) {
            found.push((address, words.next().filter(|key| key.starts_with('/'))));
        }
    }
    found.sort_by_key(|(address, _)| !address.trim_end_matches('/').ends_with("/debian"));
    found
}

/// `apt-get download` into the cache; what is there already is not fetched again.
fn fetch(ws: &Workspace, options: &[String], package: &str, wanted: &str) -> Result<PathBuf> {
    let dir = ws.downloads();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut download = Command::new("apt-get");
    download
        .args(options)
        .args(["-q", "download", wanted])
        .current_dir(&dir);
    exec::run(&mut download, Output::OnFailure)?;
    newest(&dir, package)
}

fn newest(dir: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".deb")
        })
        .max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok())
        .map(|entry| entry.path())
        .with_context(|| format!("apt left no {prefix}*.deb in {}", dir.display()))
}

/// Refuses a package that is not the one that was pinned.
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

/// Unpacks `debs` together as `to`, whole or not at all.
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
    fn each_archive_is_asked_once_and_the_plain_one_first() {
        let text = "http://a/debian-security/ /k.gpg\nhttp://a/debian/ /k.gpg\nhttp://a/debian/ \n";
        assert_eq!(
            archives(text),
            [
                ("http://a/debian/", Some("/k.gpg")),
                ("http://a/debian-security/", Some("/k.gpg"))
            ]
        );
    }
}
