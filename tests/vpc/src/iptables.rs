//! iptables-legacy, because user-mode Linux has no nf_tables.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{netns::Netns, plan::Family, process::feed};

/// Adds the rules of an `iptables-restore` script to the existing ones, all or none.
///
/// # Errors
/// If iptables fails; the error has its output and the script.
pub fn restore(netns: &Netns, family: Family, script: &str) -> Result<()> {
    let program = match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    };
    restore_with(program, netns, script)
}

/// As [`restore`], with the program of this name.
///
/// # Errors
/// If it fails; the error has its output and the script.
pub fn restore_with(program: &str, netns: &Netns, script: &str) -> Result<()> {
    let mut command = command(netns, program)?;
    command.arg("--noflush");
    feed(command, netns, script)
}

/// Returns the rules of one table with their counters, for messages.
///
/// # Errors
/// If iptables fails; the error has its output.
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
