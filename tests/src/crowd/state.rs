//! A node's state besides its traffic: links, addresses, routes, rules, neighbours, settings, programs, and firewall.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    netns::Netns,
    nic_programs,
    snapshot::{Snapshot, ip, run},
};

/// Everything on a node that a privileged agent can change, each as a line.
#[derive(Clone, Debug)]
pub struct State(BTreeSet<String>);

/// A difference that is allowed, and the reason.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The prefix of its line.
    pub line: &'static str,
    /// The reason.
    pub reason: &'static str,
}

/// Settings that the kernel itself changes, or that only have an effect when they are written.
const UNSTEADY: [&str; 6] = [
    "netfilter/nf_conntrack_count",
    "net/ipv4/tcp_fastopen_key",
    "route/flush",
    "stable_secret",
    "net/core/",
    "nf_conntrack_buckets",
];

impl State {
    /// Reads the state.
    ///
    /// # Errors
    /// If a program that it runs fails.
    pub fn of(node: &Netns) -> Result<Self> {
        let mut lines = Snapshot::of(node)?.into_lines();
        lines.extend(settings(node)?);
        lines.extend(at_links(node)?);
        lines.extend(firewall(node)?);
        Ok(Self(lines))
    }

    /// Asserts that `later` is the same, except for allowed differences.
    ///
    /// # Errors
    /// If anything changed; the error names `moment` and lists what is gone and what is new.
    pub fn assert_same(&self, later: &Self, moment: &str, allowed: &[Allowed]) -> Result<()> {
        let is_allowed = |line: &&String| allowed.iter().any(|one| line.starts_with(one.line));
        let differs = |these: &BTreeSet<String>, those: &BTreeSet<String>| -> Vec<String> {
            let lines = these.difference(those).filter(|line| !is_allowed(line));
            lines.cloned().collect()
        };
        let (gone, new) = (differs(&self.0, &later.0), differs(&later.0, &self.0));
        if !gone.is_empty() || !new.is_empty() {
            bail!(
                "{moment}, the node is not what it was:\n- {}\n+ {}",
                gone.join("\n- "),
                new.join("\n+ ")
            );
        }
        Ok(())
    }
}

/// Returns all network settings.
fn settings(node: &Netns) -> Result<Vec<String>> {
    node.run(|| {
        let mut lines = Vec::new();
        collect(Path::new("/proc/sys/net"), &mut lines);
        Ok(lines)
    })
}

fn collect(directory: &Path, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        // The link was removed meanwhile.
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, lines);
            continue;
        }
        let name = path.strip_prefix("/proc/sys/").unwrap_or(&path).display();
        let name = name.to_string();
        if UNSTEADY.iter().any(|unsteady| name.contains(unsteady)) {
            continue;
        }
        if let Ok(value) = fs::read_to_string(&path) {
            lines.push(format!("{name} = {}", value.trim()));
        }
    }
}

/// Returns the queueing disciplines, filters and TCX programs of every link.
fn at_links(node: &Netns) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut names = node.netlink()?.link_names()?;
    names.sort();
    let has_tcx = nic_programs::has_tcx()?;
    let qdiscs = run(node, "tc", &["qdisc", "show"])?;
    // Only links with one of these can have filters.
    let with_filters = |name: &str| {
        let needle = format!(" dev {name} ");
        let mut mine = qdiscs.lines().filter(|line| line.contains(&needle));
        mine.any(|line| line.starts_with("qdisc clsact") || line.starts_with("qdisc ingress"))
    };
    lines.extend(qdiscs.lines().map(|line| format!("tc {}", line.trim())));
    for name in names {
        if with_filters(&name) {
            for hook in ["ingress", "egress"] {
                let filters = run(node, "tc", &["filter", "show", "dev", &name, hook])?;
                let filters = filters.lines().filter(|line| !line.trim().is_empty());
                lines.extend(filters.map(|line| format!("filter {name} {hook}: {}", line.trim())));
            }
        }
        if has_tcx {
            let programs = nic_programs::by_tcx(node, &name)?;
            for (hook, programs) in ["ingress", "egress"].iter().zip(programs) {
                for program in programs {
                    lines.push(format!("tcx {name} {hook}: program {program}"));
                }
            }
        }
    }
    let details = ip(node, &["-d", "-o", "link", "show"])?;
    for line in details.lines() {
        // `1: lo: <UP,...> mtu ... state UNKNOWN ... promiscuity 0`, without the values that change by themselves.
        let words = line.split_whitespace().skip(1);
        let words: Vec<&str> = words.take_while(|word| *word != "\\").collect();
        lines.push(format!("link {}", words.join(" ")));
    }
    Ok(lines)
}

/// Returns the iptables rules, which belong to others.
fn firewall(node: &Netns) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let rules = run(node, program, &[]).context("listing the firewall's rules")?;
        let rules = rules.lines().filter(|line| line.starts_with("-A"));
        lines.extend(rules.map(|line| format!("{program}: {line}")));
    }
    Ok(lines)
}
