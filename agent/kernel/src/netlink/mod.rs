//! Typed operations on links, addresses, routes, rules, neighbours, filters, sysctls and namespaces, from which the
//! rest of the agent is built.
//!
//! Nothing here knows what a pod is. [`model`] describes objects, [`message`] encodes them as netlink messages,
//! [`state`] reads them back from the kernel, and [`Batch`] sends many messages in one system call ([`direct`] is the
//! one engine; [`Netlink`] puts it behind a lock). [`netns`] is the only module that changes a thread's namespace.

pub mod by_gateway;
pub mod defaults;
pub mod direct;
mod exchange;
pub mod fib;
pub mod foreign;
mod foreign_rule;
mod holder;
pub mod hooks;
pub mod lenient;
pub mod link;
pub mod local_routes;
mod local_rule;
pub mod message;
pub mod model;
pub mod multicast;
mod namespaces;
pub mod netns;
pub mod new_rules;
pub mod notification;
pub mod other_netns;
pub mod owned;
mod route_conflicts;
pub mod route_filter;
pub mod siblings;
pub mod state;
pub mod sysctl;

use std::{collections::HashMap, fmt, io, sync::Arc};

use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkMessage,
    packet_route::RouteNetlinkMessage,
    proto::{Connection, ConnectionHandle},
    sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::sync::Mutex;

use direct::{Direct, Received};
use link::Link;

/// A netlink operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct Error {
    /// What was being done, to what and where.
    pub action: String,
    /// The kernel's error.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// Makes an error of `action`.
    pub fn new(action: impl fmt::Display, source: io::Error) -> Self {
        Self {
            action: action.to_string(),
            source,
        }
    }

    /// Returns the kernel's error number, positive, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the kernel reported that the object (or the device it needs) does not exist.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        const GONE: [i32; 4] = [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL];
        self.errno().is_some_and(|errno| GONE.contains(&errno))
    }
}

/// The numbers of `errno.h` that the kernel answers with here; nix has them as an enum.
mod libc {
    use nix::errno::Errno;
    pub(super) const ENODEV: i32 = Errno::ENODEV as i32;
    pub(super) const ENOENT: i32 = Errno::ENOENT as i32;
    pub(super) const ESRCH: i32 = Errno::ESRCH as i32;
    pub(super) const EADDRNOTAVAIL: i32 = Errno::EADDRNOTAVAIL as i32;
}

/// The parts of a socket for notifications: its driver, a handle for requests, and the received messages.
type Parts = (
    Connection<RouteNetlinkMessage, TokioSocket, lenient::Codec>,
    ConnectionHandle<RouteNetlinkMessage>,
    UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
);

