//! Replaces files atomically: after a crash or a loss of power there is the old content or the new one, never a part.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The mode of a draft until it is renamed: accessible to its owner alone.
const DRAFT_MODE: u32 = 0o600;

/// An error while replacing a file. The old content still exists, unless only the directory's sync failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}: {source}")]
pub struct ReplaceError {
    /// What was being done.
    pub step: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl From<ReplaceError> for io::Error {
    fn from(error: ReplaceError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// Replaces `path` by a file with this content and mode, which survives a loss of power once this returns.
///
/// The content is written to a draft beside it ([`draft_of`]), which is synced and renamed; then the directory is synced,
/// without which the rename itself may be lost. A symbolic link is replaced, not followed.
///
/// # Errors
/// If a step fails; the draft is removed.
///
/// # Examples
///
/// ```
/// use ebbtide_types::replace::{atomic_replace, draft_of};
///
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("10-ebbtide.conflist");
/// atomic_replace(&path, b"old", 0o600)?;
/// atomic_replace(&path, b"new", 0o600)?;
/// assert_eq!(std::fs::read(&path)?, b"new");
/// assert!(!draft_of(&path).exists());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn atomic_replace(path: &Path, content: &[u8], mode: u32) -> Result<(), ReplaceError> {
    replace_on(&Kernel, path, content, mode, true)
}

/// As [`atomic_replace`], but without waiting for the disk, for content that means nothing after a reboot: it survives
/// the process. After a loss of power the file may be empty.
///
/// # Errors
/// If a step fails; the draft is removed.
pub fn atomic_replace_unsynced(path: &Path, content: &[u8], mode: u32) -> Result<(), ReplaceError> {
    replace_on(&Kernel, path, content, mode, false)
}

/// Syncs the directory of `path`: the names in it survive a loss of power from then on.
///
/// # Errors
/// If it cannot be opened or synced.
pub fn sync_directory_of(path: &Path) -> Result<(), ReplaceError> {
    let directory = directory_of(path);
    let synced = Kernel.sync_directory(directory);
    synced.map_err(at("sync the directory", directory))
}

/// Returns the path of the draft, to which the content is written first. A draft that a killed process left is
/// replaced.
#[must_use]
pub fn draft_of(path: &Path) -> PathBuf {
    let mut name = path
        .file_name()
        .map_or_else(OsString::new, ToOwned::to_owned);
    name.push(".draft");
    path.with_file_name(name)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReplaceError {
    let path = path.to_owned();
    move |source| ReplaceError { step, path, source }
}

/// The steps of a replacement. A test's implementation records them, and fails at one.
trait Disk {
    fn create(&self, draft: &Path) -> io::Result<File>;
    fn write(&self, file: &mut File, content: &[u8]) -> io::Result<()>;
    fn set_mode(&self, file: &File, mode: u32) -> io::Result<()>;
    fn sync(&self, file: &File) -> io::Result<()>;
    fn rename(&self, draft: &Path, path: &Path) -> io::Result<()>;
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

struct Kernel;

impl Disk for Kernel {
    fn create(&self, draft: &Path) -> io::Result<File> {
        let mut options = File::options();
        // An existing file is not written to: it may be a link, or readable by others.
        options.write(true).create_new(true).mode(DRAFT_MODE);
        match options.open(draft) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(draft)?;
                options.open(draft)
            }
            opened => opened,
        }
    }

    fn write(&self, file: &mut File, content: &[u8]) -> io::Result<()> {
        file.write_all(content)
    }

    fn set_mode(&self, file: &File, mode: u32) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(mode))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, draft: &Path, path: &Path) -> io::Result<()> {
        fs::rename(draft, path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

fn replace_on(
    disk: &impl Disk,
    path: &Path,
    content: &[u8],
    mode: u32,
    synced: bool,
) -> Result<(), ReplaceError> {
    let draft = draft_of(path);
    let renamed = (|| {
        let mut file = disk.create(&draft).map_err(at("create", &draft))?;
        let written = disk.write(&mut file, content);
        written.map_err(at("write", &draft))?;
        let set = disk.set_mode(&file, mode);
        set.map_err(at("set the mode of", &draft))?;
        if synced {
            disk.sync(&file).map_err(at("sync", &draft))?;
        }
        let renamed = disk.rename(&draft, path);
        renamed.map_err(at("rename the draft to", path))
    })();
    if renamed.is_err() {
        // Drafts must not keep a full disk full.
        let _absent = fs::remove_file(&draft);
    }
    renamed?;
    if !synced {
        return Ok(());
    }
    let directory = directory_of(path);
    let kept = disk.sync_directory(directory);
    kept.map_err(at("sync the directory", directory))
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, os::unix::fs::symlink};

    use super::*;

    /// The kernel's disk, with a record of the steps; the one of this name fails.
    #[derive(Default)]
    struct Recorded {
        steps: RefCell<Vec<&'static str>>,
        fails: &'static str,
    }

    impl Recorded {
        fn step<T>(
            &self,
            name: &'static str,
            run: impl FnOnce() -> io::Result<T>,
        ) -> io::Result<T> {
            self.steps.borrow_mut().push(name);
            match name == self.fails {
                true => Err(io::Error::from_raw_os_error(28)),
                false => run(),
            }
        }
    }

    impl Disk for Recorded {
        fn create(&self, draft: &Path) -> io::Result<File> {
            self.step("create", || Kernel.create(draft))
        }
        fn write(&self, file: &mut File, content: &[u8]) -> io::Result<()> {
            self.step("write", || Kernel.write(file, content))
        }
        fn set_mode(&self, file: &File, mode: u32) -> io::Result<()> {
            self.step("mode", || Kernel.set_mode(file, mode))
        }
        fn sync(&self, file: &File) -> io::Result<()> {
            self.step("sync", || Kernel.sync(file))
        }
        fn rename(&self, draft: &Path, path: &Path) -> io::Result<()> {
            self.step("rename", || Kernel.rename(draft, path))
        }
        fn sync_directory(&self, directory: &Path) -> io::Result<()> {
            self.step("directory", || Kernel.sync_directory(directory))
        }
    }

    const STEPS: [&str; 6] = ["create", "write", "mode", "sync", "rename", "directory"];

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_file_is_synced_before_it_is_renamed_and_the_directory_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kept.json");
        for (synced, expected) in [
            (true, &STEPS[..]),
            (false, &["create", "write", "mode", "rename"]),
        ] {
            let disk = Recorded::default();
            replace_on(&disk, &path, b"new", 0o600, synced).unwrap();
            assert_eq!(*disk.steps.borrow(), expected);
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
    }

    #[test]
    fn each_step_that_fails_is_named_with_its_path_and_leaves_the_old_file_and_no_draft() {
        for (number, fails) in STEPS.into_iter().enumerate() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("kept.json");
            fs::write(&path, "old").unwrap();
            let disk = Recorded {
                fails,
                ..Recorded::default()
            };
            let error = replace_on(&disk, &path, b"new", 0o600, true).unwrap_err();
            assert_eq!(*disk.steps.borrow(), STEPS[..=number], "{fails}");
            let text = error.to_string();
            assert!(
                text.contains(&*directory.path().to_string_lossy())
                    && text.contains("No space left on device"),
                "{fails}: {text}"
            );
            let there = fs::read(&path).unwrap();
            let is_renamed = fails == "directory";
            assert_eq!(there, if is_renamed { b"new" } else { b"old" }, "{fails}");
            assert!(!draft_of(&path).exists(), "{fails}");
            assert_eq!(
                io::Error::from(error).kind(),
                io::ErrorKind::StorageFull,
                "{fails}"
            );
        }
    }

    #[test]
    fn the_mode_is_the_one_asked_for_whatever_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        for (before, wanted) in [(0o666, 0o600), (0o600, 0o755), (0o777, 0o644)] {
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            atomic_replace(&path, b"new", wanted).unwrap();
            assert_eq!(mode(&path), wanted);
        }
    }

    #[test]
    fn a_draft_that_was_left_is_overwritten_and_links_are_replaced_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let [path, others] = ["kept.json", "others"].map(|name| directory.path().join(name));
        fs::write(draft_of(&path), "half").unwrap();
        atomic_replace(&path, b"1", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
        fs::write(&others, "theirs").unwrap();
        fs::remove_file(&path).unwrap();
        for link in [path.clone(), draft_of(&path)] {
            symlink(&others, link).unwrap();
        }
        atomic_replace(&path, b"2", 0o600).unwrap();
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(fs::read(&others).unwrap(), b"theirs");
    }
}
