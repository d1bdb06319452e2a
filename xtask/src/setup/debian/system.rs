//! The distribution of this machine, by `/etc/os-release` (os-release(5)).

use anyhow::{Result, bail};

/// A distribution of Linux.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct System {
    /// Its name for people.
    pub(crate) name: String,
    /// `ID`, and then `ID_LIKE`.
    ids: Vec<String>,
}

impl System {
    /// Returns this machine's distribution.
    pub(crate) fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    /// Parses the text of an `os-release`.
    pub(crate) fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim().trim_matches(['"', '\''])
        };
        let ids = field("ID").split_whitespace();
        Self {
            name: match field("PRETTY_NAME") {
                "" => "this system".to_owned(),
                name => name.to_owned(),
            },
            ids: ids
                .chain(field("ID_LIKE").split_whitespace())
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Whether it is Ubuntu or derived from it, which has an archive of its own, with packages of mostly the same
    /// names.
    pub(crate) fn is_ubuntu(&self) -> bool {
        self.ids.iter().any(|id| id == "ubuntu")
    }

    /// Fails for a suite of Debian that no archive in apt's configuration can have.
    pub(super) fn refuse_suite(&self, suite: &str) -> Result<()> {
        if self.is_ubuntu() {
            bail!(
                "this is {}, whose archives do not have Debian's suite {suite}: the kernels for QEMU \
                 and the source of the compiler's library come from there. User-mode Linux is in \
                 Ubuntu's universe (leave --kernel and --qemu away, `setup --no-qemu`), and the source \
                 is rustup's, too: `rustup component add rust-src`",
                self.name
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_told_by_its_id_and_what_it_is_like() {
        for (text, name, ubuntu) in [
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n",
                "Debian GNU/Linux 12",
                false,
            ),
            (
                "ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME=\"Ubuntu 24.04\"\n",
                "Ubuntu 24.04",
                true,
            ),
            (
                "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
                "this system",
                true,
            ),
            (
                "ID=fedora\nPRETTY_NAME='Fedora Linux 42'\n",
                "Fedora Linux 42",
                false,
            ),
            ("", "this system", false),
        ] {
            let system = System::parse(text);
            assert_eq!(
                (system.name.as_str(), system.is_ubuntu()),
                (name, ubuntu),
                "{text}"
            );
            assert_eq!(system.refuse_suite("trixie").is_err(), ubuntu, "{text}");
        }
    }

    #[test]
    fn ubuntu_is_told_what_to_do_without_debians_suites() {
        let error = System::parse("ID=ubuntu\nPRETTY_NAME=Ubuntu\n").refuse_suite("trixie");
        let text = error.expect_err("no such suite").to_string();
        for part in [
            "Ubuntu",
            "trixie",
            "--no-qemu",
            "rustup component add rust-src",
        ] {
            assert!(text.contains(part), "no {part} in: {text}");
        }
    }
}