/// Opens a socket that receives the notifications of these groups.
fn listening(groups: &[MulticastGroup]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = groups
        .iter()
        .fold(0, |all, group| all | 1 << (*group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// An rtnetlink connection to one namespace, for async tasks.
///
/// The kernel processes a request before `sendmsg` returns, and makes each part of a dump when it is read. So a task
/// waits only for the kernel's own work, and one blocking connection serves all tasks, one after the other.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::netlink::Netlink;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), ebbtide_kernel::netlink::Error> {
/// let netlink = Netlink::open("in the host")?;
/// let other = netlink.clone();
/// let links = netlink.links_named(&["lo"]).await?;
/// assert_eq!(links["lo"].ifindex, 1);
/// // Both use the same socket.
/// assert_eq!(other.received().await, netlink.received().await);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Netlink {
    direct: Arc<Mutex<Direct>>,
    place: Arc<str>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace. `place` names that namespace in
    /// errors ("in the host", "in /run/netns/x").
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn open(place: impl Into<String>) -> Result<Self, Error> {
        Ok(Direct::open(place)?.into())
    }

    /// Returns the name of this namespace in errors.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Returns how much the kernel answered so far.
    pub async fn received(&self) -> Received {
        self.direct.lock().await.received()
    }

    /// Sends a dump request; see [`Direct::dump`].
    ///
    /// # Errors
    /// If the kernel refuses the request; `what` names it in the error.
    pub async fn dump<T>(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.direct.lock().await.dump(what, message, parse)
    }

    /// Sends a dump request and filters the answers; see [`Direct::dump_only`].
    ///
    /// # Errors
    /// If the kernel refuses the request; `what` names it in the error.
    pub async fn dump_only<T>(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        is_wanted: impl Fn(&[u8]) -> bool,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut direct = self.direct.lock().await;
        direct.dump_only(what, message, is_wanted, parse)
    }

    /// Sends one request; see [`Direct::ask`].
    ///
    /// # Errors
    /// If the kernel refuses the request; `what` names it in the error.
    pub async fn ask(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Error> {
        self.direct.lock().await.ask(what, message)
    }

    /// Sends several requests; see [`Direct::ask_each`].
    ///
    /// # Errors
    /// If the requests cannot be sent, or an answer is lost; `what` names them in the error.
    pub async fn ask_each(
        &self,
        what: &str,
        questions: Vec<RouteNetlinkMessage>,
    ) -> Result<Vec<io::Result<RouteNetlinkMessage>>, Error> {
        let answers = self.direct.lock().await.ask_each(questions);
        answers.map_err(|e| Error::new(format_args!("{what} {}", self.place), e))
    }

    /// Looks up links by name; see [`Direct::links`].
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn links_named(&self, names: &[&str]) -> Result<HashMap<String, Link>, Error> {
        self.direct.lock().await.links(names)
    }
}

impl From<Direct> for Netlink {
    fn from(direct: Direct) -> Self {
        Self {
            place: direct.place().into(),
            direct: Arc::new(Mutex::new(direct)),
        }
    }
}

/// Requests that are sent together, in order, and acknowledged together: there is no round trip for each.
///
/// # Examples
///
/// ```no_run
/// use ebbtide_kernel::netlink::{
///     Batch,
///     direct::Direct,
///     model::{Address, MAIN_TABLE, Route},
///     netns::Netns,
/// };
///
/// let applied = Netns::in_new(|_| {
///     let mut netlink = Direct::open("in a new namespace")?;
///     let mut batch = Batch::default();
///     batch.set_up("lo", 1, None);
///     batch.add_address(
///         &Address {
///             link: "lo".into(),
///             address: "192.0.2.7/32".parse().expect("an address"),
///             no_prefix_route: false,
///         },
///         1,
///     );
///     batch.add_route(
///         &Route {
///             link: "lo".into(),
///             destination: "198.51.100.0/24".parse().expect("a network"),
///             via: None,
///             source: None,
///             table: MAIN_TABLE,
///         },
///         1,
///     );
///     // One system call for all three.
///     netlink.run(batch)
/// })?;
/// applied?;
/// # Ok::<(), ebbtide_kernel::netlink::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Batch {
    requests: Vec<Request>,
}

#[derive(Clone, Debug)]
struct Request {
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
    tolerated: &'static [i32],
}

impl Batch {
    /// Adds a request. `what` completes the sentence "could not ...".
    pub fn push(&mut self, what: impl fmt::Display, message: RouteNetlinkMessage, flags: u16) {
        self.push_tolerant(what, message, flags, &[]);
    }

    /// Adds a request for which some errors count as success (`EEXIST` where an identical object exists, `ENOENT` where
    /// one is to be removed).
    pub fn push_tolerant(
        &mut self,
        what: impl fmt::Display,
        message: RouteNetlinkMessage,
        flags: u16,
        tolerated: &'static [i32],
    ) {
        self.requests.push(Request {
            what: what.to_string(),
            message,
            flags,
            tolerated,
        });
    }

    /// Sends the batch, and returns the first refusal; see [`Direct::run`].
    ///
    /// # Errors
    /// The first refusal, naming the request.
    pub async fn run(self, netlink: &Netlink) -> Result<(), Error> {
        netlink.direct.lock().await.run(self)
    }

    /// Sends the batch, and returns every refusal; see [`Direct::run_all`].
    pub async fn run_all(self, netlink: &Netlink) -> Vec<Error> {
        netlink.direct.lock().await.run_all(self)
    }
}

impl Request {
    fn tolerates(&self, refusal: &io::Error) -> bool {
        let errno = refusal.raw_os_error();
        errno.is_some_and(|errno| self.tolerated.contains(&errno))
    }
}
