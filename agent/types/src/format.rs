//! The version of a file's format. A release that adds what an older one must not lose counts it up, and an older one
//! then refuses the file, instead of reading half of it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The version `N` of a JSON document, as its field `version`. Files that were written before there were versions are of
/// the first: the field has `#[serde(default)]` there.
///
/// # Examples
///
/// ```
/// use ebbtide_types::format::Version;
///
/// assert_eq!(serde_json::to_string(&Version::<1>)?, "1");
/// assert!(serde_json::from_str::<Version<1>>("1").is_ok());
/// assert!(serde_json::from_str::<Version<1>>("2").is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version<const N: u64>;

impl<const N: u64> Serialize for Version<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(N)
    }
}

impl<'de, const N: u64> Deserialize<'de> for Version<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            found if found == N => Ok(Self),
            found => Err(de::Error::custom(format!(
                "it has version {found}, this agent knows {N}"
            ))),
        }
    }
}

/// A file that a newer release wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} has version {found}, this agent knows {known}: {BACK}", path = .path.display())]
pub struct Newer {
    /// The file.
    pub path: PathBuf,
    /// Its version.
    pub found: u64,
    /// The newest version that this code reads.
    pub known: u64,
}

/// What somebody does about a file of another release.
pub const BACK: &str = "another release wrote it. Nothing was changed, and running pods keep their network. Install that \
                        release again; to stay with this one, see `Back to an older release` in docs/operate.md";

/// Refuses a JSON document whose field `version` is greater than `known`. One without such a field is not newer, and what
/// is no JSON is for its reader.
///
/// # Errors
/// [`Newer`], with `path` in it.
pub fn refuse_newer(path: &Path, text: &[u8], known: u64) -> Result<(), Newer> {
    #[derive(Deserialize)]
    struct Head {
        version: u64,
    }
    match serde_json::from_slice::<Head>(text) {
        Ok(Head { version: found }) if found > known => Err(Newer {
            path: path.to_owned(),
            found,
            known,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_document_is_refused_whatever_else_is_in_it() {
        for (text, is_refused) in [
            (r#"{"version": 2}"#, true),
            (r#"{"new": [{}], "version": 7, "ledger": 1}"#, true),
            (r#"{"version": 1, "new": true}"#, false),
            (r#"{"version": 0}"#, false),
            (r#"{"version": "2"}"#, false),
            (r#"{"net/ipv4/ip_forward": {"was": "0"}}"#, false),
            ("[]", false),
            (r#"{"version": 2"#, false),
            ("", false),
        ] {
            let refused = refuse_newer(Path::new("/x/file.json"), text.as_bytes(), 1);
            assert_eq!(refused.is_err(), is_refused, "{text}");
            if let Err(newer) = refused {
                let said = newer.to_string();
                let all = ["/x/file.json", "version", "knows 1", "operate.md"];
                assert!(all.iter().all(|part| said.contains(part)), "{said}");
            }
        }
    }
}
