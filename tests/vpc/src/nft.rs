//! nftables, where the kernel has nf_tables: Debian's kernels do, user-mode Linux does not.

use anyhow::Result;

use crate::{
    netns::Netns,
    process::feed,
    skip::{Need, skip},
    snapshot::run,
};

/// Runs an nft script, all of it or nothing.
///
/// # Errors
/// If nft fails; the error has its output and the script.
pub fn restore(netns: &Netns, script: &str) -> Result<()> {
    let mut command = netns.command("nft");
    command.args(["-f", "-"]);
    feed(command, netns, script)
}

/// Whether nft is installed and the kernel accepts its rules. If not, the test is [`skip`]ped.
#[must_use]
pub fn is_here(netns: &Netns) -> bool {
    let table = "add table inet any { chain post { type nat hook postrouting priority 100; }; }";
    let checked = run(netns, "nft", &["--check", table]);
    if let Err(reason) = &checked {
        // nft quotes the script and marks the place of an error, on lines of their own.
        let reason = format!("{reason:#}");
        let reason = reason.lines().next().unwrap_or_default();
        skip(
            Need::Nft,
            format_args!("no nft, or not in this kernel: {reason}"),
        );
    }
    checked.is_ok()
}
