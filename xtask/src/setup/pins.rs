//! The pinned kernels of Debian that tests boot, in `xtask/kernels.pins`, so that everybody boots the same ones.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::ui;
use crate::workspace::Workspace;

/// The pins with which this xtask was built.
const PINS: &str = include_str!("../../kernels.pins");

/// The prefixes of a kernel's packages: all files are in the first, or (since 6.19) in the two others.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// One version of one package, in the suite that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Package<'p> {
    pub(super) suite: &'p str,
    pub(super) name: &'p str,
    pub(super) version: &'p str,
    pub(super) sha256: &'p str,
}

impl Package<'_> {
    /// Returns the release of its kernel (`uname -r`).
    fn release(&self) -> Option<&str> {
        PARTS.iter().find_map(|part| self.name.strip_prefix(part))
    }
}

/// A pinned kernel: its packages.
#[derive(Debug)]
pub(super) struct Kernel<'p> {
    pub(super) name: &'p str,
    pub(super) packages: Vec<Package<'p>>,
}

impl Kernel<'_> {
    /// Returns its release (`uname -r`).
    pub(super) fn release(&self) -> &str {
        self.packages
            .first()
            .and_then(Package::release)
            .unwrap_or_default()
    }
}

/// All pins, in the order of the file.
#[derive(Debug)]
pub(super) struct Pins<'p>(Vec<Kernel<'p>>);

impl Pins<'static> {
    /// Returns the pins of this repository.
    pub(super) fn read() -> Result<Self> {
        Self::parse(PINS).context("xtask/kernels.pins")
    }
}

impl<'p> Pins<'p> {
    pub(super) fn parse(text: &'p str) -> Result<Self> {
        let mut kernels: Vec<Kernel<'p>> = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kernel, suite, name, version, sha256] = words[..] else {
                bail!("`{line}` is not: name, suite, package, version, sha256");
            };
            let package = Package {
                suite,
                name,
                version,
                sha256,
            };
            if package.release().is_none() {
                bail!("{name} is no package of a kernel");
            }
            match kernels.iter_mut().find(|known| known.name == kernel) {
                Some(known) => known.packages.push(package),
                None => kernels.push(Kernel {
                    name: kernel,
                    packages: vec![package],
                }),
            }
        }
        Ok(Self(kernels))
    }

    /// Returns the kernel of this name.
    pub(super) fn kernel(mut self, name: &str) -> Result<Kernel<'p>> {
        let place = self.0.iter().position(|kernel| kernel.name == name);
        let place = place.with_context(|| format!("xtask/kernels.pins has no kernel {name}"))?;
        Ok(self.0.swap_remove(place))
    }
}

/// Pins the kernels that Debian serves now.
pub(super) fn bump(ws: &Workspace) -> Result<()> {
    let mut text: String = PINS
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    for kernel in &Pins::read()?.0 {
        text.push_str(&served(ws, kernel)?);
    }
    let file = ws.root.join("xtask/kernels.pins");
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    ui::line(text.trim_end());
    Ok(())
}

/// Returns pins of the kernel that the suite of `kernel` has now.
pub(super) fn served(ws: &Workspace, kernel: &Kernel<'_>) -> Result<String> {
    let suite = kernel.packages.first().map_or("", |package| package.suite);
    debian::ask(ws, suite, |show| lines(kernel.name, suite, show))
}

/// Returns the pins of a kernel by the archive's answers.
fn lines(kernel: &str, suite: &str, show: &debian::Show<'_>) -> Result<String> {
    let meta = show("linux-image-amd64")?;
    let image = dependency(&meta, PARTS[0])
        .with_context(|| format!("linux-image-amd64 of {suite} names no kernel"))?;
    let image = show(image)?;
    let split: Vec<&str> = PARTS[1..]
        .iter()
        .filter_map(|part| dependency(&image, part))
        .collect();
    if split.is_empty() {
        return line(kernel, suite, &image);
    }
    split
        .into_iter()
        .map(|package| line(kernel, suite, &show(package)?))
        .collect()
}

/// Returns the pin of a package by its paragraph in the archive's index.
fn line(kernel: &str, suite: &str, paragraph: &str) -> Result<String> {
    let field = |name: &str| {
        let found = paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.with_context(|| format!("apt's answer has no field {name}:\n{paragraph}"))
    };
    let (package, version, sum) = (field("Package")?, field("Version")?, field("SHA256")?);
    Ok(format!("{kernel} {suite} {package} {version} {sum}\n"))
}

/// Returns the first package with the prefix `part` that the package of this paragraph depends on.
fn dependency<'t>(paragraph: &'t str, part: &str) -> Option<&'t str> {
    let depends = paragraph
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))?;
    let mut packages = depends
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next());
    packages.find(|package| package.starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_of_this_repository_can_be_read() {
        for name in ["5.10", "6.1", "6.12", "newest"] {
            let kernel = Pins::read()
                .and_then(|pins| pins.kernel(name))
                .expect("pins");
            assert!(kernel.release().ends_with("-amd64"), "{kernel:?}");
            for package in &kernel.packages {
                assert_eq!(package.release(), Some(kernel.release()));
                assert_eq!(package.sha256.len(), 64);
            }
        }
    }

    #[test]
    fn a_line_that_says_too_little_is_named() {
        let error = Pins::parse("6.1 bookworm linux-image-x\n").expect_err("three words");
        assert!(error.to_string().contains("linux-image-x"), "{error}");
    }

    #[test]
    fn a_meta_package_names_its_kernel_and_a_split_one_its_parts() {
        let meta = "Package: linux-image-amd64\n\
            Depends: linux-base-amd64 (= 7.2-1), linux-image-7.2-amd64 (= 7.2-1)\n";
        assert_eq!(dependency(meta, PARTS[0]), Some("linux-image-7.2-amd64"));
        let image = "Depends: dracut | initramfs-tools, linux-binary-7.2-amd64 (= 7.2-1), \
            linux-modules-7.2-amd64 (= 7.2-1)\n";
        assert_eq!(dependency(image, PARTS[2]), Some("linux-modules-7.2-amd64"));
        assert_eq!(dependency("Depends: kmod\n", PARTS[1]), None);
    }
    #[test]
    fn a_kernel_is_pinned_as_one_package_or_as_its_two_parts() {
        let show = |package: &str| {
            let depends = match package {
                "linux-image-amd64" => "linux-image-5.10.0-9-amd64 (= 5.10.9-1)",
                "linux-image-7-amd64" => "linux-binary-7-amd64, linux-modules-7-amd64",
                _ => "kmod",
            };
            Ok(format!(
                "Package: {package}\nVersion: 1\nSHA256: ab\nDepends: {depends}\n"
            ))
        };
        assert_eq!(
            lines("5.10", "old", &show).expect("whole"),
            "5.10 old linux-image-5.10.0-9-amd64 1 ab\n"
        );
        let split = |package: &str| match package {
            "linux-image-amd64" => Ok("Depends: linux-image-7-amd64\n".to_owned()),
            package => show(package),
        };
        assert_eq!(
            lines("newest", "new", &split).expect("split"),
            "newest new linux-binary-7-amd64 1 ab\nnewest new linux-modules-7-amd64 1 ab\n"
        );
    }
}
