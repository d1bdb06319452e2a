//! Who may see the page, and who its data.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::http::Asked;

/// What is told to who asks from elsewhere.
const ELSEWHERE: &str =
    "the page is for this machine itself: `kubectl ebbtide page` and `ssh -L` forward a port to it";

/// What is told to who knows the server by a name of the network.
const OTHER_NAME: &str = "the page is asked for by a loopback address, or as localhost";

/// What is told to who has no token.
const NO_TOKEN: &str = "the data is for who brings the token that `ebbtidectl page` prints";

/// Who gets what.
#[derive(Debug)]
pub(super) struct Access {
    token: String,
}

impl Access {
    /// Gives the data to those who bring this token.
    pub(super) const fn by(token: String) -> Self {
        Self { token }
    }

    /// Whether the page may be given to who asks; the error is for them.
    ///
    /// By the name, a page from elsewhere is refused that has its own name lead to this machine (DNS rebinding): its
    /// browser takes it for a page of the same server, and lets it ask.
    pub(super) fn to_page(&self, asked: &Asked) -> Result<(), &'static str> {
        if !asked.is_local {
            return Err(ELSEWHERE);
        }
        match is_loopback(&asked.host) {
            true => Ok(()),
            false => Err(OTHER_NAME),
        }
    }

    /// Whether the data may be given to who asks; the error is for them.
    pub(super) fn to_data(&self, asked: &Asked) -> Result<(), &'static str> {
        self.to_page(asked)?;
        let brought = asked.authorization.strip_prefix("Bearer ");
        // The time of the comparison tells nothing of use: the token has 128 random bits, and lives as long as the agent.
        match brought == Some(self.token.as_str()) {
            true => Ok(()),
            false => Err(NO_TOKEN),
        }
    }
}

/// Whether a `Host` header names the loopback link. Browsers ask nobody what `localhost` is.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port),
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return false;
    }
    match host.starts_with('[') {
        true => name.parse().is_ok_and(|ip: Ipv6Addr| ip.is_loopback()),
        false => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, authorization: &str, is_local: bool) -> Asked {
        Asked {
            host: host.into(),
            authorization: authorization.into(),
            is_local,
            ..Asked::default()
        }
    }

    #[test]
    fn the_data_is_for_those_on_the_node_who_bring_the_token() {
        let access = Access::by("abc".into());
        for (authorization, is_local, expected) in [
            ("Bearer abc", true, Ok(())),
            ("Bearer abc", false, Err(ELSEWHERE)),
            ("Bearer abcd", true, Err(NO_TOKEN)),
            ("Bearer ab", true, Err(NO_TOKEN)),
            ("Bearer ", true, Err(NO_TOKEN)),
            ("Bearer abc,Bearer abc", true, Err(NO_TOKEN)),
            ("abc", true, Err(NO_TOKEN)),
            ("Basic abc", true, Err(NO_TOKEN)),
            ("", true, Err(NO_TOKEN)),
        ] {
            let found = access.to_data(&asked("127.0.0.1:19464", authorization, is_local));
            assert_eq!(found, expected, "{authorization} {is_local}");
        }
        let by_name = asked("evil.example", "Bearer abc", true);
        assert_eq!(access.to_data(&by_name), Err(OTHER_NAME));
    }

    #[test]
    fn the_page_is_for_those_on_the_node_who_know_it_by_the_loopback_link() {
        let access = Access::by("abc".into());
        for host in [
            "127.0.0.1:19464",
            "127.0.0.1",
            "127.8.9.10:1",
            "localhost:40123",
            "LOCALHOST",
            "[::1]:19464",
            "[::1]",
        ] {
            assert_eq!(access.to_page(&asked(host, "", true)), Ok(()), "{host}");
            let elsewhere = access.to_page(&asked(host, "", false));
            assert_eq!(elsewhere, Err(ELSEWHERE), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:19464",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "172.31.16.5:19464",
            "[fd00::5]:19464",
            "::1",
            "[::1",
            "[::1]x:1",
            "127.0.0.1:x",
            "127.0.0.1:1:2",
            "127.0.0.1:19464,evil.example",
            "evil.example,127.0.0.1",
            "127.0.0.1@evil.example",
            "[127.0.0.1]:80",
        ] {
            let found = access.to_page(&asked(host, "", true));
            assert_eq!(found, Err(OTHER_NAME), "{host}");
        }
    }
}
