//! A blocking connection that sends a whole batch in one system call.
//!
//! The kernel processes all messages of one `sendmsg` before it returns (`netlink_rcv_skb`, net/netlink/af_netlink.c),
//! and reports a refused one whether or not it was to be acknowledged. So one acknowledgement, of the last message,
//! confirms all others.

use std::{
    collections::HashMap,
    io,
    ops::{AddAssign, Sub},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::TimeVal,
    },
};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkMessage},
        route::RouteMessage,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tracing::debug;

use super::{
    Batch, Error, Request,
    exchange::{Answer, Datagram, answers},
    link::{Link, LinkAddress, all_links, new_link},
    route_conflicts::{self, RouteConflicts},
};

/// The number of requests sent at once: even if all are refused, the errors fit the socket's buffer.
const BATCH_SIZE: usize = 64;
/// The number of lookups sent at once: even if all answers are as long as a link's, they fit the socket's buffer.
const MAX_REQUESTS_IN_FLIGHT: usize = 16;
/// The receive buffer in bytes: more than any answer that is not a dump (a link has up to some 4 KiB), and the most
/// that the kernel makes of a dump at once (`netlink_dump`).
const ANSWER: usize = 32 * 1024;
/// How often a dump is tried while objects change.
const MAX_RETRIES: u32 = 8;
/// The receive timeout. The kernel has answered before `sendmsg` returns, so only a lost answer takes this long.
const LOST: TimeVal = TimeVal::new(10, 0);
/// Errors that mean an empty list: no such table, or no such family in this kernel.
const NOTHING_TO_LIST: [i32; 3] = [
    Errno::ENOENT as i32,
    Errno::EAFNOSUPPORT as i32,
    Errno::EOPNOTSUPP as i32,
];

/// How much the kernel answered on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Sub for Received {
    type Output = Self;

    fn sub(self, existing: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(existing.messages),
            bytes: self.bytes.saturating_sub(existing.bytes),
        }
    }
}

