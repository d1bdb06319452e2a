//! Ranges of ports, as Kubernetes writes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A range of ports, both ends included: `30000-32767`, as the API server's `--service-node-port-range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A text that is not a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of ports, as 30000-32767 is")]
pub struct NoRange(String);

impl PortRange {
    /// The API server's default for node ports.
    pub const NODE_PORTS: Self = Self {
        first: 30_000,
        last: 32_767,
    };

    /// Packs both ports into one number for the eBPF programs: the first in the upper half.
    #[must_use]
    pub const fn packed(self) -> u32 {
        (self.first as u32) << 16 | self.last as u32
    }
}

impl FromStr for PortRange {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let wrong = || NoRange(text.to_owned());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (port(first)?, port(last)?);
        if first == 0 || first > last {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

impl TryFrom<String> for PortRange {
    type Error = NoRange;

    fn try_from(text: String) -> Result<Self, NoRange> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_kubernetes_writes_it() {
        for (text, read) in [
            ("30000-32767", Some((30_000, 32_767))),
            ("80 - 32767", Some((80, 32_767))),
            ("8080", Some((8080, 8080))),
            ("1-65535", Some((1, 65_535))),
            ("0-100", None),
            ("32767-30000", None),
            ("30000-65536", None),
            ("30000-", None),
            ("30000+2767", None),
            ("", None),
        ] {
            let found = text.parse::<PortRange>();
            let found = found.map(|range| (range.first, range.last)).ok();
            assert_eq!(found, read, "{text:?}");
        }
    }

    #[test]
    fn the_programs_default_is_the_api_servers() {
        let default = PortRange::NODE_PORTS;
        assert_eq!(default.packed(), ebbtide_layout::DEFAULT_NODE_PORTS);
    }
}
