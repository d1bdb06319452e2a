//! Reads a node's firewall rules by running the host's own programs that print them, as the host sees them.
//!
//! A kind of firewall that the kernel lacks is not queried: the query itself would load the kernel's modules.

use std::{
    ffi::OsStr,
    fmt, fs, io,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use ebbtide_kernel::netfilter::Ruleset;
use ebbtide_types::Family;

use crate::{
    host_root::{HostRoot, which},
    program,
};

/// The firewall rules that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// The rules of each family, from each installed program.
    pub(super) sets: Vec<(Family, Ruleset)>,
    /// The rules that could not be read.
    pub(super) unseen: Vec<Unseen>,
}

/// Rules that exist, or may, and could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unseen {
    rules: String,
    why: String,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rules, self.why)
    }
}

/// The programs of one family, and the file that names the older kind's tables, once the kernel has some.
struct Tables {
    family: Family,
    running: &'static str,
    older: &'static str,
    names: &'static str,
}

const TABLES: [Tables; 2] = [
    Tables {
        family: Family::V4,
        running: "iptables-save",
        older: "iptables-legacy-save",
        names: "/proc/net/ip_tables_names",
    },
    Tables {
        family: Family::V6,
        running: "ip6tables-save",
        older: "ip6tables-legacy-save",
        names: "/proc/net/ip6_tables_names",
    },
];

/// How long a program may take: a hundred thousand rules are printed in seconds.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How many bytes a program may print.
const MAX_OUTPUT: u64 = 256 << 20;

/// The text by which a program says that its rules are nft's.
const IS_NFT: &str = "(nf_tables)";

/// The host's programs, and whether its kernel has nft.
struct Host<'a> {
    root: &'a HostRoot,
    path: &'a OsStr,
    /// Whether the kernel may have nft's rules.
    has_nft: bool,
}

/// What a program printed, or why nothing is known.
enum Printed {
    Text(String),
    Absent(String),
    Failed(String),
}

impl Rules {
    /// Runs the programs of `root` and parses their output.
    pub(super) fn read(root: &HostRoot) -> Self {
        let path = root.search_path();
        let read = root.run(|| {
            let host = Host {
                root,
                path: &path,
                has_nft: may_have_nft(),
            };
            host.rules()
        });
        read.unwrap_or_else(|e| Self {
            sets: Vec::new(),
            unseen: vec![Unseen {
                rules: "all of them".to_owned(),
                why: format!("the host's root directory cannot be entered: {e}"),
            }],
        })
    }
}

impl Host<'_> {
    fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        // iptables' newer kind consists of nft tables, which it prints more precisely than nft does.
        let mut iptables_nft = false;
        for tables in TABLES {
            let has_older = fs::read_to_string(tables.names).is_ok_and(|names| !names.is_empty());
            let mut older_seen = false;
            // The default program is of either kind; a kernel that has neither must not be queried.
            if has_older || self.has_nft {
                match self.printed(tables.running, &[]) {
                    Printed::Text(text) => {
                        let is_nft = text.contains(IS_NFT);
                        iptables_nft |= is_nft;
                        // If tables of the older kind exist, its program prints them even when they are empty.
                        older_seen = !is_nft && !text.is_empty();
                        rules.sets.push((tables.family, Ruleset::parse(&text)));
                    }
                    // nft reads the newer kind, too.
                    Printed::Absent(_) => {}
                    Printed::Failed(why) => rules.miss(tables.family, "iptables", why),
                }
            }
            if !has_older {
                continue;
            }
            match self.printed(tables.older, &[]) {
                Printed::Text(text) => rules.sets.push((tables.family, Ruleset::parse(&text))),
                Printed::Absent(_) if older_seen => {}
                Printed::Absent(why) | Printed::Failed(why) => {
                    rules.miss(tables.family, "the older iptables", why);
                }
            }
        }
        if self.has_nft {
            self.add_nft(&mut rules, iptables_nft);
        }
        rules
    }

    fn add_nft(&self, rules: &mut Rules, iptables_nft: bool) {
        let why = match self.printed("nft", &["--json", "--stateless", "list", "ruleset"]) {
            Printed::Text(json) => {
                for family in Family::BOTH {
                    match Ruleset::parse_nft(&json, family, iptables_nft) {
                        Ok(set) => rules.sets.push((family, set)),
                        Err(e) => rules.unseen.push(Unseen {
                            rules: format!("nft's ({family})"),
                            why: format!("what nft printed is no JSON: {e}"),
                        }),
                    }
                }
                return;
            }
            Printed::Absent(why) | Printed::Failed(why) => why,
        };
        let kind = match iptables_nft {
            true => "nft's, but for those that iptables made",
            false => "nft's, and those of iptables' newer kind",
        };
        rules.unseen.push(Unseen {
            rules: kind.to_owned(),
            why,
        });
    }

    fn printed(&self, name: &str, arguments: &[&str]) -> Printed {
        let Some(file) = which(name, self.path) else {
            return Printed::Absent(format!(
                "there is no {name} in {} {}",
                self.path.to_string_lossy(),
                self.root
            ));
        };
        let mut command = Command::new(&file);
        command.args(arguments).env("PATH", self.path);
        text_of(
            &file,
            program::output(&mut command, b"", TIMEOUT, MAX_OUTPUT),
        )
    }
}

