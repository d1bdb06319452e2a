//! Package lists: the machine's own, which only root may update, and xtask's below the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::system::System;
use crate::exec::{self, Output};
use crate::ui;
use crate::workspace::Workspace;

/// Root's apt downloads as an unprivileged user, who cannot write below our directory; this turns it off.
const NO_SANDBOX: &str = "-oAPT::Sandbox::User=root";

/// Returns apt options for the machine's own lists.
pub(super) fn machines() -> Vec<String> {
    vec![NO_SANDBOX.to_owned()]
}

/// Updates the machine's own lists; needs root.
pub(super) fn read_machines() -> Result<()> {
    ui::note("setup: reading this machine's package lists anew");
    exec::run(
        Command::new("apt-get").args(["-q", "update"]),
        Output::OnFailure,
    )
}

/// Package lists below the target directory, which need no root.
#[derive(Debug)]
pub(super) struct Lists {
    dir: PathBuf,
    /// The apt options that use them.
    pub(super) options: Vec<String>,
}

impl Lists {
    /// Returns lists of the suites that this machine uses.
    pub(super) fn own(ws: &Workspace) -> Result<Self> {
        Self::at(ws.target.join("apt/system"))
    }

    fn at(dir: PathBuf) -> Result<Self> {
        let (lists, cache) = (dir.join("lists"), dir.join("cache"));
        for part in [lists.join("partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let options = vec![
            format!("-oDir::State::Lists={}", lists.display()),
            format!("-oDir::Cache={}", cache.display()),
            NO_SANDBOX.to_owned(),
        ];
        Ok(Self { dir, options })
    }

    /// Whether they were read before.
    pub(super) fn are_there(&self) -> bool {
        let names = fs::read_dir(self.dir.join("lists")).into_iter().flatten();
        names
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    }

    /// Reads them from this machine's sources, and replaces the old ones.
    pub(super) fn read(&self) -> Result<()> {
        ui::note("setup: reading the package lists of Debian's archive");
        self.update(&[])
    }

    fn update(&self, more: &[&str]) -> Result<()> {
        let mut update = Command::new("apt-get");
        update.args(&self.options).args(more).args(["-q", "update"]);
        exec::run(&mut update, Output::OnFailure)
    }
}

/// Package lists of a suite of Debian that this machine need not use, for its own architecture or another one.
#[derive(Debug)]
pub(super) struct Suite<'s> {
    name: &'s str,
    /// Another architecture than this machine's.
    pub(super) architecture: Option<&'s str>,
    source: PathBuf,
    pub(super) lists: Lists,
}

impl<'s> Suite<'s> {
    /// Returns the lists of a suite by its name (`bookworm`), or by name and architecture (`bookworm/arm64`).
    pub(super) fn new(ws: &Workspace, suite: &'s str) -> Result<Self> {
        System::read().refuse_suite(suite)?;
        let (name, architecture) = match suite.split_once('/') {
            Some((name, architecture)) => (name, Some(architecture)),
            None => (suite, None),
        };
        let mut lists = Lists::at(ws.target.join("apt").join(suite))?;
        let source = lists.dir.join("sources.list");
        lists.options.extend([
            format!("-oDir::Etc::SourceList={}", source.display()),
            "-oDir::Etc::SourceParts=/dev/null".to_owned(),
            // Installed packages would count as versions that the archive serves.
            "-oDir::State::Status=/dev/null".to_owned(),
        ]);
        if let Some(architecture) = architecture {
            lists.options.extend([
                format!("-oAPT::Architecture={architecture}"),
                format!("-oAPT::Architectures={architecture}"),
            ]);
        }
        Ok(Self {
            name,
            architecture,
            source,
            lists,
        })
    }

    /// Reads them from the first archive in apt's configuration that has the suite.
    pub(super) fn read(&self) -> Result<()> {
        ui::note(format_args!(
            "setup: reading the package lists of {}",
            self.name
        ));
        let known = exec::read(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(SIGNED_BY)",
            "Created-By: Packages",
        ]))?;
        let mut refusals = String::new();
        for (address, key) in archives(&known) {
            let line = source(self.name, address, key);
            fs::write(&self.source, line)
                .with_context(|| format!("cannot write {}", self.source.display()))?;
            // Without this, apt does not report an archive that lacks the suite as an error.
            match self.lists.update(&["-oAPT::Update::Error-Mode=any"]) {
                Ok(()) => return Ok(()),
                Err(error) => refusals.push_str(&format!("\n{error:#}")),
            }
        }
        if refusals.is_empty() {
            bail!("apt has no source of packages: see /etc/apt/sources.list");
        }
        bail!(
            "none of the archives in apt's sources has the suite {}:{refusals}",
            self.name
        )
    }

    /// Returns the directory; fails if they were never read, since apt would not report that.
    pub(super) fn ready(&self) -> Result<&Path> {
        if !self.lists.are_there() {
            bail!("the package lists of {} were not read yet", self.name);
        }
        Ok(&self.lists.dir)
    }
}

/// Returns a line for `sources.list`.
fn source(suite: &str, address: &str, key: Option<&str>) -> String {
    let signed = key.map_or_else(String::new, |key| format!("[signed-by={key}] "));
    format!("deb {signed}{address} {suite} main\n")
}

/// Returns the addresses (and keyrings) in the output of `apt-get indextargets`, each once, the main archive first.
fn archives(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut found: Vec<(&str, Option<&str>)> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else {
            continue;
        };
        if !found.iter().any(|(known, _)| *known == address) {
            found.push((address, words.next().filter(|key| key.starts_with('/'))));
        }
    }
    found.sort_by_key(|(address, _)| !address.trim_end_matches('/').ends_with("/debian"));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_archive_is_asked_once_and_the_plain_one_first() {
        let text = "http://a/debian-security/ /k.gpg\nhttp://a/debian/ /k.gpg\nhttp://a/debian/ \n";
        assert_eq!(
            archives(text),
            [
                ("http://a/debian/", Some("/k.gpg")),
                ("http://a/debian-security/", Some("/k.gpg"))
            ]
        );
    }

    #[test]
    fn a_source_names_its_keyring_where_there_is_one() {
        for (key, expected) in [
            (
                Some("/k.gpg"),
                "deb [signed-by=/k.gpg] http://a/debian/ trixie main\n",
            ),
            (None, "deb http://a/debian/ trixie main\n"),
        ] {
            assert_eq!(source("trixie", "http://a/debian/", key), expected);
        }
    }

    #[test]
    fn lists_are_there_once_apt_has_left_an_index() {
        let dir = std::env::temp_dir().join(format!("xtask-lists-{}", std::process::id()));
        let lists = Lists::at(dir.clone()).expect("a directory");
        assert!(!lists.are_there(), "made a moment ago");
        fs::write(dir.join("lists/a_main_binary-amd64_Packages.lz4"), "").expect("write");
        assert!(lists.are_there());
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