impl AddAssign for Received {
    fn add_assign(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

/// A blocking rtnetlink connection to one namespace.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::netlink::direct::Direct;
///
/// let mut netlink = Direct::open("in the host")?;
/// let links = netlink.links(&["lo", "no-such-link"])?;
/// assert!(links["lo"].loopback);
/// assert!(!links.contains_key("no-such-link"));
/// # Ok::<(), ebbtide_kernel::netlink::Error>(())
/// ```
#[derive(Debug)]
pub struct Direct {
    socket: Socket,
    place: String,
    sequence: u32,
    buffer: Vec<u8>,
    received: Received,
}

impl Direct {
    /// Opens a socket in the calling thread's network namespace. `place` names that namespace in
    /// errors ("in the host", "in /run/netns/x").
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn open(place: impl Into<String>) -> Result<Self, Error> {
        let direct = Self::open_unfiltered(place)?;
        // Only with this does the kernel filter dumps, and refuse unknown attributes. Callers filter the answers again,
        // so a kernel without it (before 4.20) only costs time.
        if let Err(e) = direct.socket.set_netlink_get_strict_chk(true) {
            debug!("enable filtered dumps on the netlink socket: {e}; the kernel lists everything");
        }
        Ok(direct)
    }

    /// As [`Direct::open`], but the kernel ignores filters of dumps and lists everything.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn open_unfiltered(place: impl Into<String>) -> Result<Self, Error> {
        let place = place.into();
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // An error need not repeat the refused message.
            socket.set_cap_ack(true)?;
            setsockopt(&socket, ReceiveTimeout, &LOST)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self {
                socket,
                place,
                sequence: 0,
                buffer: Vec::new(),
                received: Received::default(),
            }),
            Err(e) => Err(Error::new(format_args!("open a netlink socket {place}"), e)),
        }
    }

    /// Returns the name of this namespace in errors.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Returns how much the kernel answered so far.
    #[must_use]
    pub const fn received(&self) -> Received {
        self.received
    }

    /// Sends all requests, waits for all, and returns the first refusal that is not tolerated. Requests after a refused
    /// one are carried out all the same.
    ///
    /// # Errors
    /// The first refusal, naming the request.
    pub fn run(&mut self, batch: Batch) -> Result<(), Error> {
        match self.run_all(batch).into_iter().next() {
            Some(first) => Err(first),
            None => Ok(()),
        }
    }

    /// As [`Direct::run`], for a namespace that has most of it: existing identical routes are looked up and left out.
    /// Otherwise each is refused, and its whole table is listed to find the conflict.
    ///
    /// # Errors
    /// The first refusal, naming the request.
    pub fn run_missing(&mut self, mut batch: Batch) -> Result<(), Error> {
        self.remove_existing_ipv4_routes(&mut batch)?;
        if let Some(question) = batch.ipv6_route_dump() {
            let there = self.dump("list our routes", question, route_conflicts::route)?;
            batch.remove_existing(&there);
        }
        self.run(batch)
    }

    /// Removes the requests for IPv4 routes that exist identically.
    ///
    /// The kernel walks the whole table for a dump, even for one of a single link. But it finds a route by its
    /// destination for a request that may neither create nor replace one: such a request changes nothing, and is refused
    /// with `EEXIST` for an identical route, and with `ENOENT` otherwise (`fib_table_insert`, net/ipv4/fib_trie.c). For
    /// IPv6 the kernel creates the route all the same (`fib6_add_rt2node`, net/ipv6/ip6_fib.c).
    fn remove_existing_ipv4_routes(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let is_ipv4 = |route: &&RouteMessage| route.header.address_family == AddressFamily::Inet;
        let routes = batch
            .requests
            .iter()
            .filter_map(Request::route)
            .filter(is_ipv4);
        let routes: Vec<_> = routes.cloned().map(RouteNetlinkMessage::NewRoute).collect();
        let mut exists = Vec::with_capacity(routes.len());
        for routes in routes.chunks(BATCH_SIZE) {
            let begin = exists.len();
            exists.resize(begin + routes.len(), false);
            let requests = routes.iter().enumerate().map(|(number, route)| {
                let is_last = number + 1 == routes.len();
                (route.clone(), if is_last { NLM_F_ACK } else { 0 })
            });
            self.exchange(requests, |number, answer| {
                if let Ok(NetlinkPayload::Error(e)) = answer.decode() {
                    exists[begin + number] = e.to_io().raw_os_error() == Some(Errno::EEXIST as i32);
                }
                number + 1 == routes.len()
            })
            .map_err(|e| Error::new(format_args!("look up routes {}", self.place), e))?;
        }
        let mut exists = exists.into_iter();
        let mut is_missing =
            |route: &RouteMessage| !is_ipv4(&route) || exists.next() == Some(false);
        batch
            .requests
            .retain(|request| request.route().is_none_or(&mut is_missing));
        Ok(())
    }

    /// As [`Direct::run`], but returns every refusal.
    pub fn run_all(&mut self, batch: Batch) -> Vec<Error> {
        let mut taken = RouteConflicts::default();
        let mut failures = self.send_all(&batch, &mut taken);
        let otherwise = taken.otherwise();
        failures.extend(self.send_all(&otherwise, &mut taken));
        if taken.is_empty() {
            return failures;
        }
        let there = self.routes(taken.dumps(), &mut failures);
        let (again, refused) = taken.replacements(&there, &self.place);
        failures.extend(refused);
        failures.extend(self.send_all(&again, &mut RouteConflicts::default()));
        failures
    }

    fn routes(
        &mut self,
        questions: Vec<RouteNetlinkMessage>,
        failures: &mut Vec<Error>,
    ) -> Vec<RouteMessage> {
        let mut found = Vec::new();
        for question in questions {
            match self.dump("list routes", question, route_conflicts::route) {
                Ok(routes) => found.extend(routes),
                Err(e) => failures.push(e),
            }
        }
        found
    }

    /// Sends all requests, and returns the refusals that are neither tolerated nor kept in `taken`.
    fn send_all(&mut self, batch: &Batch, taken: &mut RouteConflicts) -> Vec<Error> {
        let mut failures = Vec::new();
        for requests in batch.requests.chunks(BATCH_SIZE) {
            let messages = requests.iter().enumerate().map(|(number, request)| {
                let last = number + 1 == requests.len();
                let acknowledged = if last { NLM_F_ACK } else { 0 };
                (request.message.clone(), request.flags | acknowledged)
            });
            let place = self.place.clone();
            let failed =
                |request: &Request, e| Error::new(format_args!("{} {place}", request.what), e);
            let exchanged = self.exchange(messages, |number, answer| {
                if let (Some(request), Ok(NetlinkPayload::Error(e))) =
                    (requests.get(number), answer.decode())
                    && e.code.is_some()
                {
                    let refusal = e.to_io();
                    if !request.tolerates(&refusal) && !taken.collect(request, &refusal) {
                        failures.push(failed(request, refusal));
                    }
                }
                number + 1 == requests.len()
            });
            if let (Err(e), Some(request)) = (exchanged, requests.first()) {
                failures.push(failed(request, e));
            }
        }
        failures
    }

    /// Sends one dump request, and returns what `parse` makes of the answers. Each message is parsed and dropped as it
    /// arrives.
    ///
    /// # Errors
    /// If the kernel refuses the request; `what` names it in the error.
    pub fn dump<T>(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.dump_only(what, message, |_| true, parse)
    }

    /// As [`Direct::dump`], for the answers that `is_wanted` accepts by their bytes after the header: the others are
    /// not decoded.
    ///
    /// # Errors
    /// If the kernel refuses the request; `what` names it in the error.
    pub fn dump_only<T>(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        is_wanted: impl Fn(&[u8]) -> bool,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        // Objects that change during a dump may be missing or appear twice.
        for _ in 0..MAX_RETRIES {
            let (mut interrupted, mut refusal) = (false, None);
            found.clear();
            let asked = [(message.clone(), NLM_F_DUMP)];
            let exchanged = self.exchange(asked, |_, answer| {
                interrupted |= answer.is_interrupted();
                if answer.is_end() {
                    refusal = end_of_list(&answer);
                    return true;
                }
                // `is_wanted` reads the bodies of objects, not of errors.
                if answer.is_object() && !is_wanted(answer.body()) {
                    return false;
                }
                match answer.decode() {
                    Ok(NetlinkPayload::InnerMessage(message)) => found.extend(parse(message)),
                    Ok(NetlinkPayload::Error(e)) if e.code.is_some() => {
                        refusal = Some(e.to_io());
                        return true;
                    }
                    Ok(_) => {}
                    Err(e) => debug!("a message that cannot be read: {e}"),
                }
                false
            });
            if let Some(e) = exchanged.err().or(refusal) {
                return Err(Error::new(format_args!("{what} {}", self.place), e));
            }
            if !interrupted {
                break;
            }
        }
        Ok(found)
    }

    /// Sends one request that is not a dump, and returns the kernel's answer.
    ///
    /// # Errors
    /// If the kernel refuses the request; `what` names it in the error.
    pub fn ask(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Error> {
        let answers = self.ask_each(vec![message]);
        let answer = answers
            .and_then(|mut answers| answers.pop().unwrap_or_else(|| Err(Errno::EPROTO.into())));
        answer.map_err(|e| Error::new(format_args!("{what} {}", self.place), e))
    }

    /// Sends these requests, several at once, and returns the kernel's answer to each, in order.
    ///
    /// # Errors
    /// If the requests cannot be sent, or an answer is lost.
    pub fn ask_each(
        &mut self,
        questions: Vec<RouteNetlinkMessage>,
    ) -> io::Result<Vec<io::Result<RouteNetlinkMessage>>> {
        let mut found = Vec::with_capacity(questions.len());
        let mut questions = questions.into_iter().peekable();
        while questions.peek().is_some() {
            let some = questions.by_ref().take(MAX_REQUESTS_IN_FLIGHT);
            let begin = found.len();
            let some: Vec<_> = some.map(|question| (question, 0)).collect();
            let count = some.len();
            let mut answered = 0;
            found.extend((0..count).map(|_| Err(Errno::EPROTO.into())));
            self.exchange(some, |number, answer| {
                let answer = match answer.decode() {
                    Ok(NetlinkPayload::InnerMessage(message)) => Ok(message),
                    Ok(NetlinkPayload::Error(e)) => Err(e.to_io()),
                    Ok(_) => Err(Errno::EPROTO.into()),
                    Err(e) => Err(e),
                };
                if let Some(place) = found.get_mut(begin + number) {
                    *place = answer;
                }
                answered += 1;
                answered == count
            })?;
        }
        Ok(found)
    }

    /// Sends the requests, and passes each answer with its request's number to `observe`, until that returns true: the
    /// last answer has arrived.
    fn exchange(
        &mut self,
        requests: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
        mut observe: impl FnMut(usize, Answer<'_>) -> bool,
    ) -> io::Result<()> {
        let datagram = Datagram::new(requests, self.sequence.wrapping_add(1));
        if datagram.count == 0 {
            return Ok(());
        }
        self.sequence = datagram.end();
        self.socket.send(&datagram.bytes, 0)?;
        let mut is_over = false;
        while !is_over {
            self.receive()?;
            let mut received = Received::default();
            for answer in answers(&self.buffer) {
                received.messages += 1;
                if let Some(number) = datagram.request(&answer) {
                    is_over |= observe(number, answer);
                }
            }
            received.bytes = self.buffer.len() as u64;
            self.received += received;
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.reserve(ANSWER);
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the kernel's answer was lost (it is out of memory, perhaps)",
            )),
            Err(e) => Err(e),
        }
    }

    /// Looks up the links of these names, several at once. Links that do not exist are left out.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn links(&mut self, names: &[&str]) -> Result<HashMap<String, Link>, Error> {
        let question = |name: &&str| {
            let mut message = LinkMessage::default();
            let name = LinkAttribute::IfName((*name).to_owned());
            message.attributes.push(name);
            RouteNetlinkMessage::GetLink(message)
        };
        let place = self.place.clone();
        let failed = |e| Error::new(format_args!("look up link {} {place}", names.join(", ")), e);
        let answers = self.ask_each(names.iter().map(question).collect());
        let mut links = HashMap::new();
        for answer in answers.map_err(failed)? {
            match answer.map_err(failed) {
                Ok(message) => {
                    links.extend(new_link(message).map(|link| (link.name.clone(), link)));
                }
                Err(e) if e.is_gone() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(links)
    }

    /// Lists all links.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn all_links(&mut self) -> Result<Vec<Link>, Error> {
        self.dump("list links", all_links(), new_link)
    }

    /// Lists all addresses.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn addresses(&mut self) -> Result<Vec<LinkAddress>, Error> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("list addresses", question, |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => LinkAddress::parse(&message),
            _ => None,
        })
    }
}

/// Returns the error that ended a dump early, if any (`netlink_dump_done`, net/netlink/af_netlink.c).
fn end_of_list(answer: &Answer<'_>) -> Option<io::Error> {
    let code = i32::from_ne_bytes(*answer.body().first_chunk()?);
    let errno = code.checked_neg().filter(|errno| *errno > 0)?;
    (!NOTHING_TO_LIST.contains(&errno)).then(|| io::Error::from_raw_os_error(errno))
}
