//! What is linked into each program: asked of cargo, and of what the programs are linked with.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::sbom::{self, Library, Tree};
use crate::arch::Arch;
use crate::exec;
use crate::setup::cross;
use crate::workspace::Workspace;

/// The programs, their packages, and whether they carry the kernel's programs.
const PROGRAMS: [(&str, &str, bool); 3] = [
    ("ebbtide", "ebbtide-plugin", false),
    ("ebbtide-agent", "ebbtide-agent", true),
    ("ebbtidectl", "ebbtide-agent", false),
];

/// Returns the list for each program, as JSON.
pub(super) fn of(ws: &Workspace, arch: Arch) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let lock = ws.root.join("Cargo.lock");
    let lock =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let checksums = sbom::checksums(&lock);
    let libraries = libraries(ws, arch)?;
    PROGRAMS
        .iter()
        .map(|(program, package, has_ebpf)| {
            let mut tree = tree(ws, package, arch.target())?;
            if *has_ebpf {
                tree.embed(tree_of_the_kernel_s(ws)?);
            }
            Ok((*program, document(program, &tree, &checksums, &libraries)?))
        })
        .collect()
}

fn document(
    program: &str,
    tree: &Tree,
    checksums: &BTreeMap<String, String>,
    libraries: &[Library],
) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let value = sbom::document(program, version, tree, checksums, libraries);
    Ok(serde_json::to_vec_pretty(&value)?)
}

fn tree_of_the_kernel_s(ws: &Workspace) -> Result<Tree> {
    tree(ws, "ebbtide-ebpf", "bpfel-unknown-none")
}

/// Returns the crates that a package is built with for `target`.
fn tree(ws: &Workspace, package: &str, target: &str) -> Result<Tree> {
    let mut tree = ws.cargo("tree");
    tree.args(["--locked", "--package", package, "--target", target])
        .args(sbom::TREE_OPTIONS);
    Tree::parse(&exec::read(&mut tree)?)
}

/// Returns what is linked and is no crate of `Cargo.lock`.
fn libraries(ws: &Workspace, arch: Arch) -> Result<Vec<Library>> {
    let rustc = exec::read(Command::new("rustc").arg("--version").current_dir(&ws.root))?;
    let rustc = rustc
        .split_whitespace()
        .nth(1)
        .context("rustc tells no version")?;
    let mut libraries = vec![Library {
        name: "rust-std",
        version: rustc.to_owned(),
        licence: "MIT OR Apache-2.0",
        purl: sbom::purl("generic", "rust-std", rustc),
    }];
    if let Some((purl, version)) = libc(arch)? {
        libraries.push(Library {
            name: "glibc",
            licence: "LGPL-2.1-or-later",
            purl,
            version,
        });
    }
    Ok(libraries)
}

/// Returns package URL and version of the C library, which is linked statically. Without dpkg and glibc it is not known.
fn libc(arch: Arch) -> Result<Option<(String, String)>> {
    if arch.is_foreign() {
        let version = cross::libc()?;
        let purl = sbom::purl("deb/debian", "libc6-dev-arm64-cross", version);
        return Ok(Some((purl, version.to_owned())));
    }
    let debian = exec::read(Command::new("dpkg-query").args(["-W", "-f=${Version}", "libc6-dev"]));
    if let Ok(version) = debian {
        return Ok(Some((
            sbom::purl("deb/debian", "libc6-dev", &version),
            version,
        )));
    }
    let plain = exec::read(Command::new("getconf").arg("GNU_LIBC_VERSION"));
    Ok(plain.ok().and_then(|text| {
        let version = text.trim().strip_prefix("glibc ")?.to_owned();
        Some((sbom::purl("generic", "glibc", &version), version))
    }))
}
