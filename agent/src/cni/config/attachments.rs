//! GC's list of attachments to keep.

use ebbtide_plugin::{cni::code, object::Object};
use serde::Deserialize;

use super::NetConf;
use crate::cni::{Failure, nulls::is_null_or_empty};

/// An attachment that GC must keep.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct ValidAttachment {
    /// The container's ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface that the runtime requested.
    pub ifname: String,
}

/// The keys of the list of [`ValidAttachment`]s: the specification of 1.1.0 has one name in its text and another in
/// its examples. libcni writes both. The text's one counts.
pub(super) const VALID_ATTACHMENTS: [&str; 2] =
    ["cni.dev/valid-attachments", "cni.dev/attachments"];

impl NetConf {
    /// Returns the attachments that GC must keep.
    ///
    /// # Errors
    /// If the list is missing, or one of its items is not an attachment. An item that is skipped would cost a pod its
    /// network, and a list that is taken for empty all pods.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Failure> {
        let refused = |message: String| {
            Failure::new(
                code::INVALID_NETWORK_CONFIG,
                message,
                "the runtime must list the attachments that are to stay, even if there are none; nothing was removed",
            )
        };
        let [name, _] = VALID_ATTACHMENTS;
        let given = self.valid_attachments.as_ref();
        let Some(list) = given.filter(|list| !is_null_or_empty(list)) else {
            return Err(refused(format!("GC without `{name}`")));
        };
        let read: Vec<Object<ValidAttachment>> = serde_path_to_error::deserialize(list)
            .map_err(|e| refused(format!("GC: `{name}{}`: {}", at(e.path()), e.inner())))?;
        let list = read.into_iter().map(|Object(attachment)| attachment);
        let list: Vec<ValidAttachment> = list.collect();
        let is_empty = |a: &ValidAttachment| a.container_id.is_empty() || a.ifname.is_empty();
        match list.iter().position(is_empty) {
            None => Ok(list),
            Some(position) => Err(refused(format!(
                "GC: `{name}[{position}]` has no container ID or no interface"
            ))),
        }
    }
}

/// Returns a path as it is appended to its parent's name: nothing for the parent itself.
fn at(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    match path.as_str() {
        "." => String::new(),
        inside if inside.starts_with('[') => path,
        inside => format!(".{inside}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_that_are_to_stay_are_found_by_both_names_and_never_taken_for_none() {
        let list = |fields: &str| {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n",{fields}}}"#);
            let conf = NetConf::parse(&text).unwrap();
            conf.valid_attachments().map(|all| all.len())
        };
        let one = r#"[{"containerID":"c","ifname":"eth0"}]"#;
        assert_eq!(list(&format!(r#""cni.dev/attachments":{one}"#)), Ok(1));
        let both = format!(r#""cni.dev/valid-attachments":{one},"cni.dev/attachments":{one}"#);
        assert_eq!(list(&both), Ok(1));
        assert_eq!(list(r#""cni.dev/valid-attachments":[]"#), Ok(0));
        let good = r#"{"containerID":"c","ifname":"eth0"}"#;
        for (attachments, said) in [
            ("null".to_owned(), "GC without"),
            ("\"\"".to_owned(), "GC without"),
            ("{}".to_owned(), "GC without"),
            ("[null]".to_owned(), "[0]"),
            (r#"[""]"#.to_owned(), "[0]"),
            ("[{}]".to_owned(), "containerID"),
            (format!("[{good},null]"), "[1]"),
            (format!("[{good},[]]"), "[1]"),
            (format!(r#"[{good},["c","eth0"]]"#), "[1]"),
            (good.to_owned(), "sequence"),
            (r#"[{"containerID":"c"}]"#.to_owned(), "ifname"),
            (
                r#"[{"containerID":"c","ifname":null}]"#.to_owned(),
                "[0].ifname",
            ),
            (r#"[{"containerID":"","ifname":"eth0"}]"#.to_owned(), "[0]"),
            (r#"[{"containerID":"c","ifname":""}]"#.to_owned(), "[0]"),
            (
                r#"[{"containerID":7,"ifname":"eth0"}]"#.to_owned(),
                "[0].containerID",
            ),
            ("7".to_owned(), "integer"),
        ] {
            for name in VALID_ATTACHMENTS {
                let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","{name}":{attachments}}}"#);
                let conf = NetConf::parse(&text).unwrap();
                let failure = conf.valid_attachments().unwrap_err();
                assert_eq!(failure.code, code::INVALID_NETWORK_CONFIG, "{text}");
                assert!(
                    failure.message.contains(said),
                    "{text}: {}",
                    failure.message
                );
            }
        }
    }
}
