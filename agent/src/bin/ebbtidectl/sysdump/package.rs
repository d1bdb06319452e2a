//! A compressed archive that is written as its files come.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use tar::{Builder, Header};

use super::unix_now;

/// An archive, all of whose files are below one directory.
pub(in super::super) struct Package {
    archive: Builder<GzEncoder<Box<dyn Write>>>,
    directory: &'static str,
    /// Its name while it is written, and afterwards: a dump that was cut off must not look like one.
    names: Option<(PathBuf, PathBuf)>,
}

impl Package {
    /// Begins an archive.
    pub(in super::super) fn new(to: Box<dyn Write>, directory: &'static str) -> Self {
        Self {
            archive: Builder::new(GzEncoder::new(to, Compression::default())),
            directory,
            names: None,
        }
    }

    /// Begins an archive in a file, which only its owner can read.
    pub(in super::super) fn create(path: &Path, directory: &'static str) -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut half = path.as_os_str().to_owned();
        half.push(".part");
        let half = PathBuf::from(half);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&half)
            .with_context(|| format!("make {} (--file names another place)", half.display()))?;
        let mut package = Self::new(Box::new(file), directory);
        package.names = Some((half, path.to_owned()));
        Ok(package)
    }

    /// Adds a file.
    pub(in super::super) fn add(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(unix_now());
        let path = format!("{}/{name}", self.directory);
        self.archive
            .append_data(&mut header, &path, bytes)
            .with_context(|| format!("write {path}"))
    }

    /// Ends the archive.
    pub(in super::super) fn finish(self) -> anyhow::Result<()> {
        let encoder = self.archive.into_inner().context("end the archive")?;
        let mut to = encoder.finish().context("end the archive")?;
        to.flush().context("end the archive")?;
        if let Some((half, whole)) = self.names {
            fs::rename(&half, &whole).with_context(|| format!("name it {}", whole.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use tar::Archive;

    use super::*;

    #[test]
    fn what_is_added_is_found_in_the_archive_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("dump.tar.gz");
        let mut package = Package::create(&file, "dump").unwrap();
        package.add("a/b.json", b"{}").unwrap();
        assert!(!file.exists(), "it is not whole yet");
        package.finish().unwrap();
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1);
        let mut archive = Archive::new(GzDecoder::new(File::open(&file).unwrap()));
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("dump/a/b.json"));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{}");
        assert!(entries.next().is_none());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let error = Package::create(Path::new("/nowhere/dump.tar.gz"), "dump")
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("/nowhere/dump.tar.gz"),
            "{error}"
        );
    }
}
