//! Names for directories in programs. A compiler notes where its sources were; with these names in place of the paths,
//! two checkouts give the same bytes, and nobody's home directory is in a release.
//!
//! The sources of crates are noted in messages of panics and in names of symbols, those of the kernel's programs in BTF.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace::Workspace;

/// Returns the compiler's flags for crates of this workspace and of registries. Of several that fit, the compiler takes
/// the last one.
pub(crate) fn flags(ws: &Workspace) -> Vec<String> {
    named(ws, "/ebbtide")
}

/// Returns the flags for the kernel's programs. The workspace is named by a path that can be read where the linker runs:
/// it copies the lines of the sources into BTF, and the verifier shows them.
pub(crate) fn for_kernel(ws: &Workspace) -> Vec<String> {
    named(ws, ".")
}

fn named(ws: &Workspace, root: &str) -> Vec<String> {
    let mut flags = vec![flag(&ws.root, root), flag(&ws.target, "/target")];
    if let Some(home) = cargo_home() {
        flags.extend(of_registries(&home));
    }
    flags
}

/// Returns the flags for the registries that crates were unpacked from: their directories are named after addresses, and
/// somebody may use a mirror.
fn of_registries(home: &Path) -> Vec<String> {
    let sources = home.join("registry/src");
    let mut places: Vec<PathBuf> = fs::read_dir(sources)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    places.sort();
    std::iter::once(flag(home, "/cargo"))
        .chain(places.iter().map(|place| flag(place, "/crates")))
        .collect()
}

/// Returns cargo's home directory (The Cargo Book, "Cargo Home").
fn cargo_home() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"));
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(home)
}

/// Returns the flag that gives the directory `from` another name in programs.
pub(crate) fn flag(from: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", from.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registry_has_one_name_and_comes_after_the_directory_it_is_in() {
        let home = std::env::temp_dir().join(format!("xtask-remap-{}", std::process::id()));
        for registry in ["mirror.example-1", "index.crates.io-2"] {
            fs::create_dir_all(home.join("registry/src").join(registry)).expect("a directory");
        }
        let flags = of_registries(&home);
        let shown = home.display();
        assert_eq!(
            flags,
            [
                format!("--remap-path-prefix={shown}=/cargo"),
                format!("--remap-path-prefix={shown}/registry/src/index.crates.io-2=/crates"),
                format!("--remap-path-prefix={shown}/registry/src/mirror.example-1=/crates"),
            ]
        );
        fs::remove_dir_all(&home).expect("clean up");
    }

    #[test]
    fn the_target_directory_is_named_after_the_workspace_that_it_may_be_in() {
        let ws = Workspace {
            root: "/a".into(),
            target: "/a/target".into(),
        };
        let flags = flags(&ws);
        assert_eq!(
            flags[..2],
            [
                "--remap-path-prefix=/a=/ebbtide",
                "--remap-path-prefix=/a/target=/target"
            ]
        );
    }
}
