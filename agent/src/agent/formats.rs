//! The files of the state directory that have a version. Before an agent changes anything it looks whether a newer release
//! has written one of them: then it does not start, and what is there stays as it is.
//!
//! The journal of the pools is not in this table: its store refuses a newer one ([`OpenError::Schema`]), when it has
//! told it from a damaged one.
//!
//! [`OpenError::Schema`]: ebbtide_ipam::pool::OpenError::Schema

use std::{fs, path::Path};

use ebbtide_types::format::{self, Newer};

use super::{chained, forwarding_backup, qdiscs_made, sysctl_backup};
use crate::cloud::surrendered;

/// The files, and the newest version of each that this agent reads.
const FILES: [(&str, u64); 5] = [
    (sysctl_backup::FILE, sysctl_backup::VERSION),
    (forwarding_backup::FILE, forwarding_backup::VERSION),
    (qdiscs_made::FILE, qdiscs_made::VERSION),
    (ebbtide_cloud::saved::FILE, ebbtide_cloud::saved::VERSION),
    (surrendered::FILE, surrendered::VERSION),
];

/// Refuses a state directory in which a newer release has written. Nothing is changed.
///
/// # Errors
/// The first such file. What is missing or damaged is no error here: whoever reads it decides.
pub fn refuse_newer(state: &Path) -> Result<(), Newer> {
    let files = FILES.map(|(name, known)| (state.join(name), known));
    let records = chained::files(state).into_iter();
    let records = records.map(|path| (path, chained::VERSION));
    files
        .into_iter()
        .chain(records)
        .try_for_each(|(path, known)| {
            let text = fs::read(&path).unwrap_or_default();
            format::refuse_newer(&path, &text, known)
        })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A file of the next version, with what this one does not know.
    fn newer(version: u64) -> String {
        format!(r#"{{"version": {version}, "boot": 7, "settings": [], "new": {{"a": null}}}}"#)
    }

    #[test]
    fn a_newer_file_is_refused_with_the_way_back_and_stays_as_it_is() {
        let chained = Path::new("chained").join("c@eth0@0.json");
        let all = FILES.map(|(name, known)| (PathBuf::from(name), known));
        for (name, known) in all.into_iter().chain([(chained, chained::VERSION)]) {
            let state = tempfile::tempdir().unwrap();
            fs::create_dir(state.path().join("chained")).unwrap();
            let path = state.path().join(&name);
            refuse_newer(state.path()).unwrap();
            for text in [
                &newer(known)[..],
                "",
                "{",
                "\0\0\0",
                "[]",
                "{\"version\": -1}",
            ] {
                fs::write(&path, text).unwrap();
                refuse_newer(state.path()).unwrap();
            }
            fs::write(&path, newer(known + 1)).unwrap();
            let refused = refuse_newer(state.path()).unwrap_err();
            assert_eq!((refused.found, refused.known), (known + 1, known));
            let said = refused.to_string();
            let parts = [
                path.to_str().unwrap(),
                "Install that release again",
                "docs/operate.md",
                "running pods keep their network",
            ];
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
            assert_eq!(fs::read_to_string(&path).unwrap(), newer(known + 1));
        }
    }

    #[test]
    fn what_this_release_writes_is_not_newer() {
        let state = tempfile::tempdir().unwrap();
        qdiscs_made::record(state.path(), [(2, "ens5".to_owned())].into());
        let text = fs::read_to_string(state.path().join(qdiscs_made::FILE)).unwrap();
        assert!(text.contains("\"version\": 1"), "{text}");
        refuse_newer(state.path()).unwrap();
        assert_eq!(qdiscs_made::load(state.path()).len(), 1);
    }
}
