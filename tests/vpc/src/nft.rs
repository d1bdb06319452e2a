//! nft, where the kernel has nf_tables: Debian's have, user-mode Linux has not.

use anyhow::Result;

use crate::{
    netns::Netns,
    process::feed,
    skip::{Need, skip},
    snapshot::run,
};

/// Runs a script of nft's, all of it or nothing.
///
/// # Errors
/// What nft said, with the script.
pub fn restore(netns: &Netns, script: &str) -> Result<()> {
    let mut command = netns.command("nft");
    command.args(["-f", "-"]);
    feed(command, netns, script)
}

/// Whether there is an nft, and a kernel that takes what it says; if not, the test is [`skip`]ped.
#[must_use]
pub fn is_here(netns: &Netns) -> bool {
    let table = "add table inet any { chain post { type nat hook postrouting priority 100; }; }";
    let checked = run(netns, "nft", &["--check", table]);
    if let Err(reason) = &checked {
        // nft shows the place in what it was given, on lines of their own.
        let reason = format!("{reason:#}");
        let reason = reason.lines().next().unwrap_or_default();
        skip(
            Need::Nft,
            format_args!("no nft, or not in this kernel: {reason}"),
        );
    }
    checked.is_ok()
}
