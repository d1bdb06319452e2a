//! How pods reach the cloud's metadata service.

use serde::{Deserialize, Serialize};

/// How pods reach the cloud's metadata service, which gives whoever asks the credentials of the node's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodMetadata {
    /// As the node does, by any interface.
    Allow,
    /// Through the node only, where the pod's routes lead there: then the service's hop limit, the node's firewall and
    /// proxies on the node decide, as they do for pods behind a bridge. Where they lead to the pod's own interface, as
    /// with [`Allow`](Self::Allow).
    #[default]
    ViaHost,
    /// Not at all.
    Drop,
}

impl PodMetadata {
    /// Returns the value with this name in configurations and annotations.
    ///
    /// # Examples
    ///
    /// ```
    /// use ebbtide_types::settings::PodMetadata;
    ///
    /// assert_eq!(PodMetadata::named("viaHost"), Some(PodMetadata::ViaHost));
    /// assert_eq!(PodMetadata::named("Drop"), None);
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "allow" => Some(Self::Allow),
            "viaHost" => Some(Self::ViaHost),
            "drop" => Some(Self::Drop),
            _ => None,
        }
    }
}
