//! The few typed operations on links, addresses, routes, rules, neighbours, filters, sysctls and
//! namespaces that the rest of the agent is made of.
//!
//! Nothing here knows what a pod is. [`model`] says what objects look like, [`message`] turns
//! them into netlink messages, [`state`] reads the kernel's back, [`Batch`] is many messages that
//! go together ([`direct`]: in one system call), and [`netns`] is the only place that changes a
//! thread's namespace.

pub mod announcement;
pub mod by_gateway;
pub mod defaults;
pub mod direct;
pub mod elsewhere;
pub mod foreign;
mod foreign_rule;
mod holder;
pub mod hooks;
pub mod lenient;
pub mod link;
pub mod marked;
pub mod message;
pub mod model;
pub mod multicast;
mod namespaces;
pub mod netns;
pub mod ours;
pub mod siblings;
pub mod state;
pub mod sysctl;
mod taken;
pub mod way;

use std::{fmt, io, sync::Arc};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver, stream::BoxStream};
use rtnetlink::{
    MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    proto::{Connection, ConnectionHandle, from_socket_with_codec},
    sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::sync::Mutex;

use taken::Taken;

/// A netlink operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct Error {
    /// What was being done, to what and where.
    pub action: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// An error of `action`.
    pub fn new(action: impl fmt::Display, source: io::Error) -> Self {
        Self {
            action: action.to_string(),
            source,
        }
    }

    /// The kernel's error number, positive, if it is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the kernel said that the object (or the device it needs) is not there.
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

/// How often a list that changed while it was made is asked for again.
const PATIENCE: u32 = 8;

/// What the kernel answered to one request.
struct Answers<T> {
    objects: Vec<T>,
    /// The list changed while it was made.
    interrupted: bool,
}

/// What a connection is made of: who drives the socket, who asks, and what the kernel says by itself.
type Parts = (
    Connection<RouteNetlinkMessage, TokioSocket, lenient::Codec>,
    ConnectionHandle<RouteNetlinkMessage>,
    UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
);

/// A socket that hears what is announced to these groups.
fn listening(groups: &[MulticastGroup]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = groups
        .iter()
        .fold(0, |all, group| all | 1 << (*group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// A connection to one namespace's rtnetlink.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: ConnectionHandle<RouteNetlinkMessage>,
    place: String,
    /// One dump at a time: the kernel answers a second one on the same socket with EBUSY
    /// (`__netlink_dump_start`, net/netlink/af_netlink.c).
    dumping: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace. `place` names that namespace in
    /// errors ("in the host", "in /run/netns/x").
    ///
    /// Must be called within a tokio runtime, or with its handle entered: that runtime drives the
    /// socket from then on, whatever namespace its own threads are in.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(place: impl Into<String>) -> Result<Self, Error> {
        let place = place.into();
        let failed = |e| Error::new(format_args!("open a netlink socket {place}"), e);
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(failed)?;
        // Filters of dumps are honoured by the kernel, and unknown attributes refused, only then.
        socket
            .socket_mut()
            .set_netlink_get_strict_chk(true)
            .map_err(failed)?;
        let (connection, handle, _): Parts = from_socket_with_codec(socket);
        tokio::spawn(connection);
        Ok(Self {
            handle,
            place,
            dumping: Arc::default(),
        })
    }

    /// What errors call this namespace.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>, io::Error> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        self.handle
            .clone()
            .request(request, SocketAddr::new(0, 0))
            .map(StreamExt::boxed)
            .map_err(|_closed| io::Error::other("the netlink socket is closed"))
    }

    /// What `parse` makes of everything that the kernel answers to one dump request. Each message is
    /// parsed as it comes, and dropped: most of a link's nobody here asks for.
    ///
    /// # Errors
    /// When the kernel refuses; `what` says what was asked for.
    pub async fn dump<T>(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let _turn = self.dumping.lock().await;
        let mut answers = self.ask(what, message.clone(), NLM_F_DUMP, &parse).await?;
        // What changed while the kernel was listing it may be missing or be there twice
        // (`nl_dump_check_consistent`, include/net/netlink.h).
        for _ in 0..PATIENCE {
            if !answers.interrupted {
                break;
            }
            answers = self.ask(what, message.clone(), NLM_F_DUMP, &parse).await?;
        }
        Ok(answers.objects)
    }

    /// Everything the kernel answers to one request.
    ///
    /// # Errors
    /// When the kernel refuses; `what` says what was asked for.
    pub async fn collect(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        Ok(self.ask(what, message, flags, Some).await?.objects)
    }

    async fn ask<T>(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Answers<T>, Error> {
        let failed = |e| Error::new(format_args!("{what} {}", self.place), e);
        let mut answers = self.send(message, flags).map_err(failed)?;
        let mut all = Answers {
            objects: Vec::new(),
            interrupted: false,
        };
        while let Some(answer) = answers.next().await {
            all.interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => all.objects.extend(parse(message)),
                NetlinkPayload::Error(e) if e.code.is_some() => return Err(failed(e.to_io())),
                _ => {}
            }
        }
        Ok(all)
    }
}

/// Requests that are sent together, in order, and acknowledged together: the kernel works through
/// them while the agent is still sending, and nobody waits for one answer before the next request.
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

    /// Adds a request for which some of the kernel's refusals are as good as success (`EEXIST`
    /// where the very same object is there already, `ENOENT` where one is to go).
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

    /// Sends all, waits for all, and reports the first refusal that is not tolerated. Requests
    /// behind a refused one are carried out all the same.
    ///
    /// # Errors
    /// The first refusal, naming the request.
    pub async fn run(self, netlink: &Netlink) -> Result<(), Error> {
        match self.run_all(netlink).await.into_iter().next() {
            Some(first) => Err(first),
            None => Ok(()),
        }
    }

    /// As [`Batch::run`], but reports every refusal.
    pub async fn run_all(self, netlink: &Netlink) -> Vec<Error> {
        let (mut failures, mut taken) = self.send_all(netlink).await;
        let (refused, places) = taken.by_other_means().send_all(netlink).await;
        failures.extend(refused);
        taken.join(places);
        if taken.is_empty() {
            return failures;
        }
        let mut there = Vec::new();
        for question in taken.questions() {
            let routes = netlink.dump("list routes", question, taken::route);
            match routes.await {
                Ok(routes) => there.extend(routes),
                Err(e) => failures.push(e),
            }
        }
        let (again, refused) = taken.again(&there, &netlink.place);
        failures.extend(refused);
        failures.extend(again.send_all(netlink).await.0);
        failures
    }

    /// The refusals, and the requests for routes whose place is taken.
    async fn send_all(self, netlink: &Netlink) -> (Vec<Error>, Taken) {
        let sent: Vec<_> = self
            .requests
            .into_iter()
            .map(|request| {
                let flags = request.flags | NLM_F_ACK;
                let answers = netlink.send(request.message.clone(), flags);
                (request, answers)
            })
            .collect();
        let (mut failures, mut taken) = (Vec::new(), Taken::default());
        for (request, answers) in sent {
            let result = match answers {
                Err(e) => Err(e),
                Ok(mut answers) => acknowledged(&mut answers).await,
            };
            if let Err(e) = result
                && !request.tolerates(&e)
                && !taken.keep(&request, &e)
            {
                let what = format_args!("{} {}", request.what, netlink.place);
                failures.push(Error::new(what, e));
            }
        }
        (failures, taken)
    }
}

impl Request {
    fn tolerates(&self, refusal: &io::Error) -> bool {
        let errno = refusal.raw_os_error();
        errno.is_some_and(|errno| self.tolerated.contains(&errno))
    }
}

async fn acknowledged(
    answers: &mut BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<(), io::Error> {
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(e) = answer.payload
            && e.code.is_some()
        {
            return Err(e.to_io());
        }
    }
    Ok(())
}
