//! `image`: packs the container image from scratch: three static programs in one layer, as an OCI archive.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use xtask::oci::{self, Entry, Image};

use crate::exec::Output;
use crate::workspace::Workspace;
use crate::{build, build_ebpf, ui};

/// The programs in the image, all in [`BIN`].
const PROGRAMS: [&str; 3] = ["ebbtide", "ebbtide-agent", "ebbtidectl"];
const BIN: &str = "usr/local/bin";

/// Options of `image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the archive goes
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image's name and tag
    #[arg(long, value_name = "NAME:TAG", default_value = DEFAULT_NAME)]
    name: String,
    /// Pack what is in target/release, as it is
    #[arg(long)]
    no_build: bool,
}

/// The image's name as in the manifests.
const DEFAULT_NAME: &str = concat!("ghcr.io/ebbtide/ebbtide:v", env!("CARGO_PKG_VERSION"));

/// Builds and packs the programs.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if !options.no_build {
        build_ebpf::run(ws, Output::Show)?;
        build::agent(ws, Output::Show)?;
        build::plugin(ws, Output::Show)?;
    }
    let output = options.output.clone().unwrap_or_else(|| default_output(ws));
    let image = pack(ws, &options.name)?;
    write(&output, &image.archive)?;
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    ui::line(format_args!(
        "{}\n  {}, layer {} ({} unpacked)\n  {}",
        ws.shown(&output),
        options.name,
        mib(image.layer),
        mib(image.unpacked),
        image.digest
    ));
    Ok(())
}

/// Packs the built programs for the tests.
pub(crate) fn for_tests(ws: &Workspace) -> Result<()> {
    write(&default_output(ws), &pack(ws, DEFAULT_NAME)?.archive)
}

/// Returns the default path of the archive.
fn default_output(ws: &Workspace) -> PathBuf {
    ws.target.join("image/ebbtide.tar")
}

fn pack(ws: &Workspace, name: &str) -> Result<Image> {
    let mut entries = vec![
        // The runtime mounts over these directories, and the root is read-only.
        Entry::directory("etc"),
        Entry::directory("run"),
        Entry::directory("tmp"),
        Entry::directory("usr"),
        Entry::directory("usr/local"),
        Entry::directory(BIN),
        Entry::directory("var"),
        // Runtimes name network namespaces /var/run/netns/...
        Entry::link("var/run", "../run"),
    ];
    for program in PROGRAMS {
        let path = ws.release().join(program);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !is_static(&bytes) {
            bail!(
                "{} wants a dynamic loader, and there is none in the image",
                path.display()
            );
        }
        entries.push(Entry::program(format!("{BIN}/{program}"), bytes));
    }
    let config = json!({
        "Entrypoint": [format!("/{BIN}/ebbtide-agent")],
        "Cmd": ["run"],
        "Env": [format!("PATH=/{BIN}")],
        "Labels": labels(),
    });
    oci::image(&entries, &config, name)
}

fn labels() -> Value {
    json!({
        "org.opencontainers.image.title": "ebbtide",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
    })
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
    fn a_program_with_a_loader_is_told_from_one_without() {
        // The test's own program has a loader.
        let own = fs::read("/proc/self/exe").expect("our own program");
        assert!(!is_static(&own));
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(&own[..40]));
    }
}
