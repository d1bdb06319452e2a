//! The one JSONPath query that kube's client makes, under the name of the crate that has all of JSONPath.
//!
//! A kubeconfig may name a command that prints a token (`auth-provider` with `cmd-path`, as Google's clusters
//! had it up to Kubernetes 1.25), and where in its output the token is: `{.credential.access_token}`. For that
//! kube's client brings a parser generator and regular expressions: 12 crates that nobody else here needs,
//! which is more than a minute of a release build. This crate is put in their place
//! (`[patch.crates-io]` in the root `Cargo.toml`). It knows names with dots between and refuses
//! everything else; no kubeconfig of that kind has ever had anything else.

use serde_json::Value;

/// A path is more than names with dots between.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsupported;

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("only names with dots between are understood, as in $.credential.access_token")
    }
}

impl std::error::Error for Unsupported {}

/// What can be looked into by a path.
pub trait JsonPath {
    /// What is at the path, if anything.
    ///
    /// # Errors
    /// When the path is more than `$` and names with dots before them.
    fn query(&self, path: &str) -> Result<Vec<&Self>, Unsupported>;
}

impl JsonPath for Value {
    fn query(&self, path: &str) -> Result<Vec<&Self>, Unsupported> {
        let names = path.strip_prefix('$').ok_or(Unsupported)?;
        if names.is_empty() {
            return Ok(vec![self]);
        }
        let names: Vec<&str> = names
            .strip_prefix('.')
            .ok_or(Unsupported)?
            .split('.')
            .collect();
        let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        if names
            .iter()
            .any(|name| name.is_empty() || !name.chars().all(is_plain))
        {
            return Err(Unsupported);
        }
        let found = names
            .into_iter()
            .try_fold(self, |value, name| value.as_object()?.get(name));
        Ok(found.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_followed_and_anything_else_is_refused() {
        let output = json!({"credential": {"access_token": "t", "0": "zero"}, "items": [1]});
        let some = |value: Value| Ok(vec![value]);
        for (path, expected) in [
            ("$.credential.access_token", some(json!("t"))),
            ("$.credential.0", some(json!("zero"))),
            ("$.items", some(json!([1]))),
            ("$", some(output.clone())),
            ("$.credential.none", Ok(vec![])),
            ("$.items.0", Ok(vec![])),
            ("$.credential.access_token.more", Ok(vec![])),
            ("credential", Err(Unsupported)),
            ("$credential", Err(Unsupported)),
            ("$..access_token", Err(Unsupported)),
            ("$.items[0]", Err(Unsupported)),
            ("$.items[?(@ > 0)]", Err(Unsupported)),
            ("$.*", Err(Unsupported)),
            ("$.", Err(Unsupported)),
            ("", Err(Unsupported)),
        ] {
            let found = output.query(path);
            let found = found.map(|found| found.into_iter().cloned().collect::<Vec<_>>());
            assert_eq!(found, expected, "{path}");
        }
    }
}
