//! Problems in the manifests that a person has to repair.

use std::{fmt, path::PathBuf};

use serde::Serialize;

/// What happens to an object with a [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Consequence {
    /// It is not in use (or the file, if no object is named).
    LeftOut,
    /// It is in use, without the field that is named.
    FieldIgnored,
    /// It is in use, without some of its addresses.
    Narrowed,
}

/// A part of the manifests that cannot be used as written. The rest of them is in use.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Problem {
    /// The file (or the directory, if that is what cannot be read), `Kubernetes API`, or the cloud's metadata.
    pub file: PathBuf,
    /// The number of the document in the file, from 1, without empty documents; none if the whole file is meant.
    pub document: Option<usize>,
    /// Kind and name as in `SpiderIPPool worker1-v4`, as far as known.
    pub object: Option<String>,
    /// The path of the field as in `spec.ips[2]`, if one is at fault.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
    /// What happens to the object.
    pub consequence: Consequence,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(document) = self.document {
            write!(f, ", document {document}")?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, ": {part}")?;
        }
        write!(f, ": {}", self.message)
    }
}
