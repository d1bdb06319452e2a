//! Loads a catalog from the `*.yaml`, `*.yml` and `*.json` files of a directory.

mod watch;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use watch::watch;

use super::{Catalog, Consequence, Problem};

/// Reads the manifests of the directory: files named `*.yaml`, `*.yml` or `*.json` (which is YAML,
/// too), sorted by name, without hidden files and subdirectories.
///
/// Never fails as a whole: a file or a directory that cannot be read is a [`Problem`] of the
/// catalog. Blocks on the disk.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::catalog::files;
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let pool = "
/// apiVersion: spiderpool.spidernet.io/v2beta1
/// kind: SpiderIPPool
/// metadata: {name: ens5-v6}
/// spec: {subnet: fd00:16::/64, ips: ['fd00:16::4-fd00:16::ff']}
/// ";
/// std::fs::write(directory.join("pools.yaml"), pool)?;
/// std::fs::write(directory.join("README.txt"), "not a manifest")?;
/// let catalog = files::load(directory);
/// assert_eq!(catalog.pools()[0].name, "ens5-v6");
/// assert!(catalog.problems().is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use]
pub fn load(dir: &Path) -> Catalog {
    let (mut texts, mut unread) = (Vec::new(), Vec::new());
    let files = manifest_files(dir).unwrap_or_else(|error| {
        unread.push(unreadable(
            dir,
            &error,
            "create the directory, or give another with --manifests",
        ));
        Vec::new()
    });
    for file in files {
        match std::fs::read_to_string(&file) {
            Ok(text) => texts.push((file, text)),
            Err(error) => unread.push(unreadable(
                &file,
                &error,
                "make it a UTF-8 file that the agent may read",
            )),
        }
    }
    let texts = texts.iter();
    let mut catalog =
        Catalog::from_texts(texts.map(|(file, text)| (file.as_path(), text.as_str())));
    catalog.problems.extend(unread);
    catalog.problems.sort_by(|a, b| a.file.cmp(&b.file));
    catalog
}

fn unreadable(path: &Path, error: &io::Error, remedy: &str) -> Problem {
    Problem {
        file: path.to_owned(),
        document: None,
        object: None,
        field: None,
        message: format!("cannot be read: {error}; {remedy}"),
        consequence: Consequence::LeftOut,
    }
}

fn manifest_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path
            .extension()
            .is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
        // A directory or a pipe of that name would fail or block; a dangling symlink is to be reported.
        let plain = std::fs::metadata(&path).map_or(true, |metadata| metadata.is_file());
        if yaml && !hidden && plain {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
