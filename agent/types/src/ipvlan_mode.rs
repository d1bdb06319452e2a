//! The modes of an ipvlan master.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The mode of an ipvlan master (Documentation/networking/ipvlan.rst). All its children have the same.
///
/// # Examples
///
/// ```
/// use ebbtide_types::IpvlanMode;
///
/// assert_eq!("l3s".parse(), Ok(IpvlanMode::L3s));
/// assert_eq!(IpvlanMode::default().to_string(), "l3");
/// assert!("bridge".parse::<IpvlanMode>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanMode {
    /// Frames leave as from a bridge; the pod resolves neighbours itself.
    L2,
    /// Packets are routed by the host's tables for the master.
    #[default]
    L3,
    /// As L3, with the host's netfilter on the way in. Marks do not work there.
    L3s,
}

impl IpvlanMode {
    /// Returns the mode as a configuration has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L3s => "l3s",
        }
    }
}

impl fmt::Display for IpvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for IpvlanMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::L2, Self::L3, Self::L3s]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or(())
    }
}
