//! The pages for people: a node with its NICs, pods, addresses and flows, live; and a cluster's.
//!
//! The page itself has no data. What it shows is what `ebbtidectl` shows, and as that is for root alone, it is given to
//! those alone who bring the agent's token, which `ebbtidectl page` prints, and only on the node itself: nothing
//! encrypts it on its way. Who forwards a port to the node, as kubectl and ssh do, is on the node in this sense.

mod access;
mod data;
mod shell;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    agent::Agent,
    http::{self, ListenStatus, Router},
};
use access::Access;
use data::Data;

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
    let token = match token() {
        Ok(token) => token,
        Err(e) => {
            warn!("get random bytes for the page's token: {e}; there is no page");
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
    let data = Arc::new(Data::of(agent));
    shell::NODE.add(router, access, move || {
        let data = Arc::clone(&data);
        async move { data.get().await }
    })
}

/// Returns the paths of a cluster's page, which whoever asks the cluster serves on their own machine: `data` returns what
/// it shows, as JSON, or says why not. It is given to those who bring the token.
pub fn of_cluster<F, R>(token: String, data: F) -> Router
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<Bytes, String>> + Send + 'static,
{
    shell::CLUSTER.add(Router::default(), Access::by(token), data)
}

/// Returns a new token.
///
/// # Errors
/// If the kernel has no random bytes.
pub fn token() -> io::Result<String> {
    shell::random()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
