//! The disk operations of the journal, behind a trait: tests use disks that fail.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

pub(super) const JOURNAL: &str = "pool.journal";

/// The files of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::pool) enum Name {
    /// The journal.
    Journal,
    /// The new journal that is to replace it.
    New,
    /// The number of the newest acknowledged batch (see `journal`).
    Mark,
}

impl Name {
    const fn file(self) -> &'static str {
        match self {
            Self::Journal => JOURNAL,
            Self::New => "pool.journal.new",
            Self::Mark => "pool.mark",
        }
    }
}

/// A directory with these files. What was written is durable only once it is synced.
pub(in crate::pool) trait Disk: Send {
    /// Returns the whole file; none if it does not exist.
    fn read(&mut self, name: Name) -> io::Result<Option<Vec<u8>>>;
    /// Writes at this offset; creates the file if it does not exist.
    fn write(&mut self, name: Name, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Truncates the file to this length; creates it if it does not exist.
    fn cut(&mut self, name: Name, length: u64) -> io::Result<()>;
    /// Makes the file's content and length durable.
    fn sync(&mut self, name: Name) -> io::Result<()>;
    /// Renames the new journal to the old one's name.
    fn replace(&mut self) -> io::Result<()>;
    /// Makes the files' names durable.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    directory: File,
    files: [Option<File>; 3],
    /// The lock that keeps other agents out while it is open.
    _lock: File,
}

impl Directory {
    pub(super) fn new(path: &Path, lock: File) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            directory: File::open(path)?,
            files: [const { None }; 3],
            _lock: lock,
        })
    }

    fn path(&self, name: Name) -> PathBuf {
        self.path.join(name.file())
    }

    fn file(&mut self, name: Name) -> io::Result<&File> {
        let path = self.path(name);
        Ok(match &mut self.files[name as usize] {
            Some(file) => file,
            none => {
                let mut options = File::options();
                options.write(true).create(true).truncate(false).mode(0o600);
                none.insert(options.open(path)?)
            }
        })
    }
}

impl Disk for Directory {
    fn read(&mut self, name: Name) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, name: Name, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(data, offset)
    }

    fn cut(&mut self, name: Name, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }

    fn sync(&mut self, name: Name) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn replace(&mut self) -> io::Result<()> {
        fs::rename(self.path(Name::New), self.path(Name::Journal))?;
        self.files[Name::Journal as usize] = self.files[Name::New as usize].take();
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.directory.sync_all()
    }
}
