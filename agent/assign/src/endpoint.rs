//! Where a service of the cloud is.

use std::{fmt, net::IpAddr, str::FromStr};

use hyper::Uri;

/// The address of a service: `https://HOST[:PORT]`, or `http://` for what is on this machine or a test.
///
/// # Examples
///
/// ```
/// use ebbtide_assign::Endpoint;
///
/// let ec2 = Endpoint::of("ec2", "eu-central-1")?;
/// assert_eq!(ec2.to_string(), "https://ec2.eu-central-1.amazonaws.com");
/// assert!("ftp://x".parse::<Endpoint>().is_err());
/// # Ok::<(), ebbtide_assign::BadEndpoint>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    tls: bool,
    host: String,
    port: Option<u16>,
    path: String,
}

/// A text that is no address of a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the address of a service: https://HOST or http://HOST:PORT")]
pub struct BadEndpoint(String);

/// The hosts that may be asked for credentials without TLS: the link-local addresses of EKS' and ECS' agents.
const AGENTS: [&str; 3] = ["169.254.170.23", "169.254.170.2", "fd00:ec2::23"];

impl Endpoint {
    /// Returns AWS' own endpoint of a service in a region.
    ///
    /// # Errors
    /// If `region` is no name of a region: it becomes a part of a host name.
    pub fn of(service: &str, region: &str) -> Result<Self, BadEndpoint> {
        let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if region.is_empty() || !region.chars().all(sound) {
            return Err(BadEndpoint(format!("{service}.{region}")));
        }
        let suffix = match region.starts_with("cn-") {
            true => "amazonaws.com.cn",
            false => "amazonaws.com",
        };
        format!("https://{service}.{region}.{suffix}").parse()
    }

    /// Whether its connections are encrypted.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.tls
    }

    /// Whether secrets may be sent to it and asked of it without encryption: it is on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let loopback = self
            .host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
        loopback || AGENTS.contains(&self.host.as_str())
    }

    /// Returns the host: a name, or an address without brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.unwrap_or(if self.tls { 443 } else { 80 })
    }

    /// Returns the path and query of a request to it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns what the header `host` says.
    pub(crate) fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(text.to_owned());
        let uri: Uri = text.trim().parse().map_err(|_| bad())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        if uri
            .authority()
            .is_some_and(|all| all.as_str().contains('@'))
        {
            return Err(bad());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16(),
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let path = if self.path == "/" { "" } else { &self.path };
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_scheme_and_a_host_and_nothing_that_hides_another_one() {
        for (text, shown) in [
            (
                "https://ec2.eu-west-1.amazonaws.com/",
                Some("https://ec2.eu-west-1.amazonaws.com"),
            ),
            ("http://127.0.0.1:5000", Some("http://127.0.0.1:5000")),
            (
                "http://[fd00:ec2::23]/v1/credentials",
                Some("http://[fd00:ec2::23]/v1/credentials"),
            ),
            ("ec2.amazonaws.com", None),
            ("https://", None),
            ("https://a@b", None),
            ("file:///etc/passwd", None),
        ] {
            let read = text.parse::<Endpoint>().ok().map(|read| read.to_string());
            assert_eq!(read.as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn a_region_becomes_a_host_name_and_nothing_else() {
        let shown = |region| {
            Endpoint::of("ec2", region)
                .ok()
                .map(|made| made.to_string())
        };
        assert_eq!(
            shown("cn-north-1").as_deref(),
            Some("https://ec2.cn-north-1.amazonaws.com.cn")
        );
        for bad in ["", "a.evil.org/", "EU"] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_asked_for_credentials_without_encryption() {
        for (text, local) in [
            ("http://169.254.170.23/v1/credentials", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://127.0.0.1:1/x", true),
            ("http://169.254.169.254/latest", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(
                text.parse::<Endpoint>().unwrap().is_local(),
                local,
                "{text}"
            );
        }
    }
}
