//! Programs that cargo builds from crates.io, each at exactly one version.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::cargo;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// A crate with a program of the same name.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Program {
    /// Returns the program's path, after building it if it is missing.
    pub(crate) fn ensure(&self, ws: &Workspace) -> Result<PathBuf> {
        let Self { name, version } = self;
        let path = ws.tools().join("bin").join(name);
        if !path.exists() {
            let mut install =
                Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            install
                .args([
                    "install",
                    "--locked",
                    // It runs for seconds, and an unoptimised build takes half the time.
                    "--debug",
                    &format!("{name}@{version}"),
                    "--root",
                ])
                .arg(ws.tools())
                .current_dir(&ws.root)
                .env("CARGO_TARGET_DIR", ws.target.join("tools-build"));
            ui::step(&format!("build {name} {version}"), || {
                cargo::run(&mut install, Output::OnFailure)
            })?;
        }
        let said = exec::read(Command::new(&path).arg("--version"))?;
        if said.split_whitespace().nth(1) != Some(version) {
            bail!(
                "{} is `{}`, but {version} is needed: remove it, and setup builds the right one",
                path.display(),
                said.trim()
            );
        }
        Ok(path)
    }
}
