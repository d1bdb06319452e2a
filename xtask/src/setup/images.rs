//! The programs that clouds' images run on a node: Debian's packages in `xtask/images.pins`, unpacked and never installed.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::ui;
use crate::workspace::Workspace;

/// The pins with which this xtask was built.
const PINS: &str = include_str!("../../images.pins");

/// One version of one package, in the suite that serves it.
#[derive(Debug, PartialEq, Eq)]
struct Package<'p> {
    suite: &'p str,
    name: &'p str,
    version: &'p str,
    sha256: &'p str,
    /// The directory that it is unpacked to, with the others of this name.
    directory: &'p str,
}

/// Gets those that are missing. Without them their tests are skipped, so what cannot be had is only noted.
pub(super) fn offer(ws: &Workspace) {
    let got = pins(PINS).and_then(|pins| {
        let mut directories: Vec<&str> = pins.iter().map(|one| one.directory).collect();
        directories.dedup();
        directories
            .into_iter()
            .try_for_each(|directory| get(ws, directory, &pins))
    });
    if let Err(error) = got {
        ui::note(format_args!(
            "setup: not all programs of clouds' images can be had; tests beside them are skipped: {error:#}"
        ));
    }
}

/// Gets the packages of a directory, unless these versions are there.
fn get(ws: &Workspace, directory: &str, pins: &[Package<'_>]) -> Result<()> {
    let mut of_it = pins.iter().filter(|one| one.directory == directory);
    let to = ws.target.join("images").join(directory);
    let stamp = to.join("pins");
    let text = format!("{:?}", of_it.clone().collect::<Vec<_>>());
    if std::fs::read_to_string(&stamp).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("they are for x86-64");
    }
    ui::note(format_args!("setup: getting Debian's {directory}"));
    let debs = of_it.try_fold(Vec::new(), |mut debs, package| {
        let (suite, name) = (package.suite, package.name);
        let pinned = debian::download_from(ws, suite, name, package.version);
        debs.push(match pinned {
            Ok(deb) => debian::verify(&deb, package.sha256).map(|()| deb)?,
            Err(error) => instead(ws, package, &error)?,
        });
        anyhow::Ok(debs)
    })?;
    debian::unpack(&debs, &to)?;
    std::fs::write(&stamp, text).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Returns a package in place of a pinned one that cannot be downloaded: the one that its suite has now.
fn instead(ws: &Workspace, package: &Package<'_>, error: &anyhow::Error) -> Result<PathBuf> {
    let (suite, name) = (package.suite, package.name);
    let paragraph = debian::ask(ws, suite, |show| show(name))?;
    let field = |field: &str| {
        let mut lines = paragraph.lines();
        let found = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        found.with_context(|| format!("apt's answer about {name} has no field {field}"))
    };
    let (version, sum) = (field("Version")?, field("SHA256")?);
    ui::note(format_args!(
        "setup: the pinned {name} {} cannot be had ({error:#}); taking what Debian serves now, for xtask/images.pins: \
         {suite} {name} {version} {sum} {}",
        package.version, package.directory
    ));
    let deb = debian::download_from(ws, suite, name, version)?;
    debian::verify(&deb, sum)?;
    Ok(deb)
}

fn pins(text: &str) -> Result<Vec<Package<'_>>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pin = |line| {
        let words: Vec<&str> = str::split_whitespace(line).collect();
        let [suite, name, version, sha256, directory] = words[..] else {
            bail!("xtask/images.pins: `{line}` is not: suite, package, version, sha256, directory");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_of_this_repository_can_be_read() {
        let pins = pins(PINS).expect("pins");
        assert!(pins.iter().all(|one| one.sha256.len() == 64), "{pins:?}");
        let mut directories: Vec<&str> = pins.iter().map(|one| one.directory).collect();
        directories.dedup();
        let count = directories.len();
        directories.sort_unstable();
        directories.dedup();
        assert_eq!(
            directories.len(),
            count,
            "those of a directory are together"
        );
    }

    #[test]
    fn a_line_that_says_too_little_is_named() {
        let error = pins("bookworm cloud-init 22.4.2\n").expect_err("three words");
        assert!(error.to_string().contains("cloud-init 22.4.2"), "{error}");
    }
}
