//! The contents of a namespace as `ip` prints them: a second implementation checks the agent's work.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

use crate::{netns::Netns, patience::eventually};

/// Links, addresses, routes of all tables, rules and neighbours, each as a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// The commands. Lines of links are cut to their names: indices and states may change.
const QUESTIONS: [&[&str]; 7] = [
    &["-brief", "link", "show"],
    &["-brief", "address", "show"],
    &["-4", "route", "show", "table", "all"],
    &["-6", "route", "show", "table", "all"],
    &["-4", "rule", "show"],
    &["-6", "rule", "show"],
    &["neighbour", "show", "nud", "permanent"],
];

impl Snapshot {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for question in QUESTIONS {
            let text = ip(netns, question)?;
            lines.extend(text.lines().filter(|line| !comes_late(line)).map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let words: Vec<&str> = match question {
                    ["-brief", "link", ..] => words[..1].to_vec(),
                    // A carrier, and with it the kernel's own link-local address, comes later.
                    ["-brief", "address", ..] => words
                        .into_iter()
                        .enumerate()
                        .filter(|(place, word)| *place != 1 && !word.starts_with("fe80:"))
                        .map(|(_, word)| word)
                        .collect(),
                    _ => words,
                };
                format!("{}: {}", question.join(" "), words.join(" "))
            }));
        }
        Ok(Self(lines))
    }

    /// Returns its lines.
    #[must_use]
    pub fn into_lines(self) -> BTreeSet<String> {
        self.0
    }

    /// Whether any line contains this text.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }

    /// Returns the names of the links with this prefix.
    #[must_use]
    pub fn links(&self, prefix: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter_map(|line| line.strip_prefix("-brief link show: "))
            .filter(|name| name.starts_with(prefix))
            .collect()
    }

    /// Asserts that `later` is equal.
    ///
    /// # Errors
    /// If anything changed; the error lists what is gone and what is new.
    pub fn assert_same(&self, later: &Self) -> Result<()> {
        let gone: Vec<_> = self.0.difference(&later.0).collect();
        let new: Vec<_> = later.0.difference(&self.0).collect();
        if !gone.is_empty() || !new.is_empty() {
            bail!("gone: {gone:#?}\nnew: {new:#?}");
        }
        Ok(())
    }

    /// Asserts that the namespace becomes equal again soon: some objects of the last pod are removed after its DEL was
    /// answered.
    ///
    /// # Errors
    /// If anything changed; the error lists what is gone and what is new.
    pub fn comes_back(&self, netns: &Netns) -> Result<()> {
        let what = format!("{} is as it was", netns.name());
        eventually(what, || self.assert_same(&Self::of(netns)?))
    }

    /// Asserts that `later` has everything that this snapshot has.
    ///
    /// # Errors
    /// If anything is gone; the error lists it.
    pub fn assert_within(&self, later: &Self) -> Result<()> {
        let gone: Vec<_> = self.0.difference(&later.0).collect();
        if !gone.is_empty() {
            bail!("gone: {gone:#?}");
        }
        Ok(())
    }
}

/// Whether the line is a route to the kernel's own link-local address, or to its anycast address where it forwards: they
/// appear after duplicate address detection.
#[must_use]
pub fn comes_late(line: &str) -> bool {
    ["local fe80:", "anycast fe80:"]
        .iter()
        .any(|start| line.starts_with(start))
}

/// Runs `ip` in the namespace and returns its output.
///
/// # Errors
/// If it fails; the error has its output.
pub fn ip(netns: &Netns, arguments: &[&str]) -> Result<String> {
    run(netns, "ip", arguments)
}

/// Runs a program in the namespace and returns its output.
///
/// # Errors
/// If it fails; the error has its output.
pub fn run(netns: &Netns, program: &str, arguments: &[&str]) -> Result<String> {
    let output = netns
        .command(program)
        .args(arguments)
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {} in {}: {}",
            arguments.join(" "),
            netns.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
