//! Where a process of Ebbtide's tells how it is doing.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// The agent's metrics and probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// Where they are served.
    pub address: ListenAddress,
}

/// Where metrics and probes are served by HTTP: an address with a port, or `off`.
///
/// # Examples
///
/// ```
/// use ebbtide_types::settings::ListenAddress;
///
/// assert_eq!(ListenAddress::default().to_string(), "127.0.0.1:19464");
/// assert_eq!("off".parse(), Ok(ListenAddress::Off));
/// // Where a template does not know the family of the address that it fills in.
/// let filled_in: ListenAddress = "[172.31.16.5]:19464".parse()?;
/// assert_eq!(filled_in.to_string(), "172.31.16.5:19464");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "Text")]
pub enum ListenAddress {
    /// Nowhere.
    Off,
    /// At this address.
    At(SocketAddr),
}

/// The port of the agent; on many nodes 9464 and its neighbours are others' exporters'.
const PORT: u16 = 19_464;

/// What a YAML file may have: older parsers take `off` for false.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Is(bool),
    Text(String),
}

/// A text that is neither an address with a port nor `off`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address with a port, as 127.0.0.1:19464 or [::1]:19464 is; `off` turns it off"
)]
pub struct NoListenAddress(String);

impl ListenAddress {
    /// Returns where to listen, unless it is off.
    #[must_use]
    pub const fn socket(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl Default for ListenAddress {
    fn default() -> Self {
        Self::At(SocketAddr::from(([127, 0, 0, 1], PORT)))
    }
}

impl FromStr for ListenAddress {
    type Err = NoListenAddress;

    fn from_str(text: &str) -> Result<Self, NoListenAddress> {
        let wrong = || NoListenAddress(text.to_owned());
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = match text.parse::<SocketAddr>() {
            Ok(address) => address,
            Err(_) => {
                let inside = text.strip_prefix('[').ok_or_else(wrong)?;
                let (address, port) = inside.split_once("]:").ok_or_else(wrong)?;
                let address: IpAddr = address.parse().map_err(|_| wrong())?;
                SocketAddr::new(address, port.parse().map_err(|_| wrong())?)
            }
        };
        match address.port() {
            0 => Err(wrong()),
            _ => Ok(Self::At(address)),
        }
    }
}

impl TryFrom<Text> for ListenAddress {
    type Error = NoListenAddress;

    fn try_from(text: Text) -> Result<Self, NoListenAddress> {
        match text {
            Text::Is(false) => Ok(Self::Off),
            Text::Is(true) => Err(NoListenAddress("true".to_owned())),
            Text::Text(text) => text.parse(),
        }
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::Settings;

    #[test]
    fn an_address_is_read_in_either_family_and_off_in_either_yaml() {
        for (text, read) in [
            ("", "127.0.0.1:19464"),
            ("metrics: {}", "127.0.0.1:19464"),
            ("metrics: {address: '0.0.0.0:9100'}", "0.0.0.0:9100"),
            ("metrics: {address: '[::]:9100'}", "[::]:9100"),
            ("metrics: {address: '[10.0.0.5]:9100'}", "10.0.0.5:9100"),
            ("metrics: {address: off}", "off"),
            ("metrics: {address: false}", "off"),
            ("metrics: {address: \"off\"}", "off"),
        ] {
            let settings = Settings::parse(text).unwrap();
            assert_eq!(settings.metrics.address.to_string(), read, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for value in [
            "127.0.0.1",
            "'127.0.0.1:0'",
            "'127.0.0.1:70000'",
            "localhost:9100",
            "'[]:9100'",
            "'::1:x'",
            "true",
        ] {
            let text = format!("metrics: {{address: {value}}}");
            let (field, reason) = Settings::parse(&text).unwrap_err();
            assert_eq!(field, "metrics.address", "{text}: {reason}");
            assert!(reason.contains("off"), "{text}: {reason}");
        }
        let (field, _) = Settings::parse("metrics: {port: 1}").unwrap_err();
        assert_eq!(field, "metrics.port");
    }
}
