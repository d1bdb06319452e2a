//! The memory of a user-mode Linux, which is a file that it executes from.

use std::path::Path;
use std::process::Command;

use crate::exec;

/// The preferred directory, which is in memory.
const SHM: &str = "/dev/shm";

/// Properties of a directory's file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// The free space in MiB.
    pub(super) free: u64,
    /// Whether files there may be executed.
    pub(super) exec: bool,
}

impl Room {
    /// Determines the properties of `dir`; no space, if they cannot be determined.
    pub(super) fn of(dir: &Path) -> Self {
        let mut findmnt = Command::new("findmnt");
        findmnt.args(["--noheadings", "--output", "OPTIONS", "--target"]);
        let options = exec::read(findmnt.arg(dir)).unwrap_or_default();
        let mut df = Command::new("df");
        df.args(["--output=avail", "--block-size=1M"]).arg(dir);
        Self::parse(&exec::read(&mut df).unwrap_or_default(), &options)
    }

    /// Parses the output of `df` and `findmnt`.
    fn parse(df: &str, options: &str) -> Self {
        let free = df
            .split_whitespace()
            .last()
            .and_then(|word| word.parse().ok());
        // Of several mounts on one directory the last one counts.
        let options = options.lines().next_back().unwrap_or_default();
        Self {
            free: free.unwrap_or(0),
            exec: !options.trim().split(',').any(|option| option == "noexec"),
        }
    }
}

/// Returns the directory for `needed` MiB: in memory, if that has enough space and allows execution (in containers
/// /dev/shm often has 64 MB, and a guest dies if it runs out); else `otherwise`.
pub(super) fn dir(needed: u64, otherwise: &Path) -> &Path {
    chosen(Room::of(Path::new(SHM)), needed, otherwise)
}

fn chosen(shm: Room, needed: u64, otherwise: &Path) -> &Path {
    if shm.exec && shm.free >= needed {
        Path::new(SHM)
    } else {
        otherwise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_if_there_is_enough_and_it_may_be_executed() {
        for (df, options, expected) in [
            ("Avail\n4096\n", "rw,nosuid,nodev", SHM),
            ("Avail\n3072\n", "rw\n", SHM),
            ("Avail\n3071\n", "rw", "/out"),
            ("Avail\n4096\n", "rw,nosuid,noexec,relatime\n", "/out"),
            ("Avail\n4096\n", "rw,relatime\nrw,noexec\n", "/out"),
            ("Avail\n4096\n", "rw,noexec\nrw,relatime\n", SHM),
            ("", "", "/out"),
        ] {
            let room = Room::parse(df, options);
            assert_eq!(
                chosen(room, 3072, Path::new("/out")),
                Path::new(expected),
                "{df}{options}"
            );
        }
    }
}
