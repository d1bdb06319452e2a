//! Debian's packages that are pinned in a file of this directory with their checksums: unpacked, and never installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::ui;
use crate::workspace::Workspace;

/// A file of pins: on each line a suite (`bookworm`, or `bookworm/arm64` for packages of that architecture), a package,
/// its version, its sha256, and the directory that it is unpacked to with all others of that directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pins {
    /// Its name for people.
    pub(super) file: &'static str,
    pub(super) text: &'static str,
    /// The directory below the target directory in which the directories are made.
    pub(super) below: &'static str,
}

/// One version of one package, in the suite that serves it.
#[derive(Debug, PartialEq, Eq)]
struct Package<'p> {
    suite: &'p str,
    name: &'p str,
    version: &'p str,
    sha256: &'p str,
    directory: &'p str,
}

impl Pins {
    /// Returns the directories that the file names, in its order.
    pub(super) fn directories(&self) -> Result<Vec<&'static str>> {
        let mut names: Vec<&str> = self.packages()?.iter().map(|one| one.directory).collect();
        names.dedup();
        Ok(names)
    }

    /// Returns the version of a package.
    pub(super) fn version(&self, name: &str) -> Result<&'static str> {
        let packages = self.packages()?;
        let found = packages.iter().find(|one| one.name == name);
        found
            .map(|one| one.version)
            .with_context(|| format!("{} has no package {name}", self.file))
    }

    /// Gets the packages of a directory, unless these versions are there, and returns its path.
    pub(super) fn get(&self, ws: &Workspace, directory: &str) -> Result<PathBuf> {
        let packages = self.packages()?;
        let mut of_it = packages.iter().filter(|one| one.directory == directory);
        let to = ws.target.join(self.below).join(directory);
        let stamp = to.join("pins");
        let text = format!("{:?}", of_it.clone().collect::<Vec<_>>());
        if fs::read_to_string(&stamp).is_ok_and(|there| there == text) {
            return Ok(to);
        }
        ui::note(format_args!("setup: getting Debian's {directory}"));
        let debs = of_it.try_fold(Vec::new(), |mut debs, package| {
            debs.push(self.deb(ws, package)?);
            anyhow::Ok(debs)
        })?;
        debian::unpack(&debs, &to)?;
        fs::write(&stamp, text).with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(to)
    }

    /// Returns the file of a package.
    fn deb(&self, ws: &Workspace, package: &Package<'_>) -> Result<PathBuf> {
        let pinned = debian::download_from(ws, package.suite, package.name, package.version);
        match pinned {
            Ok(deb) => debian::verify(&deb, package.sha256).map(|()| deb),
            Err(error) => self.instead(ws, package, &error),
        }
    }

    /// Returns a package in place of a pinned one that cannot be downloaded: the one that its suite has now.
    fn instead(
        &self,
        ws: &Workspace,
        package: &Package<'_>,
        error: &anyhow::Error,
    ) -> Result<PathBuf> {
        let (suite, name) = (package.suite, package.name);
        let paragraph = debian::ask(ws, suite, |show| show(name))?;
        let field = |field: &str| {
            let mut lines = paragraph.lines();
            let found = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
            found.with_context(|| format!("apt's answer about {name} has no field {field}"))
        };
        let (version, sum) = (field("Version")?, field("SHA256")?);
        ui::note(format_args!(
            "setup: the pinned {name} {} cannot be had ({error:#}); taking what Debian serves now, for {}: \
             {suite} {name} {version} {sum} {}",
            package.version, self.file, package.directory
        ));
        let deb = debian::download_from(ws, suite, name, version)?;
        debian::verify(&deb, sum)?;
        Ok(deb)
    }

    fn packages(&self) -> Result<Vec<Package<'static>>> {
        let lines = self.text.lines().filter(|line| !line.starts_with('#'));
        let pin = |line| {
            let words: Vec<&str> = str::split_whitespace(line).collect();
            let [suite, name, version, sha256, directory] = words[..] else {
                bail!(
                    "{}: `{line}` is not: suite, package, version, sha256, directory",
                    self.file
                );
            };
            Ok(Package {
                suite,
                name,
                version,
                sha256,
                directory,
            })
        };
        lines.map(pin).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_of_this_repository_can_be_read() {
        for pins in [super::super::images::PINS, super::super::cross::PINS] {
            let packages = pins.packages().expect("pins");
            assert!(
                packages.iter().all(|one| one.sha256.len() == 64),
                "{packages:?}"
            );
            let mut directories = pins.directories().expect("pins");
            let count = directories.len();
            directories.sort_unstable();
            directories.dedup();
            assert_eq!(
                directories.len(),
                count,
                "those of a directory are together"
            );
        }
    }

    #[test]
    fn a_line_that_says_too_little_is_named() {
        let pins = Pins {
            file: "x.pins",
            text: "bookworm cloud-init 22.4.2\n",
            below: "x",
        };
        let error = pins.packages().expect_err("three words");
        assert!(error.to_string().contains("cloud-init 22.4.2"), "{error}");
    }
}
