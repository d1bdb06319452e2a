//! Reads and writes sysctls below `/proc/sys`. The `net` part belongs to the namespace of the calling thread.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{LazyLock, OnceLock},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat},
    sys::stat::Mode,
};

use super::{Error, model::Sysctl};

/// The default directory of sysctls; see [`set_root`].
pub const ROOT: &str = "/proc/sys";

static OTHER_ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Sets the directory of sysctls: an unprivileged container has its own `/proc/sys` read-only, and the host's in
/// another place. The first call wins.
pub fn set_root(root: PathBuf) {
    let _ = OTHER_ROOT.set(root);
}

/// Returns the directory of sysctls.
#[must_use]
pub fn root() -> &'static Path {
    OTHER_ROOT.get().map_or(Path::new(ROOT), PathBuf::as_path)
}

/// The buffer for a value, in bytes: the agent writes no longer ones.
const LONGEST: usize = 64;

/// The sysctls of one namespace: that of the thread which uses this first.
///
/// Every namespace has its own directories for IPv4 and IPv6, all of the same name, and the kernel compares them one
/// after the other until it finds the right one (`proc_sys_compare`, fs/proc/proc_sysctl.c). With many pods that takes
/// longer than the sysctl itself, so each is looked up once.
///
/// They must be used in the namespace they belong to. From another one, the directories lead to the right sysctls, but
/// the kernel does not find its cached entries, adds new ones each time, and compares all of them the next time: every
/// use makes all later ones slower. Builds with debug assertions panic.
#[derive(Debug, Default)]
pub struct Settings {
    families: [OnceLock<Result<OwnedFd, Errno>>; 2],
    /// The inode of the namespace, where debug assertions are on.
    namespace: OnceLock<Option<u64>>,
}

/// The directories that each namespace has of its own.
const FAMILIES: [&str; 2] = ["net/ipv4", "net/ipv6"];

