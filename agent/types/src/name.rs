//! Names of namespaced objects, and the two forms of references to them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Namespaces;

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The full name of a namespaced object, shown as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// The namespace; `default` where a manifest has none.
    pub namespace: String,
    /// The name within the namespace.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A reference to a network: `namespace/name`, or `name` alone.
///
/// [`Namespaces`] resolves a bare name.
///
/// # Examples
///
/// ```
/// use ebbtide_types::NetworkRef;
///
/// let full: NetworkRef = "kube-system/ipvlan-ens5".parse()?;
/// assert_eq!(full.namespace.as_deref(), Some("kube-system"));
/// let bare: NetworkRef = "ipvlan-ens5".parse()?;
/// assert_eq!(bare.namespace, None);
/// assert!("a/b/c".parse::<NetworkRef>().is_err());
/// # Ok::<(), ebbtide_types::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkRef {
    /// The namespace, if the reference has one.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

/// A text that is not a valid reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a name: write \"namespace/name\" or \"name\", each part of letters, digits, '-' and '.'"
)]
pub struct NameError {
    /// The text as given.
    pub text: String,
}

impl NetworkRef {
    /// Whether this reference may mean `name`.
    #[must_use]
    pub fn matches(&self, name: &ObjectName, namespaces: &Namespaces) -> bool {
        self.name == name.name
            && match &self.namespace {
                Some(namespace) => *namespace == name.namespace,
                None => namespaces.hold(&name.namespace),
            }
    }
}

impl From<ObjectName> for NetworkRef {
    fn from(name: ObjectName) -> Self {
        Self {
            namespace: Some(name.namespace),
            name: name.name,
        }
    }
}

impl fmt::Display for NetworkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for NetworkRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if !is_name(name) || !namespace.is_none_or(is_name) {
            return Err(NameError {
                text: text.to_owned(),
            });
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl Serialize for NetworkRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetworkRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Whether `text` is a DNS-1123 subdomain, with capitals and underscores allowed: file names of other tools have them.
pub fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}
