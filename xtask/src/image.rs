//! `image`: packs the container image from scratch: for each architecture three static programs in one layer, with the list
//! of what is linked into each, as an OCI archive.
//!
//! The lists (SBOM) are files of the layer, not referrers: a referrer is an object of its own that `docker load`,
//! `ctr images import` and a plain copy to another registry leave behind, while scanners find a file wherever the image
//! went, and the image's digest covers it. Beside the archive are the same files.

mod about;
mod contents;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use xtask::oci::{self, Entry, Image, Source};

use crate::arch::Arch;
use crate::build::STATIC;
use crate::exec::Output;
use crate::workspace::Workspace;
use crate::{build, build_ebpf, ui};

/// The directory of the programs in the image, and that of the lists of what is in them.
const BIN: &str = "usr/local/bin";
const SBOM: &str = "usr/local/share/sbom";

/// Options of `image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the archive goes
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image's name and tag
    #[arg(long, value_name = "NAME:TAG", default_value = DEFAULT_NAME)]
    name: String,
    /// The architectures, with commas; several make an index [default: this machine's]
    #[arg(long, value_enum, value_delimiter = ',')]
    arch: Vec<Arch>,
    /// Pack what was built before, as it is
    #[arg(long)]
    no_build: bool,
}

/// The image's name as in the manifests. Nobody publishes it: it is a name to import under, and to replace.
const DEFAULT_NAME: &str = concat!("ghcr.io/ebbtide/ebbtide:v", env!("CARGO_PKG_VERSION"));

/// Builds and packs the programs.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    let arches = distinct(&options.arch)?;
    if !options.no_build {
        build_ebpf::run(ws, Output::Show)?;
        for arch in &arches {
            build::agent(ws, *arch, Output::Show)?;
            build::plugin(ws, *arch, Output::Show)?;
        }
    }
    let output = options.output.clone().unwrap_or_else(|| default_output(ws));
    let image = pack(ws, &arches, &options.name, &output)?;
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let layers: Vec<String> = arches
        .iter()
        .zip(&image.layers)
        .map(|(arch, layer)| {
            format!(
                "{} {} ({} unpacked)",
                arch.name(),
                mib(layer.compressed),
                mib(layer.unpacked)
            )
        })
        .collect();
    ui::line(format_args!(
        "{}\n  {}, {}\n  {}",
        ws.shown(&output),
        options.name,
        layers.join(", "),
        image.digest
    ));
    Ok(())
}

/// Packs the built programs for the tests.
pub(crate) fn for_tests(ws: &Workspace) -> Result<()> {
    pack(ws, &[Arch::here()?], DEFAULT_NAME, &default_output(ws)).map(drop)
}

/// Returns the wanted architectures, each once, in an order that does not depend on how they were asked for.
fn distinct(wanted: &[Arch]) -> Result<Vec<Arch>> {
    if wanted.is_empty() {
        return Ok(vec![Arch::here()?]);
    }
    let all = [Arch::Amd64, Arch::Arm64].into_iter();
    Ok(all.filter(|arch| wanted.contains(arch)).collect())
}

/// Returns the default path of the archive.
fn default_output(ws: &Workspace) -> PathBuf {
    ws.target.join("image/ebbtide.tar")
}

/// Writes the archive, and the lists of what is in the programs beside it.
fn pack(ws: &Workspace, arches: &[Arch], name: &str, output: &Path) -> Result<Image> {
    let mut layers = Vec::new();
    for arch in arches {
        layers.push((arch.name(), layer(ws, *arch, output)?));
    }
    let (annotations, created) = about::annotations(ws)?;
    let image = oci::pack(&Source {
        name,
        layers,
        config: json!({
            "Entrypoint": [format!("/{BIN}/ebbtide-agent")],
            "Cmd": ["run"],
            "Env": [format!("PATH=/{BIN}")],
            "Labels": annotations,
        }),
        annotations,
        created,
    })?;
    write(output, &image.archive)?;
    Ok(image)
}

/// Returns the entries of an architecture's layer.
fn layer(ws: &Workspace, arch: Arch, output: &Path) -> Result<Vec<Entry>> {
    let mut entries = vec![
        // The runtime mounts over these directories, and the root is read-only.
        Entry::directory("etc"),
        Entry::directory("run"),
        Entry::directory("tmp"),
        Entry::directory("usr"),
        Entry::directory("usr/local"),
        Entry::directory(BIN),
        Entry::directory("usr/local/share"),
        Entry::directory(SBOM),
        Entry::directory("var"),
        // Runtimes name network namespaces /var/run/netns/...
        Entry::link("var/run", "../run"),
    ];
    for program in STATIC {
        let path = arch.release(ws).join(program);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !is_static(&bytes) {
            bail!(
                "{} wants a dynamic loader, and there is none in the image",
                path.display()
            );
        }
        entries.push(Entry::program(format!("{BIN}/{program}"), bytes));
    }
    for (program, text) in contents::of(ws, arch)? {
        let file = format!("{program}.{}", sbom::SUFFIX);
        write(
            &output.with_extension("sbom").join(arch.name()).join(&file),
            &text,
        )?;
        entries.push(Entry::file(format!("{SBOM}/{file}"), text));
    }
    Ok(entries)
}

/// Whether a 64-bit little-endian ELF file has no PT_INTERP segment (elf(5)).
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |offset: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(offset..offset.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |n, byte| n << 8 | u64::from(*byte)),
        )
    };
    let segments = || -> Option<Vec<u64>> {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|index| number(usize::try_from(start + index * size).ok()?, 4))
            .collect()
    };
    elf.starts_with(b"\x7fELF\x02\x01") && segments().is_some_and(|all| !all.contains(&PT_INTERP))
}

/// Writes a file completely or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let half = path.with_extension("new");
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(&half, bytes))
        .and_then(|()| fs::rename(&half, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_packed_once_and_in_one_order() {
        let (amd64, arm64) = (Arch::Amd64, Arch::Arm64);
        assert_eq!(
            distinct(&[arm64, amd64, arm64]).expect("two"),
            [amd64, arm64]
        );
        assert_eq!(distinct(&[arm64]).expect("one"), [arm64]);
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        // The test's own program has a loader.
        let own = fs::read("/proc/self/exe").expect("our own program");
        assert!(!is_static(&own));
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(&own[..40]));
    }
}
