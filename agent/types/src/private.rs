//! Restricts access to the agent's own files and directories, since they describe pods.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use tracing::warn;

/// The names of the agent's files in its state directory; new ones have one of these names with a suffix.
const OWN_FILES: [&str; 6] = [
    "pool.",
    "chained",
    "cloud.",
    "kubernetes.json",
    "settings-before",
    "spiderpool-taken-over",
];

/// Whether a file of this name in the state directory is the agent's.
#[must_use]
pub fn is_own_file(name: &str) -> bool {
    OWN_FILES.iter().any(|own| name.starts_with(own))
}

/// Creates a directory that only its owner can access, and those above it; an existing one stays as it is.
///
/// # Errors
/// If it cannot be created.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Restricts the agent's files in the state directory to their owner, and the directory itself, if it has no foreign
/// files: its creator (the kubelet, a package) may have let everybody in.
pub fn restrict_permissions(state: &Path) {
    let state = &fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
    let entries = match fs::read_dir(state) {
        Ok(entries) => entries,
        Err(e) => return warn!("read {}: {e}", state.display()),
    };
    let mut of_others = None;
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let is_ours = |ours: &str| name.as_encoded_bytes().starts_with(ours.as_bytes());
        if !OWN_FILES.iter().any(|ours| is_ours(ours)) {
            of_others = Some(path);
            continue;
        }
        restrict(&path);
        if path.is_dir() {
            for record in fs::read_dir(&path).into_iter().flatten().flatten() {
                restrict(&record.path());
            }
        }
    }
    match of_others {
        None => restrict(state),
        Some(path) if is_wide(state) => warn!(
            "others may look into {}: it stays so, as not all in it is the agent's ({}); give the agent a directory of its \
             own (--state-dir), or `chmod 700` it",
            state.display(),
            path.display()
        ),
        Some(_) => {}
    }
}

fn is_wide(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
}

/// Removes all rights but the owner's.
fn restrict(path: &Path) {
    let Ok(found) = fs::metadata(path) else {
        return;
    };
    let mode = found.permissions().mode();
    // The target of a symbolic link may be anybody's.
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    if is_link || mode & 0o077 == 0 {
        return;
    }
    if let Err(e) = fs::set_permissions(path, Permissions::from_mode(mode & 0o700)) {
        warn!("others may read {}: {e}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn widen(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_everybody_could_read_is_the_owner_s_alone() {
        let state = tempfile::tempdir().unwrap();
        let at = |name: &str| state.path().join(name);
        fs::create_dir(at("chained")).unwrap();
        let files = [
            "pool.journal",
            "chained/a@eth0.json",
            "cloud.json",
            "kubernetes.json",
            "settings-before.json",
        ];
        for name in files {
            fs::write(at(name), "{}").unwrap();
            widen(&at(name), 0o666);
        }
        widen(&at("chained"), 0o755);
        widen(state.path(), 0o755);
        restrict_permissions(state.path());
        for name in files {
            assert_eq!(mode(&at(name)), 0o600, "{name}");
        }
        assert_eq!([mode(&at("chained")), mode(state.path())], [0o700, 0o700]);
    }

    #[test]
    fn a_directory_with_others_files_and_these_stay_as_they_are() {
        let state = tempfile::tempdir().unwrap();
        let other = state.path().join("dhcpd.leases");
        fs::write(&other, "").unwrap();
        widen(&other, 0o644);
        widen(state.path(), 0o755);
        std::os::unix::fs::symlink(&other, state.path().join("pool.link")).unwrap();
        restrict_permissions(state.path());
        assert_eq!([mode(&other), mode(state.path())], [0o644, 0o755]);
    }

    #[test]
    fn a_new_directory_is_the_owner_s_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        make_directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }
}
