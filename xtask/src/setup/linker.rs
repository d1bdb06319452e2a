//! bpf-linker, at exactly one version.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::cargo;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// Older ones emit BTF that the kernel refuses (a union called `MaybeUninit<u32>`); newer ones
/// want another LLVM than the pinned compiler's.
const VERSION: &str = "0.10.4";

/// The linker's path; it is built first if it is missing.
pub(crate) fn ensure(ws: &Workspace) -> Result<PathBuf> {
    let path = ws.tools().join("bin/bpf-linker");
    if !path.exists() {
        let mut install = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        install
            .args([
                "install",
                "--locked",
                // What works long in it is the compiler's LLVM, which is there already: built without
                // optimisation it is there in half the time.
                "--debug",
                &format!("bpf-linker@{VERSION}"),
                "--root",
            ])
            .arg(ws.tools())
            .current_dir(&ws.root)
            .env("CARGO_TARGET_DIR", ws.target.join("tools-build"));
        ui::step(&format!("build bpf-linker {VERSION}"), || {
            cargo::run(&mut install, Output::OnFailure)
        })?;
    }
    let version = exec::read(Command::new(&path).arg("--version"))?;
    if version.split_whitespace().nth(1) != Some(VERSION) {
        bail!(
            "{} is `{}`, but {VERSION} is needed: remove it, and setup builds the right one",
            path.display(),
            version.trim()
        );
    }
    Ok(path)
}
