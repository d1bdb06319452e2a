//! Metadata as a tree of text: a GET of a leaf is its value, a GET of a branch lists what is below.

use super::exchange::Reply;

/// A part of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    /// A value.
    Leaf(String),
    /// What is below, in order.
    Branch(Vec<(String, Self)>),
}

impl Tree {
    /// A branch without anything.
    pub(super) const fn empty() -> Self {
        Self::Branch(Vec::new())
    }

    /// Adds a value.
    pub(super) fn leaf(mut self, name: &str, value: impl Into<String>) -> Self {
        self.add(name, Self::Leaf(value.into()));
        self
    }

    /// Adds a value, unless it is empty: then its name is missing.
    pub(super) fn some(self, name: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        if value.is_empty() {
            return self;
        }
        self.leaf(name, value)
    }

    /// Adds a branch.
    pub(super) fn branch(mut self, name: &str, branch: Self) -> Self {
        self.add(name, branch);
        self
    }

    fn add(&mut self, name: &str, below: Self) {
        if let Self::Branch(all) = self {
            all.push((name.to_owned(), below));
        }
    }

    /// Returns the part at a path.
    pub(super) fn find(&self, path: &[&str]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        let Self::Branch(all) = self else { return None };
        let (_, below) = all.iter().find(|(name, _)| name == first)?;
        below.find(rest)
    }

    /// Returns what a GET answers: the value, or the names below, branches with a slash.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Leaf(value) => value.clone(),
            Self::Branch(all) => {
                let names: Vec<String> = all
                    .iter()
                    .map(|(name, below)| match below {
                        Self::Leaf(_) => name.clone(),
                        Self::Branch(_) => format!("{name}/"),
                    })
                    .collect();
                names.join("\n")
            }
        }
    }

    /// Returns the reply to a GET of a path: AWS' service takes values and lists with and without a slash at the end,
    /// and so do those made after it.
    pub(super) fn reply(&self, path: &[&str]) -> Reply {
        match self.find(path) {
            Some(part) => Reply::text(200, part.text()),
            None => Reply::failure(404),
        }
    }

    /// Returns it as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Leaf(value) => value.clone().into(),
            Self::Branch(all) => all
                .iter()
                .map(|(name, below)| (name.clone(), below.json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_listed_with_slashes_and_what_is_empty_is_missing() {
        let tree = Tree::empty()
            .leaf("mac", "02:00")
            .some("ipv4-prefix", "")
            .branch("network", Tree::empty().leaf("deep", "1\n2"));
        assert_eq!(tree.text(), "mac\nnetwork/");
        assert_eq!(tree.reply(&["network"]).body, b"deep");
        assert_eq!(tree.reply(&["network", "deep"]).body, b"1\n2");
        assert_eq!(tree.reply(&["ipv4-prefix"]).status, 404);
        assert_eq!(tree.reply(&["mac", "deeper"]).status, 404);
        assert_eq!(
            tree.json().to_string(),
            r#"{"mac":"02:00","network":{"deep":"1\n2"}}"#
        );
    }
}
