//! Shell completions and manual pages, of the same definitions as the help texts.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::{Cli, kubectl};

/// Returns the completions for a shell.
pub(super) fn completions(shell: Shell) -> anyhow::Result<String> {
    let mut text = Vec::new();
    generate(shell, &mut Cli::command(), "ebbtidectl", &mut text);
    String::from_utf8(text).context("make the completions")
}

/// Writes the manual pages of `ebbtidectl`, of each of its commands, and of the plugin of kubectl. Says where.
pub(super) fn manual(dir: &Path) -> anyhow::Result<String> {
    fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))?;
    let plugin = kubectl::Cli::command().name(kubectl::NAME);
    for command in [Cli::command(), plugin] {
        clap_mangen::generate_to(command, dir)
            .with_context(|| format!("write manual pages into {}", dir.display()))?;
    }
    Ok(format!("manual pages are in {}\n", dir.display()))
}