impl Settings {
    /// Returns the host's sysctls, for threads in the host's namespace.
    pub fn of_the_host() -> &'static Self {
        static HOST: LazyLock<Settings> = LazyLock::new(Settings::default);
        &HOST
    }

    fn family(&self, number: usize) -> &Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = || {
            openat(
                AT_FDCWD,
                &root().join(FAMILIES[number]),
                flags,
                Mode::empty(),
            )
        };
        self.families[number].get_or_init(open)
    }

    /// Opens the sysctl; `None` if there is nothing to set: a kernel or a link without IPv6 has none of its sysctls,
    /// and none of what they would prevent.
    fn open(&self, sysctl: &Sysctl, how: OFlag) -> Result<Option<File>, Errno> {
        if cfg!(debug_assertions) {
            let found = std::fs::metadata("/proc/thread-self/ns/net").map(|found| found.ino());
            let here = found.ok();
            let own = self.namespace.get_or_init(|| here);
            assert_eq!(
                *own, here,
                "sysctls are used in their own network namespace"
            );
        }
        let how = how | OFlag::O_CLOEXEC;
        for (number, name) in FAMILIES.iter().enumerate() {
            let Ok(rest) = Path::new(&sysctl.path).strip_prefix(name) else {
                continue;
            };
            return match self.family(number) {
                Ok(directory) => match openat(directory, rest, how, Mode::empty()) {
                    Ok(file) => Ok(Some(file.into())),
                    Err(Errno::ENOENT) if self.is_of_a_link_without_ipv6(rest) => Ok(None),
                    Err(e) => Err(e),
                },
                Err(Errno::ENOENT) if *name == "net/ipv6" => Ok(None),
                Err(e) => Err(*e),
            };
        }
        let path = root().join(&sysctl.path);
        Ok(Some(openat(AT_FDCWD, &path, how, Mode::empty())?.into()))
    }

    /// Whether the sysctl, below `net/ipv6`, belongs to a link that exists without IPv6: its MTU is too small
    /// (`IPV6_MIN_MTU`; `addrconf_notify`, net/ipv6/addrconf.c).
    fn is_of_a_link_without_ipv6(&self, setting: &Path) -> bool {
        let Some(link) = setting.parent().filter(|link| link.starts_with("conf")) else {
            return false;
        };
        let [has_it, has_ipv6] = [0, 1].map(|number| {
            let directory = self.family(number).as_ref();
            directory.is_ok_and(|family| openat(family, link, OFlag::O_PATH, Mode::empty()).is_ok())
        });
        has_it && !has_ipv6
    }

    /// Returns the current value, without its newline; `None` if there is nothing to set.
    ///
    /// # Errors
    /// If the sysctl does not exist or cannot be read.
    pub fn read(&self, sysctl: &Sysctl) -> Result<Option<String>, Error> {
        let failed = |e| Error::new(format_args!("read sysctl {}", sysctl.path), e);
        let file = self.open(sysctl, OFlag::O_RDONLY);
        let Some(mut file) = file.map_err(|e| failed(e.into()))? else {
            return Ok(None);
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Ok(Some(text.trim_end().to_owned()))
    }

    /// Writes the sysctl unless it has the value already (so a read-only `/proc/sys` is no error where nothing needs to
    /// change).
    ///
    /// # Errors
    /// If the sysctl does not exist or cannot be written.
    pub fn write(&self, sysctl: &Sysctl) -> Result<(), Error> {
        self.write_value(sysctl).map_err(|e| {
            let hint = match e.kind() {
                io::ErrorKind::ReadOnlyFilesystem => {
                    " (mount the host's /proc/sys writable and name it: --sysctl-dir)"
                }
                io::ErrorKind::NotFound => " (the kernel or the link does not have it)",
                _ => "",
            };
            Error::new(format_args!("set {sysctl}{hint}"), e)
        })
    }

    fn write_value(&self, sysctl: &Sysctl) -> io::Result<()> {
        let has_it = |file: &File| -> io::Result<bool> {
            let mut value = [0; LONGEST];
            let length = file.read_at(&mut value, 0)?;
            Ok(value[..length].trim_ascii_end() == sysctl.value.as_bytes())
        };
        match self.open(sysctl, OFlag::O_RDWR) {
            Ok(None) => Ok(()),
            Ok(Some(file)) if has_it(&file)? => Ok(()),
            // A write that does not begin at 0 is ignored (`sysctl_writes_strict`).
            Ok(Some(file)) => file.write_all_at(sysctl.value.as_bytes(), 0),
            Err(refused) => match self.open(sysctl, OFlag::O_RDONLY) {
                Ok(Some(file)) if has_it(&file)? => Ok(()),
                _ => Err(refused.into()),
            },
        }
    }

    /// Writes all of them, as [`Settings::write`].
    ///
    /// # Errors
    /// The first failure; later ones are not written.
    pub fn write_all(&self, all: &[Sysctl]) -> Result<(), Error> {
        all.iter().try_for_each(|sysctl| self.write(sysctl))
    }
}

/// As [`Settings::read`], for one setting.
///
/// # Errors
/// If the sysctl does not exist or cannot be read.
pub fn read(sysctl: &Sysctl) -> Result<Option<String>, Error> {
    Settings::default().read(sysctl)
}

/// As [`Settings::write`], for one setting.
///
/// # Errors
/// If the sysctl does not exist or cannot be written.
pub fn write(sysctl: &Sysctl) -> Result<(), Error> {
    Settings::default().write(sysctl)
}

/// As [`Settings::write_all`].
///
/// # Errors
/// The first failure; later ones are not written.
pub fn write_all(all: &[Sysctl]) -> Result<(), Error> {
    Settings::default().write_all(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(path: &str, value: &str) -> Sysctl {
        Sysctl {
            path: path.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn what_has_its_value_is_not_written() {
        let settings = Settings::default();
        for path in ["net/ipv4/ip_forward", "kernel/ostype"] {
            let value = settings.read(&setting(path, "")).unwrap().unwrap();
            // ostype cannot be written at all.
            settings.write(&setting(path, &value)).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "in their own network namespace")]
    fn using_them_from_another_namespace_is_a_bug() {
        let settings = Settings {
            namespace: OnceLock::from(Some(1)),
            ..Settings::default()
        };
        drop(settings.read(&setting("net/ipv4/ip_forward", "")));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let settings = Settings::default();
        for path in ["net/ipv4/conf/no-such-link/rp_filter", "kernel/no-such"] {
            let error = settings.write(&setting(path, "1")).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
            assert!(error.to_string().contains("does not have it"), "{error}");
        }
    }
}
