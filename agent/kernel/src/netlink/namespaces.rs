//! Finds the network namespaces that are visible from here: those at a path (`/run/netns`, a runtime's own directory),
//! and those of processes.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::netns::{Evidence, Netns};

/// Opens each visible network namespace once, except the one with the inode `own`. Inaccessible ones are left out.
#[must_use]
pub(super) fn others(own: u64) -> Vec<Netns> {
    let mut seen = HashSet::from([own]);
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for path in mounted(&mounts).into_iter().chain(of_processes()) {
        let inode = fs::metadata(&path).map(|found| found.ino());
        if let Ok(inode) = inode
            && seen.insert(inode)
            && let Ok(Evidence::Present(netns)) = Netns::inspect(&path, Some(inode))
        {
            found.push(netns);
        }
    }
    found
}

/// Returns the paths of mounted namespaces (proc_pid_mountinfo(5)): their root is their own name, `net:[4026532281]`.
fn mounted(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(3);
            let root = fields.next()?;
            let path = fields.next().filter(|_| root.starts_with(b"net:["))?;
            Some(PathBuf::from(OsString::from_vec(unescaped(path))))
        })
        .collect()
}

/// Decodes the escapes of blanks and backslashes (`\040` and the like).
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        let octal = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', left @ ..]) => {
                rest = left;
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        text.push(octal.unwrap_or(*first));
    }
    text
}

fn of_processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        let is_process = name.bytes().all(|byte| byte.is_ascii_digit());
        is_process.then(|| entry.path().join("ns/net"))
    })
}

/// Formats a namespace's path for people: a process by its PID and name.
#[must_use]
pub(super) fn called(path: &Path) -> String {
    let process = || {
        let directory = path.strip_prefix("/proc").ok()?.iter().next()?;
        let name = fs::read_to_string(Path::new("/proc").join(directory).join("comm")).ok()?;
        let number = directory.display();
        Some(format!(
            "the namespace of process {number} ({})",
            name.trim_end()
        ))
    };
    process().unwrap_or_else(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_found_among_the_mounts() {
        let mounts = b"22 1 0:21 / /proc rw shared:5 - proc proc rw\n\
            300 25 0:4 net:[4026532281] /run/netns/cni-1 rw shared:9 - nsfs nsfs rw\n\
            301 25 0:4 mnt:[4026532282] /run/mnt rw - nsfs nsfs rw\n\
            302 25 0:4 net:[4026532283] /run/a\\040b rw - nsfs nsfs rw\n";
        let expected = ["/run/netns/cni-1", "/run/a b"].map(PathBuf::from);
        assert_eq!(mounted(mounts), expected);
    }

    #[test]
    fn a_process_is_named_and_another_path_is_itself() {
        let own = format!("/proc/{}/ns/net", std::process::id());
        let called_so = called(Path::new(&own));
        assert!(
            called_so.starts_with("the namespace of process "),
            "{called_so}"
        );
        assert_eq!(called(Path::new("/run/netns/x")), "/run/netns/x");
    }
}
