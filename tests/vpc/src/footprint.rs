//! Everything on a node that an installation could leave behind, as the usual tools print it: line by line, so that a
//! node before an installation and after its removal can be compared byte for byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    netns::Netns,
    nic_programs,
    patience::eventually,
    snapshot::{ip, run},
};

/// What the tools print, by the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(BTreeMap<String, Vec<String>>);

/// The questions to `ip`. Of neighbours only what somebody has entered: the kernel forgets by itself what it learned.
const IP: [&[&str]; 11] = [
    &["-d", "link", "show"],
    &["address", "show"],
    &["-4", "rule", "show"],
    &["-6", "rule", "show"],
    &["-4", "route", "show", "table", "all"],
    &["-6", "route", "show", "table", "all"],
    &["-4", "neighbour", "show", "nud", "permanent"],
    &["-6", "neighbour", "show", "nud", "permanent"],
    &["neighbour", "show", "proxy"],
    &["nexthop", "show"],
    &["maddress", "show"],
];

/// Settings that are left out, by a part of their names, and the reason.
const LEFT_OUT: [(&str, &str); 7] = [
    ("nf_conntrack_count", "a counter"),
    ("route/flush", "it can only be written"),
    ("stable_secret", "it cannot be read before it is set"),
    ("tcp_fastopen_key", "random, made when it is first read"),
    (
        "net/core/",
        "the kernel's, not the node's; other tests run at the same time",
    ),
    ("net/unix/", "as net/core"),
    ("nf_conntrack_buckets", "as net/core"),
];

/// The time in which a node must not change to count as settled.
const SETTLED: Duration = Duration::from_millis(700);

impl Footprint {
    /// Reads it from the node, and from these directories.
    ///
    /// # Errors
    /// If a program that it runs fails.
    pub fn of(node: &Netns, directories: &[PathBuf]) -> Result<Self> {
        let mut all = BTreeMap::new();
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        for question in IP {
            // An `ip` that is older than a question prints its usage.
            let answer = ip(node, question).unwrap_or_default();
            // A NIC's list of link-layer multicast addresses is the driver's and ipvlan's own, in whatever order.
            let is_of_driver = |line: &String| line.trim_start().starts_with("link ");
            let mut answer = lines(answer);
            answer.retain(|line| question[0] != "maddress" || !is_of_driver(line));
            all.insert(format!("ip {}", question.join(" ")), answer);
        }
        let qdiscs = run(node, "tc", &["qdisc", "show"])?;
        all.insert("tc qdisc show".to_owned(), lines(qdiscs.clone()));
        let mut names = node.netlink()?.link_names()?;
        names.sort();
        let has_tcx = nic_programs::has_tcx()?;
        for name in names {
            let needle = format!(" dev {name} ");
            let mut own = qdiscs.lines().filter(|line| line.contains(&needle));
            if own.any(|line| line.contains("clsact") || line.contains("qdisc ingress")) {
                for hook in ["ingress", "egress"] {
                    let question = ["filter", "show", "dev", &name, hook];
                    let answer = run(node, "tc", &question)?;
                    all.insert(format!("tc {}", question.join(" ")), lines(answer));
                }
            }
            if has_tcx {
                let programs = nic_programs::by_tcx(node, &name)?;
                all.insert(format!("tcx {name}"), vec![format!("{programs:?}")]);
            }
        }
        for (program, arguments) in [
            ("nft", &["list", "ruleset"][..]),
            ("iptables-legacy-save", &[]),
            ("ip6tables-legacy-save", &[]),
            // Not on every machine; the kernel's own lists are asked for otherwise (`tcx`, `Objects`).
            ("bpftool", &["net", "show"]),
        ] {
            let answer = run(node, program, arguments).unwrap_or_default();
            // Counters of packets, and comments with the time.
            let answer = answer.lines().filter(|line| !line.starts_with(['#', ':']));
            let title = format!("{program} {}", arguments.join(" "));
            all.insert(title, answer.map(str::to_owned).collect());
        }
        all.insert("sysctl".to_owned(), settings(node)?);
        for directory in directories {
            let mut files = Vec::new();
            list(directory, &mut files);
            all.insert(format!("files {}", directory.display()), files);
        }
        Ok(Self(all))
    }

    /// Reads it once nothing changes any more: a new link has its addresses a moment later.
    ///
    /// # Errors
    /// As [`Footprint::of`], or if something changes all the time.
    pub fn settled(node: &Netns, directories: &[PathBuf]) -> Result<Self> {
        eventually(format!("{} settles", node.name()), || {
            let first = Self::of(node, directories)?;
            thread::sleep(SETTLED);
            let then = Self::of(node, directories)?;
            first.assert_same(&then)?;
            let is_tentative = |line: &String| line.contains("tentative");
            ensure!(!then.0.values().flatten().any(is_tentative), "tentative");
            Ok(then)
        })
    }

