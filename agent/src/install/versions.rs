//! Chooses the versions of the CNI specification that a list offers: those that all of its plugins support.
//!
//! A runtime passes the list's version to every plugin, and a plugin that does not support it fails every ADD.
//! containerd 1.6 and older CRI-O (libcni before 1.2) support none newer than 1.0.0: they take `cniVersion` as it is
//! and fail on the result. Newer ones take the newest of `cniVersions` that they support (`conf.go` of libcni). So
//! `cniVersion` is what all support, including plugins that others have added, and `cniVersions` also has 1.1.0, which
//! brings STATUS and GC, if all support it.

use std::{path::Path, process::Command, time::Duration};

use ebbtide_plugin::cni::VERSIONS;
use serde_json::{Value, json};

use super::merge::foreign_plugins;
use crate::program;

/// The version that every runtime since containerd 1.6 and CRI-O 1.23 reads, and every current plugin supports.
pub(super) const OLDER: &str = "1.0.0";
/// The version with STATUS and GC.
pub(super) const NEWER: &str = "1.1.0";

/// How long a plugin may take: it only prints a list.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How many bytes of its output are read.
const MAX_OUTPUT: u64 = 1 << 20;

/// Sets the list's version to the newest one up to [`OLDER`] that every plugin of `list` supports, and also offers
/// [`NEWER`] if all support it. A plugin that cannot be asked keeps the list at the version `before`, which it was
/// called with. Returns the plugins that do not support [`NEWER`].
pub(super) fn negotiate(list: &mut Value, plugins: &Path, before: Option<&str>) -> Vec<String> {
    let rank = |version: &str| VERSIONS.iter().position(|known| *known == version);
    let spoken: Vec<(String, Option<Vec<String>>)> = foreign_plugins(list)
        .map(|kind| (kind.to_owned(), spoken(plugins, kind)))
        .collect();
    let mut against: Vec<String> = spoken
        .iter()
        .filter(|(_, versions)| !versions.iter().flatten().any(|version| version == NEWER))
        .map(|(kind, _)| kind.clone())
        .collect();
    against.dedup();
    let before = before.and_then(rank);
    let all_speak = |version: &&&str| {
        spoken.iter().all(|(_, versions)| match versions {
            Some(versions) => versions.iter().any(|spoken| spoken == **version),
            None => before.is_none_or(|before| rank(version) <= Some(before)),
        })
    };
    let newest_first = VERSIONS.iter().rev();
    let up_to_older = newest_first.filter(|version| rank(version) <= rank(OLDER));
    // Without a common version no pod can start anyway.
    let own = *up_to_older.into_iter().find(all_speak).unwrap_or(&OLDER);
    let offered = match against.is_empty() {
        true => json!([own, NEWER]),
        false => json!([own]),
    };
    if let Some(list) = list.as_object_mut() {
        list.insert("cniVersion".to_owned(), own.into());
        list.insert("cniVersions".to_owned(), offered);
    }
    against
}

/// Returns the versions that a plugin supports. `None` if it cannot be asked (it does not exist, or is no program for
/// this machine).
fn spoken(plugins: &Path, kind: &str) -> Option<Vec<String>> {
    let is_name = !kind.is_empty() && !kind.contains('/') && !matches!(kind, "." | "..");
    let said = is_name.then(|| ask(&plugins.join(kind))).flatten()?;
    let said: Value = serde_json::from_slice(&said).ok()?;
    let versions = said["supportedVersions"].as_array()?.iter();
    Some(
        versions
            .filter_map(|version| Some(version.as_str()?.to_owned()))
            .collect(),
    )
}

/// Returns the plugin's output for VERSION.
fn ask(plugin: &Path) -> Option<Vec<u8>> {
    let mut command = Command::new(plugin);
    command.env_clear().env("CNI_COMMAND", "VERSION");
    let input = format!("{{\"cniVersion\":\"{OLDER}\"}}");
    let output = program::output(&mut command, input.as_bytes(), TIMEOUT, MAX_OUTPUT).ok()?;
    output.status.success().then_some(output.stdout)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::program::write_script;

    fn offered(kind: &str, script: &str) -> (Value, Vec<String>) {
        let plugins = TempDir::new().unwrap();
        write_script(&plugins.path().join(kind), script);
        let mut list = json!({"plugins": [{"type": "ebbtide"}, {"type": kind}]});
        let against = negotiate(&mut list, plugins.path(), None);
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
        assert!(negotiate(&mut alone, Path::new("/nowhere"), None).is_empty());
        assert_eq!(alone["cniVersions"], both);
        let mut absent = json!({"plugins": [{"type": "ebbtide"}, {"type": "../x"}]});
        assert_eq!(
            negotiate(&mut absent, Path::new("/nowhere"), None),
            ["../x"]
        );
    }

    #[test]
    fn a_list_is_of_a_version_that_every_plugin_in_it_speaks() {
        let old = Some(r#""0.1.0","0.2.0","0.3.0","0.3.1","0.4.0""#);
        let new = Some(r#""0.3.1","0.4.0","1.0.0","1.1.0""#);
        for (others, before, own, offered) in [
            (vec![old], Some("0.3.1"), "0.4.0", json!(["0.4.0"])),
            (vec![old], Some("1.0.0"), "0.4.0", json!(["0.4.0"])),
            (vec![old, new], None, "0.4.0", json!(["0.4.0"])),
            (vec![new], Some("0.3.1"), "1.0.0", json!(["1.0.0", "1.1.0"])),
            (
                vec![Some(r#""0.3.0","0.3.1""#), new],
                Some("1.0.0"),
                "0.3.1",
                json!(["0.3.1"]),
            ),
            // It cannot be asked: the version that it was called with before.
            (vec![None], Some("0.3.1"), "0.3.1", json!(["0.3.1"])),
            (vec![None], Some("1.0.0"), "1.0.0", json!(["1.0.0"])),
            (vec![None], Some("1.1.0"), "1.0.0", json!(["1.0.0"])),
            (vec![None], Some("nonsense"), "1.0.0", json!(["1.0.0"])),
            (vec![None], None, "1.0.0", json!(["1.0.0"])),
            (vec![None, old], Some("0.3.1"), "0.3.1", json!(["0.3.1"])),
            // No common version.
            (
                vec![Some(r#""0.1.0""#), Some(r#""1.1.0""#)],
                Some("0.3.1"),
                "1.0.0",
                json!(["1.0.0"]),
            ),
        ] {
            let plugins = TempDir::new().unwrap();
            let mut list = json!({"cniVersion": OLDER, "plugins": [{"type": "ebbtide"}]});
            for (number, versions) in others.iter().enumerate() {
                let kind = format!("plugin{number}");
                list["plugins"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"type": kind}));
                let Some(versions) = versions else { continue };
                let answer = format!(r#"{{"supportedVersions":[{versions}]}}"#);
                let script = format!("cat >/dev/null; echo '{answer}'");
                write_script(&plugins.path().join(&kind), &script);
            }
            negotiate(&mut list, plugins.path(), before);
            assert_eq!(list["cniVersion"], own, "{others:?} {before:?}");
            assert_eq!(list["cniVersions"], offered, "{others:?} {before:?}");
        }
    }
}
