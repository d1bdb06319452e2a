//! The page for people: the node with its NICs, pods, addresses and flows, live.
//!
//! The page itself has no data. What it shows is what `ebbtidectl` shows, and as that is for root alone, it is given to
//! those alone who bring the agent's token, which `ebbtidectl page` prints, and only on the node itself: nothing
//! encrypts it on its way. Who forwards a port to the node, as kubectl and ssh do, is on the node in this sense.

mod access;
mod data;

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use hyper::{
    StatusCode,
    header::{CONTENT_SECURITY_POLICY, HeaderValue},
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    agent::Agent,
    http::{self, Answer, ListenStatus, Router},
};
use access::Access;
use data::Data;

/// The page.
const PAGE: &str = include_str!("page/node.html");

/// What stands in the page for its nonce.
const NONCE: &str = "{nonce}";

/// Where the page is, and what it must bring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageLink {
    /// The address on the node, a loopback one.
    pub address: SocketAddr,
    /// The secret by which the page gets its data.
    pub token: String,
}

impl PageLink {
    /// Returns what to open in a browser. Browsers send nobody what is behind the `#`.
    ///
    /// # Examples
    ///
    /// ```
    /// use ebbtide_agent::page::PageLink;
    ///
    /// let link = PageLink { address: "127.0.0.1:19464".parse()?, token: "1f".into() };
    /// assert_eq!(link.url(), "http://127.0.0.1:19464/#token=1f");
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/#token={}", self.address, self.token)
    }
}

/// Where the agent's page is, once it is served.
#[derive(Debug, Default)]
pub struct PageStatus(OnceLock<(PageLink, ListenStatus)>);

impl PageStatus {
    /// Returns where the page is.
    ///
    /// # Errors
    /// If it is nowhere; the text says why, and what to do about it.
    pub fn link(&self) -> Result<PageLink, String> {
        let Some((link, listening)) = self.0.get() else {
            return Err(
                "there is no page: the agent serves nothing by HTTP. `metrics.address` of its configuration (in the \
                 chart: metrics.enabled) turns it on"
                    .to_owned(),
            );
        };
        match listening.fault() {
            None => Ok(link.clone()),
            Some(fault) => Err(format!(
                "the page is not served at {fault}; it is tried again every few seconds"
            )),
        }
    }
}

/// Returns where on the loopback link a server that listens at `socket` is reached, and whether it is not: then the page
/// has a listener of its own there.
fn place(socket: SocketAddr) -> (SocketAddr, bool) {
    let at = |address: IpAddr| SocketAddr::new(address, socket.port());
    match socket.ip() {
        address if address.is_loopback() => (socket, false),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => (at(Ipv4Addr::LOCALHOST.into()), false),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => (at(Ipv6Addr::LOCALHOST.into()), false),
        _ => (at(Ipv4Addr::LOCALHOST.into()), true),
    }
}

/// Adds the page to the paths that are answered at `socket`, or has it answered at the loopback address with the same
/// port: who forwards a port comes there.
#[must_use]
pub(crate) fn serve(
    agent: &Arc<Agent>,
    socket: SocketAddr,
    router: Router,
    listening: &ListenStatus,
) -> Router {
    let token = match random() {
        Ok(token) => token,
        Err(e) => {
            warn!("read random bytes for the page's token: {e}; there is no page");
            return router;
        }
    };
    let (address, is_apart) = place(socket);
    let access = Access::by(token.clone());
    let (router, listening) = match is_apart {
        false => (add(router, agent, access), listening.clone()),
        true => {
            let listening = ListenStatus::of("the page and its data");
            let own = add(Router::default(), agent, access);
            tokio::spawn(http::serve(address, own, listening.clone()));
            (router, listening)
        }
    };
    // An agent has one page.
    let _only_one = agent.page.0.set((PageLink { address, token }, listening));
    router
}

