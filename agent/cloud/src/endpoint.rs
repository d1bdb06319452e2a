//! Where a metadata service is.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Where a metadata service is: `http://ADDRESS[:PORT]`, an IPv6 address in brackets, or a host's name.
///
/// # Examples
///
/// ```
/// use ebbtide_cloud::Endpoint;
///
/// for text in ["http://169.254.169.254", "http://[fd00:ec2::254]:8080", "http://metadata.tencentyun.com"] {
///     assert_eq!(text.parse::<Endpoint>()?.to_string(), text);
/// }
/// assert!("https://169.254.169.254".parse::<Endpoint>().is_err());
/// # Ok::<(), ebbtide_cloud::NoEndpoint>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Endpoint {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Host {
    Address(IpAddr),
    Name(String),
}

/// A text that is not an [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no metadata endpoint: http://ADDRESS[:PORT] is expected, without a path, and IPv6 in brackets"
)]
pub struct NoEndpoint(String);

const HTTP: u16 = 80;

impl Endpoint {
    pub(crate) const fn v4([a, b, c, d]: [u8; 4]) -> Self {
        Self {
            host: Host::Address(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
            port: HTTP,
        }
    }

    /// Returns its address, if it is not a name.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        match self.host {
            Host::Address(address) => Some(address),
            Host::Name(_) => None,
        }
    }

    /// Returns the value of the header `Host`.
    pub(crate) fn authority(&self) -> String {
        let host = match &self.host {
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
            Host::Name(name) => name.clone(),
        };
        match self.port {
            HTTP => host,
            port => format!("{host}:{port}"),
        }
    }

    pub(crate) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.host {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, self.port)]),
            Host::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), self.port)).await?;
                Ok(found.collect())
            }
        }
    }
}

fn host(text: &str) -> Option<Host> {
    if let Some(inner) = text.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(Host::Address(address.into()));
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(Host::Address(address.into()));
    }
    let of_name = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    // What is made of digits and dots is an address with a mistake; resolvers understand `127.1`.
    let is_name = text.len() <= 253
        && text.chars().all(of_name)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.contains(|c: char| c.is_ascii_alphabetic());
    is_name.then(|| Host::Name(text.to_owned()))
}

impl FromStr for Endpoint {
    type Err = NoEndpoint;

    fn from_str(text: &str) -> Result<Self, NoEndpoint> {
        let wrong = || NoEndpoint(text.to_owned());
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (front, port) = match rest.rsplit_once(':') {
            // The last colon of an address in brackets.
            Some((_, after)) if after.ends_with(']') => (rest, HTTP),
            Some((front, after)) => (front, after.parse().map_err(|_| wrong())?),
            None => (rest, HTTP),
        };
        match host(front) {
            Some(host) if port != 0 => Ok(Self { host, port }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl TryFrom<String> for Endpoint {
    type Error = NoEndpoint;

    fn try_from(text: String) -> Result<Self, NoEndpoint> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_and_names_are_endpoints_and_nothing_else_is() {
        for (text, written) in [
            ("http://169.254.169.254", "http://169.254.169.254"),
            ("http://169.254.169.254/", "http://169.254.169.254"),
            ("http://10.0.0.1:80", "http://10.0.0.1"),
            ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
            ("http://[fd00:ec2::254]", "http://[fd00:ec2::254]"),
            ("http://[fd00:EC2:0::254]:81", "http://[fd00:ec2::254]:81"),
            ("http://metadata", "http://metadata"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), written);
            assert_eq!(written.parse(), Ok(endpoint));
        }
        for text in [
            "",
            "http://",
            "169.254.169.254",
            "https://169.254.169.254",
            "http://169.254.169.254/latest",
            "http://169.254.169",
            "http://fd00:ec2::254",
            "http://[169.254.169.254]",
            "http://[fd00::1",
            "http://[fe80::1%1]",
            "http://10.0.0.1:0",
            "http://10.0.0.1:65536",
            "http://10.0.0.1:",
            "http://user@host",
            "http://host\r\nX: y",
            "http://-host",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }
}
