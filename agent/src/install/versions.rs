//! Which versions of the CNI specification a list can be of: those that all of its plugins speak.
//!
//! A runtime gives every plugin of a list the list's version, and a plugin that does not know it fails
//! every ADD. containerd 1.6 and older CRI-O (libcni before 1.2) know none newer than 1.0.0: they take
//! `cniVersion` as it is and fail on the result. Newer ones take the newest of `cniVersions` that they
//! know (`conf.go` of libcni). So `cniVersion` is what all can, and `cniVersions` has 1.1.0, which brings
//! STATUS and GC, where nothing in the list is against it.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::merge::besides_ours;

/// What every runtime since containerd 1.6 and CRI-O 1.23 reads, and every plugin of these days speaks.
pub(super) const OLDER: &str = "1.0.0";
/// The one with STATUS and GC.
pub(super) const NEWER: &str = "1.1.0";

/// A plugin only prints a list.
const PATIENCE: Duration = Duration::from_secs(3);

/// Offers the newest version that every plugin of `list` speaks. Gives those that do not speak it.
pub(super) fn negotiate(list: &mut Value, plugins: &Path) -> Vec<String> {
    let mut against: Vec<String> = besides_ours(list)
        .filter(|kind| !speaks(plugins, kind, NEWER))
        .map(ToOwned::to_owned)
        .collect();
    against.dedup();
    let offered = match against.is_empty() {
        true => json!([OLDER, NEWER]),
        false => json!([OLDER]),
    };
    if let Some(list) = list.as_object_mut() {
        list.insert("cniVersions".to_owned(), offered);
    }
    against
}

/// Whether the plugin says that it speaks a version. One that cannot be asked (not there, or not a program for
/// where we run) does not.
fn speaks(plugins: &Path, kind: &str, version: &str) -> bool {
    let is_name = !kind.is_empty() && !kind.contains('/') && !matches!(kind, "." | "..");
    let said = is_name.then(|| ask(&plugins.join(kind))).flatten();
    let said: Value = said
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let versions = said["supportedVersions"].as_array();
    versions.is_some_and(|versions| versions.iter().any(|spoken| spoken == version))
}

/// The answer to VERSION.
fn ask(program: &Path) -> Option<Vec<u8>> {
    let mut child = Command::new(program)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read may answer all the same.
        let _unread = stdin.write_all(format!("{{\"cniVersion\":\"{OLDER}\"}}").as_bytes());
    }
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(None) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ended = child.kill();
                let _reaped = child.wait();
                return None;
            }
        }
    }
    child.wait_with_output().ok().map(|output| output.stdout)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use tempfile::TempDir;

    use super::*;

    fn offered(kind: &str, script: &str) -> (Value, Vec<String>) {
        let plugins = TempDir::new().unwrap();
        let program = plugins.path().join(kind);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut list = json!({"plugins": [{"type": "ebbtide"}, {"type": kind}]});
        let against = negotiate(&mut list, plugins.path());
        (list["cniVersions"].clone(), against)
    }

    #[test]
    fn the_newer_version_is_offered_where_every_plugin_speaks_it() {
        let says = |versions: &str| {
            format!(
                "cat > /dev/null; echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[{versions}]}}'"
            )
        };
        let newer = says("\"1.0.0\",\"1.1.0\"");
        let both = json!([OLDER, NEWER]);
        assert_eq!(offered("portmap", &newer), (both.clone(), vec![]));
        for (kind, script) in [
            ("portmap", says("\"0.4.0\",\"1.0.0\"")),
            ("istio-cni", "exit 1".into()),
            ("istio-cni", "echo nothing".into()),
        ] {
            let (versions, against) = offered(kind, &script);
            assert_eq!(
                (versions, against),
                (json!([OLDER]), vec![kind.to_owned()]),
                "{script}"
            );
        }
        let mut alone = json!({"plugins": [{"type": "ebbtide"}]});
        assert!(negotiate(&mut alone, Path::new("/nowhere")).is_empty());
        assert_eq!(alone["cniVersions"], both);
        let mut absent = json!({"plugins": [{"type": "ebbtide"}, {"type": "../x"}]});
        assert_eq!(negotiate(&mut absent, Path::new("/nowhere")), ["../x"]);
    }
}
