//! Debian's compiler for arm64 on an x86-64 machine, a kernel and programs for arm64: packages in `xtask/arm64.pins`, unpacked below the target directory.
//!
//! An unpacked compiler finds its own parts beside itself, but neither the C library nor the libraries that its assembler
//! and linker are made of: these are looked for where they would be installed. A script tells it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::kernels::{self, Kernel};
use super::pinned::Pins;
use super::script;
use crate::exec;
use crate::vm::arm64;
use crate::workspace::Workspace;

/// The pins with which this xtask was built.
pub(super) const PINS: Pins = Pins {
    file: "xtask/arm64.pins",
    text: include_str!("../../arm64.pins"),
    below: "cross",
};

/// The programs of the compiler that a build calls.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// Compiles and links.
    pub(crate) cc: PathBuf,
    /// Makes static libraries.
    pub(crate) ar: PathBuf,
}

/// Returns the compiler, after getting it if it is missing.
pub(crate) fn ensure(ws: &Workspace) -> Result<Toolchain> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("Debian's packages of a compiler for arm64 that are pinned run on x86-64 only");
    }
    let root = PINS.get(ws, "gcc")?;
    let toolchain = Toolchain {
        cc: root.join("cc"),
        ar: root.join("ar"),
    };
    script::write(&toolchain.cc, &compiler(&root))?;
    script::write(&toolchain.ar, &archiver(&root))?;
    Ok(toolchain)
}

/// Returns Debian's kernel for arm64.
pub(crate) fn kernel(ws: &Workspace) -> Result<Kernel> {
    kernels::unpacked(&PINS.get(ws, "kernel")?)
}

/// Returns a directory with a shell, ip and iptables for arm64.
pub(crate) fn root(ws: &Workspace) -> Result<PathBuf> {
    let root = PINS.get(ws, "root")?;
    arm64::check(&root)?;
    Ok(root)
}

/// Returns the version of the C library that is linked.
pub(crate) fn libc() -> Result<&'static str> {
    PINS.version("libc6-dev-arm64-cross")
}

/// Returns the script that calls the compiler.
fn compiler(root: &Path) -> String {
    let path = |below: &str| exec::quote(&root.join(below).to_string_lossy());
    let (bin, lib, include) = (
        path("usr/aarch64-linux-gnu/bin/"),
        path("usr/aarch64-linux-gnu/lib/"),
        path("usr/aarch64-linux-gnu/include"),
    );
    // After `-B` a directory has to end with a slash: it is a prefix.
    format!(
        "{}exec {} -B{bin} -B{lib} -L{lib} -isystem {include} \"$@\"\n",
        head(root),
        path("usr/bin/aarch64-linux-gnu-gcc-12")
    )
}

/// Returns the script that calls the archiver.
fn archiver(root: &Path) -> String {
    let ar = root.join("usr/bin/aarch64-linux-gnu-ar");
    format!(
        "{}exec {} \"$@\"\n",
        head(root),
        exec::quote(&ar.to_string_lossy())
    )
}

fn head(root: &Path) -> String {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    format!(
        "#!/bin/sh\nexport LD_LIBRARY_PATH={}\n",
        exec::quote(&libraries.to_string_lossy())
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_scripts_survive_a_directory_with_a_space_and_pass_arguments_on() {
        let dir = std::env::temp_dir().join(format!("xtask cross {}", std::process::id()));
        let bin = dir.join("usr/bin");
        fs::create_dir_all(&bin).expect("temporary directory");
        script::write(
            &bin.join("aarch64-linux-gnu-gcc-12"),
            "#!/bin/sh\nfor one; do echo \"$one\"; done; echo \"$LD_LIBRARY_PATH\"\n",
        )
        .expect("write");
        let cc = dir.join("cc");
        script::write(&cc, &compiler(&dir)).expect("write");
        let said =
            exec::read(std::process::Command::new(&cc).args(["-c", "a b.c"])).expect("it runs");
        let lines: Vec<&str> = said.lines().collect();
        let root = dir.to_string_lossy();
        assert!(
            lines.contains(&format!("-B{root}/usr/aarch64-linux-gnu/lib/").as_str()),
            "{said}"
        );
        assert!(lines.ends_with(&[
            "-c",
            "a b.c",
            format!("{root}/usr/lib/x86_64-linux-gnu").as_str()
        ]));
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
