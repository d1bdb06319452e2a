//! `build-ebpf`: compiles the eBPF programs to BPF objects with BTF.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cargo;
use crate::exec::Output;
use crate::remap;
use crate::setup::{linker, rust_src};
use crate::workspace::Workspace;

/// The package and its binaries, each an object file.
const PACKAGE: &str = "ebbtide-ebpf";
const OBJECTS: [&str; 3] = ["ebbtide", "trace", "strict-vpc"];
const TARGET: &str = "bpfel-unknown-none";
/// The profile in the root Cargo.toml.
const PROFILE: &str = "ebpf";

/// The compiler flags of every crate of the build; bpf-linker makes BTF from the debug information. The objects are the
/// same for all architectures of 64 bits, little-endian; the one that is named here is for probes, and there are none.
const RUSTFLAGS: [&str; 3] = [
    r#"--cfg=bpf_target_arch="x86_64""#,
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
];

/// Builds the objects, and copies those that changed to `target/ebpf`.
pub(crate) fn run(ws: &Workspace, output: Output) -> Result<()> {
    let mut build = for_kernel(ws, "build")?;
    build.args(["--profile", PROFILE]);
    cargo::run(&mut build, output)?;
    let built = build_dir(ws).join(TARGET).join(PROFILE);
    fs::create_dir_all(ws.ebpf())
        .with_context(|| format!("cannot make {}", ws.ebpf().display()))?;
    for object in OBJECTS {
        copy_if_changed(&built.join(object), &ws.ebpf().join(object))?;
    }
    Ok(())
}

/// Runs clippy on the eBPF crate for its own target: on the host its panic handler conflicts with std's.
pub(crate) fn clippy(ws: &Workspace, output: Output) -> Result<()> {
    let mut clippy = for_kernel(ws, "clippy")?;
    clippy.args(["--profile", PROFILE, "--", "-D", "warnings"]);
    cargo::run(&mut clippy, output)
}

/// Returns a cargo command that compiles the package for the kernel, with `core` from source.
fn for_kernel(ws: &Workspace, command: &str) -> Result<Command> {
    let linker = linker::ensure(ws)?;
    let source = rust_src::ensure(ws)?;
    let mut flags = RUSTFLAGS.map(str::to_owned).to_vec();
    flags.extend(remap::for_kernel(ws));
    flags.extend(source.flags(ws)?);
    let mut build = ws.cargo(command);
    build
        .args(["--locked", "--package", PACKAGE, "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(build_dir(ws))
        // Allows -Z on a stable compiler: there is no prebuilt `core` for this target.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    source.apply(&mut build);
    Ok(build)
}

/// Returns the build directory. It is a separate one, since the flags differ from the host's, and the host's lock would
/// be waited for.
fn build_dir(ws: &Workspace) -> std::path::PathBuf {
    ws.target.join("ebpf-build")
}

/// Copies a file only if it differs: the agent embeds the object and is rebuilt when its time changes.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    // Renamed into place, so that a concurrent build sees the old or the new object, never a part.
    let half = to.with_extension("new");
    fs::write(&half, new)
        .and_then(|()| fs::rename(&half, to))
        .with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let dir = std::env::temp_dir().join(format!("xtask-copy-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::write(&from, "one").expect("write");
        copy_if_changed(&from, &to).expect("first copy");
        let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).expect("time");
        let first = time(&to);
        copy_if_changed(&from, &to).expect("same content");
        assert_eq!(time(&to), first);
        fs::write(&from, "two").expect("write");
        copy_if_changed(&from, &to).expect("other content");
        assert_eq!(fs::read(&to).expect("read"), b"two");
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
