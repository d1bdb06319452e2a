//! iptables of the old kind: user-mode Linux has no nf_tables.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{netns::Netns, plan::Family};

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
    let mut child = command(netns, program)?
        .arg("--noflush")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program} (Debian's package iptables)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(script.as_bytes())
            .with_context(|| format!("feeding {program}"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} in {}: {}{script}",
            netns.name(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
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
