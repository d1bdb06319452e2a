//! What a namespace holds, as `ip` prints it: a second implementation looks at what ours did.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

use crate::{netns::Netns, patience::eventually};

/// Links, addresses, routes of all tables, rules and neighbours, each as a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// What `ip` is asked. Link lines are cut to their name: indices and states are nobody's property.
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
    /// Takes one.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for question in QUESTIONS {
            let text = ip(netns, question)?;
            lines.extend(text.lines().filter(|line| !comes_late(line)).map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let words: Vec<&str> = match question {
                    ["-brief", "link", ..] => words[..1].to_vec(),
                    // A carrier comes late, and with it the kernel's own link-local address.
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

    /// Its lines.
    #[must_use]
    pub fn into_lines(self) -> BTreeSet<String> {
        self.0
    }

    /// Whether any line has this in it.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }

    /// The names of the links that start like this.
    #[must_use]
    pub fn links(&self, prefix: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter_map(|line| line.strip_prefix("-brief link show: "))
            .filter(|name| name.starts_with(prefix))
            .collect()
    }

    /// That `later` is the same.
    ///
    /// # Errors
    /// Lists what is gone and what is new.
    pub fn assert_same(&self, later: &Self) -> Result<()> {
        let gone: Vec<_> = self.0.difference(&later.0).collect();
        let new: Vec<_> = later.0.difference(&self.0).collect();
        if !gone.is_empty() || !new.is_empty() {
            bail!("gone: {gone:#?}\nnew: {new:#?}");
        }
        Ok(())
    }

    /// That the namespace is the same again before long: what the last pod leaves behind is taken away after its
    /// DEL was answered.
    ///
    /// # Errors
    /// Lists what is gone and what is new.
    pub fn comes_back(&self, netns: &Netns) -> Result<()> {
        let what = format!("{} is as it was", netns.name());
        eventually(what, || self.assert_same(&Self::of(netns)?))
    }

    /// That everything of `self` is in `later`.
    ///
    /// # Errors
    /// Lists what is gone.
    pub fn assert_within(&self, later: &Self) -> Result<()> {
        let gone: Vec<_> = self.0.difference(&later.0).collect();
        if !gone.is_empty() {
            bail!("gone: {gone:#?}");
        }
        Ok(())
    }
}

/// Whether it is a route to the kernel's own link-local address, which comes when nobody else was found to have it.
#[must_use]
pub fn comes_late(line: &str) -> bool {
    line.starts_with("local fe80:")
}

/// Runs `ip` in the namespace.
///
/// # Errors
/// With what it said, when it fails.
pub fn ip(netns: &Netns, arguments: &[&str]) -> Result<String> {
    run(netns, "ip", arguments)
}

/// Runs a program in the namespace and gives what it printed.
///
/// # Errors
/// With what it said, when it fails.
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
