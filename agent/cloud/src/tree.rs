//! The text trees of AWS, Alibaba Cloud and Tencent Cloud: a list of MACs, and a request for each leaf.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_types::Mac;

use crate::{
    draft::MOST_NICS,
    reading::{ReadError, Unreadable},
    session::Session,
    text,
};

/// Where the list of MACs is, the same in the three clouds.
pub(crate) const ROOT: &str = "/latest/meta-data/network/interfaces/macs/";

/// What a text tree answered: texts by their path below the list of MACs, which is at the empty path. A path that was
/// answered by 404 is missing.
///
/// # Examples
///
/// ```
/// use ebbtide_cloud::{Tree, aws};
///
/// let tree: Tree = [
///     ("", "02:0a:00:00:00:01/\n"),
///     ("02:0a:00:00:00:01/local-ipv4s", "10.0.0.10\n10.0.0.11"),
/// ]
/// .into_iter()
/// .collect();
/// let view = aws::parse(&tree)?.view;
/// assert_eq!(view.nics[0].primary[0].to_string(), "10.0.0.10");
/// # Ok::<(), ebbtide_cloud::Unreadable>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, String>);

/// A NIC of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its MAC.
    pub(crate) mac: Mac,
    /// Its MAC as the list has it: Tencent Cloud writes it in upper case, and its service compares texts.
    name: String,
}

impl<P: Into<String>, T: Into<String>> FromIterator<(P, T)> for Tree {
    fn from_iter<I: IntoIterator<Item = (P, T)>>(leaves: I) -> Self {
        let leaves = leaves.into_iter();
        Self(
            leaves
                .map(|(path, text)| (path.into(), text.into()))
                .collect(),
        )
    }
}

impl Tree {
    /// Returns the NICs of its list, each once.
    pub(crate) fn nics(&self) -> Result<Vec<Listed>, Unreadable> {
        listed(self.0.get("").map_or("", String::as_str))
    }

    /// Returns a text of a NIC. An empty one is no answer: what there is none of is not found, or is an empty list in
    /// brackets.
    pub(crate) fn leaf(&self, nic: &Listed, key: &str) -> Option<&str> {
        let path = format!("{}/{key}", nic.name);
        let text = self.0.get(&path).map(String::as_str);
        text.filter(|text| !text.trim().is_empty())
    }
}

fn listed(list: &str) -> Result<Vec<Listed>, Unreadable> {
    let mut nics = Vec::new();
    let mut seen = BTreeSet::new();
    for item in text::items(list) {
        let name = item.strip_suffix('/').unwrap_or(item);
        let mac = text::mac(name)?;
        if seen.insert(mac) {
            let name = name.to_owned();
            nics.push(Listed { mac, name });
        }
        if nics.len() > MOST_NICS {
            return Err(Unreadable::TooManyNics(nics.len()));
        }
    }
    match nics.is_empty() {
        true => Err(Unreadable::NoNics),
        false => Ok(nics),
    }
}

/// A walk along a tree. What it found counts only once it has come to its end: the list of MACs must be the same then.
#[derive(Debug)]
pub(crate) struct Walk<'w, 's> {
    session: &'w mut Session<'s>,
    tree: Tree,
}

impl<'w, 's> Walk<'w, 's> {
    /// Reads these texts of each NIC.
    pub(crate) async fn over(
        session: &'w mut Session<'s>,
        keys: &[&str],
    ) -> Result<Tree, ReadError> {
        let (mut walk, nics) = Self::begin(session).await?;
        for nic in &nics {
            for key in keys {
                walk.leaf(nic, key).await?;
            }
        }
        walk.end().await
    }

    /// Reads the list.
    pub(crate) async fn begin(
        session: &'w mut Session<'s>,
    ) -> Result<(Self, Vec<Listed>), ReadError> {
        let list = list(session).await?;
        let tree: Tree = [("", list)].into_iter().collect();
        let nics = tree.nics()?;
        Ok((Self { session, tree }, nics))
    }

    /// Reads a text of a NIC, and returns it.
    pub(crate) async fn leaf(
        &mut self,
        nic: &Listed,
        key: &str,
    ) -> Result<Option<&str>, ReadError> {
        let path = format!("{}/{key}", nic.name);
        if let Some(text) = self.session.get(&format!("{ROOT}{path}")).await? {
            self.tree.0.insert(path, text);
        }
        Ok(self.tree.leaf(nic, key))
    }

    /// Reads the list again, and returns the whole.
    pub(crate) async fn end(self) -> Result<Tree, ReadError> {
        let macs = |nics: Vec<Listed>| nics.iter().map(|nic| nic.mac).collect::<BTreeSet<_>>();
        let again = listed(&list(self.session).await?)?;
        match macs(again) == macs(self.tree.nics()?) {
            true => Ok(self.tree),
            false => Err(ReadError::Torn),
        }
    }
}

async fn list(session: &mut Session<'_>) -> Result<String, ReadError> {
    match session.get(ROOT).await? {
        Some(list) => Ok(list),
        None => Err(session.no_list(ROOT)),
    }
}
