//! iptables of the old kind: user-mode Linux has no nf_tables.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{netns::Netns, plan::Family, process::feed};

/// Adds the rules of an `iptables-restore` script to those that are there, in one go.
///
/// # Errors
/// What iptables said, with the script.
pub fn restore(netns: &Netns, family: Family, script: &str) -> Result<()> {
    let program = match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    };
    restore_with(program, netns, script)
}

/// As [`restore`], by the program of this name.
///
/// # Errors
/// What it said, with the script.
pub fn restore_with(program: &str, netns: &Netns, script: &str) -> Result<()> {
    let mut command = command(netns, program)?;
    command.arg("--noflush");
    feed(command, netns, script)
}

/// The rules of one table, with counters, for messages.
///
/// # Errors
/// What iptables said.
pub fn save(netns: &Netns, family: Family, table: &str) -> Result<String> {
    let program = match family {
        Family::V4 => "iptables-legacy-save",
        Family::V6 => "ip6tables-legacy-save",
    };
    let output = command(netns, program)?
        .args(["-c", "-t", table])
        .output()
        .with_context(|| format!("running {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command(netns: &Netns, program: &str) -> Result<Command> {
    let mut command = netns.command(program);
    command.env("XTABLES_LOCKFILE", netns.xtables_lock()?);
    Ok(command)
}
