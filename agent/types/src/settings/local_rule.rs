//! Whether Ebbtide may precede the kernel's rule for the table `local`.

use serde::{Deserialize, Serialize};

/// Whether a rule for pods whose address the node has as well may be put in front of the kernel's rule for its table
/// `local`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalRule {
    /// While the node has an address of one of its pods.
    #[default]
    Auto,
    /// Never: the node and its Services do not reach such a pod.
    Never,
}