    /// Asserts that `later` is equal.
    ///
    /// # Errors
    /// If anything differs; the error lists it by the command that shows it.
    pub fn assert_same(&self, later: &Self) -> Result<()> {
        let titles: BTreeSet<&String> = self.0.keys().chain(later.0.keys()).collect();
        let none = Vec::new();
        let mut differences = String::new();
        for title in titles {
            let before = self.0.get(title).unwrap_or(&none);
            let after = later.0.get(title).unwrap_or(&none);
            if before == after {
                continue;
            }
            differences += &format!("{title}\n");
            for line in before.iter().filter(|line| !after.contains(line)) {
                differences += &format!("- {line}\n");
            }
            for line in after.iter().filter(|line| !before.contains(line)) {
                differences += &format!("+ {line}\n");
            }
            if before.len() == after.len() && before.iter().all(|line| after.contains(line)) {
                differences += &format!("the order: {before:#?}\n{after:#?}\n");
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        bail!("the node is not what it was:\n{differences}")
    }

    /// Asserts that the node becomes equal again within a moment: the kernel removes programs and namespaces late.
    ///
    /// # Errors
    /// As [`Footprint::assert_same`].
    pub fn comes_back(&self, node: &Netns, directories: &[PathBuf]) -> Result<()> {
        eventually(format!("{} is as it was", node.name()), || {
            self.assert_same(&Self::of(node, directories)?)
        })
    }
}

fn settings(node: &Netns) -> Result<Vec<String>> {
    node.run(|| {
        let mut lines = Vec::new();
        collect(Path::new("/proc/sys/net"), &mut lines);
        lines.sort();
        Ok(lines)
    })
}

fn collect(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, lines);
            continue;
        }
        let name = path.strip_prefix("/proc/sys/").unwrap_or(&path);
        let name = name.display().to_string();
        if LEFT_OUT.iter().any(|(part, _)| name.contains(part)) {
            continue;
        }
        if let Ok(value) = fs::read_to_string(&path) {
            lines.push(format!("{name} = {}", value.trim()));
        }
    }
}

/// Lists a directory with everything below it: kinds, modes, owners, and digests of the contents.
fn list(path: &Path, lines: &mut Vec<String>) {
    let Ok(found) = fs::symlink_metadata(path) else {
        return;
    };
    let mut digest = DefaultHasher::new();
    if found.is_file() {
        fs::read(path).unwrap_or_default().hash(&mut digest);
    }
    lines.push(format!(
        "{} {:o} {}:{} {:x}",
        path.display(),
        found.mode(),
        found.uid(),
        found.gid(),
        digest.finish()
    ));
    if found.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            list(&path, lines);
        }
    }
}

/// eBPF programs, maps and links by their IDs, which the kernel does not use again soon. Other tests have their own at
/// the same time, so all of the kernel's cannot be compared.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// Returns those that a process holds.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(process: u32) -> Result<Self> {
        let mut all = Self::default();
        let directory = format!("/proc/{process}/fdinfo");
        for entry in fs::read_dir(&directory).with_context(|| directory.clone())? {
            let Ok(text) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            for line in text.lines() {
                let Some((key, id)) = line.split_once(':') else {
                    continue;
                };
                let Ok(id) = id.trim().parse() else {
                    continue;
                };
                match key {
                    "prog_id" => all.programs.insert(id),
                    "map_id" => all.maps.insert(id),
                    "link_id" => all.links.insert(id),
                    _ => false,
                };
            }
        }
        ensure!(!all.programs.is_empty(), "{process} holds no programs");
        Ok(all)
    }

    /// Asserts that the kernel has none of them any more, within a moment.
    ///
    /// # Errors
    /// If it has; the error has their IDs.
    pub fn are_gone(&self) -> Result<()> {
        eventually("the programs and maps are gone", || {
            let programs = aya::programs::loaded_programs().filter_map(Result::ok);
            let programs: BTreeSet<u32> = programs.map(|program| program.id()).collect();
            let maps = aya::maps::loaded_maps().filter_map(Result::ok);
            let maps: BTreeSet<u32> = maps.map(|map| map.id()).collect();
            let left = Self {
                programs: self.programs.intersection(&programs).copied().collect(),
                maps: self.maps.intersection(&maps).copied().collect(),
                // A link is gone with its program.
                links: BTreeSet::new(),
            };
            ensure!(
                left.programs.is_empty() && left.maps.is_empty(),
                "the kernel still has {left:?}"
            );
            Ok(())
        })
    }
}