/// Adds the page and its data.
fn add(router: Router, agent: &Arc<Agent>, access: Access) -> Router {
    let access = Arc::new(access);
    let data = Arc::new(Data::of(agent));
    let page_access = Arc::clone(&access);
    router
        .at("/", move |asked| {
            let answer = page_access
                .to_page(&asked)
                .map_or_else(refused, |()| page());
            async move { answer }
        })
        .at("/node.json", move |asked| {
            let allowed = access.to_data(&asked);
            let data = Arc::clone(&data);
            async move {
                if let Err(why) = allowed {
                    return refused(why);
                }
                match data.get().await {
                    Ok(bytes) => Answer::of("application/json", bytes),
                    Err(why) => Answer::line(StatusCode::SERVICE_UNAVAILABLE, &why),
                }
            }
        })
}

fn refused(why: &'static str) -> Answer {
    Answer::line(StatusCode::FORBIDDEN, why)
}

/// Returns the page, whose style and script are the only ones that a browser accepts in it.
fn page() -> Answer {
    let nonce = random().and_then(|nonce| {
        let policy = HeaderValue::from_str(&policy(&nonce)).map_err(io::Error::other)?;
        Ok((nonce, policy))
    });
    match nonce {
        Ok((nonce, policy)) => Answer::of("text/html; charset=utf-8", PAGE.replace(NONCE, &nonce))
            .with(CONTENT_SECURITY_POLICY, policy),
        Err(e) => {
            let why = format!("read random bytes: {e}");
            Answer::line(StatusCode::SERVICE_UNAVAILABLE, &why)
        }
    }
}

fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// Returns 128 random bits, in hexadecimal digits.
fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_are_the_same() {
        let tokens = [random().unwrap(), random().unwrap()];
        assert_ne!(tokens[0], tokens[1]);
        assert!(tokens[0].len() == 32 && tokens[0].bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn the_page_is_on_the_loopback_link_wherever_metrics_are() {
        for (socket, address, is_apart) in [
            ("127.0.0.1:19464", "127.0.0.1:19464", false),
            ("127.0.0.9:80", "127.0.0.9:80", false),
            ("[::1]:80", "[::1]:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", false),
            ("[::]:80", "[::1]:80", false),
            ("172.31.16.5:80", "127.0.0.1:80", true),
            ("[fd00::5]:80", "127.0.0.1:80", true),
        ] {
            let expected = (address.parse().unwrap(), is_apart);
            assert_eq!(place(socket.parse().unwrap()), expected, "{socket}");
        }
    }

    #[test]
    fn where_nothing_is_served_the_setting_is_named() {
        let status = PageStatus::default();
        assert!(status.link().unwrap_err().contains("metrics.address"));
    }

    #[test]
    fn the_page_asks_nobody_else() {
        let page = PAGE.replace("http://www.w3.org/2000/svg", "");
        for word in ["http://", "https://", "src=", "@import", "//cdn", "url("] {
            assert!(!page.contains(word), "{word}");
        }
        // Names are chosen by others: nothing is put into the page but as text.
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }

    #[test]
    fn style_and_script_have_the_nonce_of_the_policy_and_nothing_else_is_in_the_page() {
        for tag in ["<script", "<style"] {
            let tags: Vec<&str> = PAGE.matches(tag).collect();
            assert_eq!(tags.len(), 1, "{tag}");
            assert!(PAGE.contains(&format!("{tag} nonce=\"{NONCE}\">")), "{tag}");
        }
        // The policy forbids both.
        let (markup, _) = PAGE.split_once("<script").unwrap();
        assert!(!markup.contains(" style=\"") && !markup.contains(" onclick"));
        let (first, second) = (page(), page());
        assert_ne!(first.body, second.body);
        assert_ne!(first.headers, second.headers);
        let text = String::from_utf8(first.body.to_vec()).unwrap();
        let (_, rest) = text.split_once("<script nonce=\"").unwrap();
        let (nonce, _) = rest.split_once('"').unwrap();
        assert!(!text.contains(NONCE));
        assert_eq!(first.headers[0].1.to_str().unwrap(), policy(nonce));
    }
}
