//! What a dump has. To add something is to add a line here.

use std::{fs, io, path::Path};

use anyhow::Context as _;
use ebbtide_plugin::wire::Query;

/// One file of the dump.
pub(super) struct Item {
    /// Its name.
    pub(super) name: &'static str,
    /// Where it is from.
    pub(super) content: Content,
}

/// Where a file of the dump is from.
pub(super) enum Content {
    /// This program's version.
    Version,
    /// The agent's answer.
    Answer(fn() -> Query),
    /// What a program of the host prints.
    Program(&'static [&'static str]),
    /// What a program prints that has the kernel load nf_tables where it is not in use: it is not run there.
    Firewall(&'static [&'static str]),
    /// A file of the host.
    File(&'static str),
    /// The kernel's settings below a directory.
    Settings(&'static str),
}

const fn item(name: &'static str, content: Content) -> Item {
    Item { name, content }
}

/// The flows in a dump, the youngest first.
const FLOWS: usize = 2000;

pub(super) const ITEMS: [Item; 33] = [
    item("version.txt", Content::Version),
    item("agent/status.json", Content::Answer(|| Query::Status)),
    item("agent/doctor.json", Content::Answer(|| Query::Doctor)),
    item("agent/nics.json", Content::Answer(|| Query::Nics)),
    item("agent/pods.json", Content::Answer(|| Query::Pods)),
    item("agent/pools.json", Content::Answer(|| Query::Pools)),
    item("agent/datapath.json", Content::Answer(|| Query::Datapath)),
    item(
        "agent/cloud.json",
        Content::Answer(|| Query::Cloud { refresh: false }),
    ),
    item(
        "agent/flows.json",
        Content::Answer(|| Query::Flows {
            pod: None,
            limit: FLOWS,
        }),
    ),
    // An empty start of a container's ID is that of all.
    item(
        "agent/plans.json",
        Content::Answer(|| Query::Explain { pod: String::new() }),
    ),
    item("system/uname.txt", Content::Program(&["uname", "-a"])),
    item("system/os-release.txt", Content::File("/etc/os-release")),
    item("system/modules.txt", Content::File("/proc/modules")),
    item("system/dmesg.txt", Content::Program(&["dmesg"])),
    item("system/settings.txt", Content::Settings("/proc/sys/net")),
    item(
        "links/link.txt",
        Content::Program(&["ip", "-d", "-s", "link"]),
    ),
    item("links/address.txt", Content::Program(&["ip", "address"])),
    item(
        "links/neighbours.txt",
        Content::Program(&["ip", "neighbour"]),
    ),
    item(
        "links/neighbours6.txt",
        Content::Program(&["ip", "-6", "neighbour"]),
    ),
    item(
        "links/netns.txt",
        Content::Program(&["ip", "netns", "list-id"]),
    ),
    item("routing/rules.txt", Content::Program(&["ip", "rule"])),
    item(
        "routing/rules6.txt",
        Content::Program(&["ip", "-6", "rule"]),
    ),
    item(
        "routing/routes.txt",
        Content::Program(&["ip", "route", "show", "table", "all"]),
    ),
    item(
        "routing/routes6.txt",
        Content::Program(&["ip", "-6", "route", "show", "table", "all"]),
    ),
    item(
        "programs/qdisc.txt",
        Content::Program(&["tc", "-s", "qdisc"]),
    ),
    item(
        "programs/net.txt",
        Content::Program(&["bpftool", "-j", "net"]),
    ),
    item(
        "programs/programs.txt",
        Content::Program(&["bpftool", "-j", "prog"]),
    ),
    item(
        "programs/maps.txt",
        Content::Program(&["bpftool", "-j", "map"]),
    ),
    item(
        "firewall/nft.txt",
        Content::Firewall(&["nft", "list", "ruleset"]),
    ),
    item(
        "firewall/iptables.txt",
        Content::Firewall(&["iptables-save", "-c"]),
    ),
    item(
        "firewall/ip6tables.txt",
        Content::Firewall(&["ip6tables-save", "-c"]),
    ),
    item(
        "firewall/legacy.txt",
        Content::Program(&["iptables-legacy-save", "-c"]),
    ),
    item(
        "cni/configurations.txt",
        Content::Program(&["sh", "-c", "ls -la /etc/cni/net.d /opt/cni/bin 2>&1"]),
    ),
];

/// Settings that are keys: whoever knows them knows addresses that are to be unpredictable.
const SECRET: [&str; 2] = ["stable_secret", "tcp_fastopen_key"];

/// Returns the kernel's settings below a directory, as `sysctl -a` prints them, without those that are keys.
pub(super) fn settings(below: &Path) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    walk(below, &mut lines).with_context(|| format!("read the settings in {}", below.display()))?;
    lines.sort();
    Ok(lines.join("\n"))
}

fn walk(directory: &Path, lines: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            // A link that goes meanwhile takes its settings along.
            let _gone = walk(&path, lines);
            continue;
        }
        let is_secret = SECRET.iter().any(|secret| path.ends_with(secret));
        if let Some(value) = fs::read_to_string(&path).ok().filter(|_| !is_secret) {
            let name = path.strip_prefix("/proc/sys").unwrap_or(&path);
            let value = value.trim().replace('\n', " ");
            lines.push(format!("{} = {value}", name.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn settings_are_listed_without_keys() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("ipv6/conf/eth0");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("stable_secret"), "fd00::1\n").unwrap();
        fs::write(below.join("forwarding"), "1\n").unwrap();
        fs::write(directory.path().join("range"), "1\t2\n").unwrap();
        let text = settings(directory.path()).unwrap();
        assert!(
            text.contains("forwarding = 1") && text.contains("range = 1\t2"),
            "{text}"
        );
        assert!(!text.contains("fd00::1"), "{text}");
    }

    #[test]
    fn each_part_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = ITEMS.iter().map(|item| item.name).collect();
        assert_eq!(names.len(), ITEMS.len());
        assert!(
            names
                .iter()
                .all(|name| !name.starts_with('/') && !name.contains(".."))
        );
    }
}