fn text_of(file: &Path, ended: io::Result<Output>) -> Printed {
    let failed = |why: &dyn fmt::Display| Printed::Failed(format!("{} {why}", file.display()));
    match ended {
        Err(e) => failed(&format_args!("cannot be run: {e}")),
        Ok(output) if output.status.success() => {
            Printed::Text(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default();
            failed(&format_args!("failed ({}): {said}", output.status))
        }
    }
}

impl Rules {
    fn miss(&mut self, family: Family, kind: &str, why: String) {
        let rules = format!("those of {kind} ({family})");
        self.unseen.push(Unseen { rules, why });
    }
}

/// Whether the kernel may have nft rules: its module is loaded or built in, or that cannot be told.
#[must_use]
pub fn may_have_nft() -> bool {
    let Ok(loaded) = fs::read_to_string("/proc/modules") else {
        return true;
    };
    let built_in = nix::sys::utsname::uname().ok().and_then(|kernel| {
        let release = kernel.release().to_string_lossy().into_owned();
        fs::read_to_string(format!("/lib/modules/{release}/modules.builtin")).ok()
    });
    has_nft(&loaded, built_in.as_deref())
}

fn has_nft(loaded: &str, built_in: Option<&str>) -> bool {
    let is_loaded = loaded.lines().any(|line| line.starts_with("nf_tables "));
    let is_built_in = |list: &str| list.lines().any(|file| file.ends_with("/nf_tables.ko"));
    is_loaded || built_in.is_none_or(is_built_in)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::write_script;

    /// Makes a directory with these programs, each a shell script.
    fn directory(programs: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            write_script(&directory.path().join(name), script);
        }
        directory
    }

    #[test]
    fn what_is_not_seen_is_said_with_the_program_and_where_it_was_looked_for() {
        const SAVE: &str = "echo '# Generated by iptables-save v1.8.9 (nf_tables)'";
        const NFT: &str = "echo '{\"nftables\": []}'";
        for (programs, expected) in [
            (
                vec![],
                vec!["nft's, and those of iptables' newer kind: there is no nft in "],
            ),
            (
                vec![("iptables-save", SAVE)],
                vec!["nft's, but for those that iptables made: there is no nft in "],
            ),
            (vec![("nft", NFT)], vec![]),
            (vec![("iptables-save", SAVE), ("nft", NFT)], vec![]),
            (vec![("nft", "echo oops")], vec!["no JSON", "no JSON"]),
            (
                vec![("nft", "echo 'Operation not permitted' >&2; exit 1")],
                vec!["Operation not permitted"],
            ),
            (
                vec![("ip6tables-save", "exit 3"), ("nft", NFT)],
                vec!["those of iptables (IPv6): "],
            ),
        ] {
            let directory = directory(&programs);
            let host = Host {
                root: &HostRoot::default(),
                path: directory.path().as_os_str(),
                has_nft: true,
            };
            let unseen = host.rules().unseen;
            // The machine may have tables of the older kind, which the programs here do not print.
            let unseen: Vec<String> = unseen
                .iter()
                .map(ToString::to_string)
                .filter(|text| !text.contains("older iptables"))
                .collect();
            assert_eq!(unseen.len(), expected.len(), "{programs:?}: {unseen:?}");
            for (found, words) in unseen.iter().zip(&expected) {
                let place = directory.path().to_string_lossy();
                assert!(found.contains(words), "{programs:?}: {found}");
                assert!(
                    found.contains("no JSON") || found.contains(&*place),
                    "{found}"
                );
            }
        }
    }

    #[test]
    fn a_kernel_without_nf_tables_is_not_asked() {
        const LIST: &str = "kernel/net/netfilter/nf_tables.ko\nkernel/net/ipv4/ip_tables.ko\n";
        for (loaded, built_in, expected) in [
            ("nf_tables 385024 3 nft_compat, Live 0x0\n", Some(""), true),
            ("nft_compat 20480 1 - Live 0x0\n", Some(""), false),
            ("", Some(LIST), true),
            ("", Some("kernel/fs/nls.ko\n"), false),
            // It cannot be told.
            ("", None, true),
        ] {
            assert_eq!(has_nft(loaded, built_in), expected, "{loaded} {built_in:?}");
        }
    }
}
