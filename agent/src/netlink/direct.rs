//! A blocking connection that sends a whole batch in one system call.
//!
//! The kernel works through all messages of one `sendmsg` before it returns (`netlink_rcv_skb`,
//! net/netlink/af_netlink.c), and answers a refused one whether it was asked to acknowledge it or not.
//! So one acknowledgement, of the last message, tells that all others are done.

use std::{collections::HashMap, io};

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::{
    Batch, Error, PATIENCE, Request, lenient,
    link::{Link, LinkAddress, new_link},
    taken::{self, Taken},
};

/// Messages sent at once: their answers, should all be refused, fit the socket's buffer.
const AT_ONCE: usize = 64;
/// Longer than any answer to one message that is not a dump: a link has up to some 4 KiB.
const ANSWER: usize = 32 * 1024;

/// A blocking connection to one namespace's rtnetlink.
#[derive(Debug)]
pub struct Direct {
    socket: Socket,
    place: String,
    sequence: u32,
}

impl Direct {
    /// Opens a socket in the calling thread's network namespace. `place` names that namespace in
    /// errors ("in the host", "in /run/netns/x").
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(place: impl Into<String>) -> Result<Self, Error> {
        let place = place.into();
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // A refusal need not repeat the message that was refused.
            socket.set_cap_ack(true)?;
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self {
                socket,
                place,
                sequence: 0,
            }),
            Err(e) => Err(Error::new(format_args!("open a netlink socket {place}"), e)),
        }
    }

    /// What errors call this namespace.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Sends all, waits for all, and reports the first refusal that is not tolerated. Requests
    /// behind a refused one are carried out all the same.
    ///
    /// # Errors
    /// The first refusal, naming the request.
    pub fn run(&mut self, batch: Batch) -> Result<(), Error> {
        let mut taken = Taken::default();
        let mut result = self.send_all(&batch, &mut taken);
        let otherwise = taken.by_other_means();
        result = result.and(self.send_all(&otherwise, &mut taken));
        if taken.is_empty() {
            return result;
        }
        let mut there = Vec::new();
        for question in taken.questions() {
            there.extend(self.dump("list routes", question, taken::route)?);
        }
        let (again, refused) = taken.again(&there, &self.place);
        for refusal in refused {
            result = result.and(Err(refusal));
        }
        let replaced = self.send_all(&again, &mut Taken::default());
        result.and(replaced)
    }

    fn send_all(&mut self, batch: &Batch, taken: &mut Taken) -> Result<(), Error> {
        let mut first = None;
        for requests in batch.requests.chunks(AT_ONCE) {
            let refused = self.exchange(requests, taken);
            first = first.or(refused.err());
        }
        first.map_or(Ok(()), Err)
    }

    /// What `parse` makes of everything that the kernel answers to one dump request.
    ///
    /// # Errors
    /// When the kernel refuses; `what` says what was asked for.
    pub fn dump<T>(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let failed = |e, place: &str| Error::new(format_args!("{what} {place}"), e);
        let mut found = Vec::new();
        // A list that changed while it was made is asked for again.
        for _ in 0..PATIENCE {
            let number = self.sequence.wrapping_add(1);
            self.sequence = number;
            let datagram = encode([(message.clone(), NLM_F_DUMP)].into_iter(), number);
            let sent = self.socket.send(&datagram, 0);
            sent.map_err(|e| failed(e, &self.place))?;
            let (mut is_whole, mut interrupted) = (false, false);
            found.clear();
            while !is_whole {
                for answer in self.receive().map_err(|e| failed(e, &self.place))? {
                    if answer.header.sequence_number != number {
                        continue;
                    }
                    interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                    match answer.payload {
                        NetlinkPayload::InnerMessage(message) => found.extend(parse(message)),
                        NetlinkPayload::Done(_) => is_whole = true,
                        NetlinkPayload::Error(e) if e.code.is_some() => {
                            return Err(failed(e.to_io(), &self.place));
                        }
                        _ => {}
                    }
                }
            }
            if !interrupted {
                break;
            }
        }
        Ok(found)
    }

    /// The kernel's one answer to a question that lists nothing.
    ///
    /// # Errors
    /// When the kernel refuses; `what` says what was asked for.
    pub fn ask(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Error> {
        let failed = |e| Error::new(format_args!("{what} {}", self.place), e);
        let number = self.sequence.wrapping_add(1);
        self.sequence = number;
        let datagram = encode([(message, 0)].into_iter(), number);
        self.socket.send(&datagram, 0).map_err(failed)?;
        loop {
            for answer in self.receive().map_err(failed)? {
                if answer.header.sequence_number != number {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(message),
                    NetlinkPayload::Error(e) => return Err(failed(e.to_io())),
                    _ => {}
                }
            }
        }
    }

    fn exchange(&mut self, requests: &[Request], taken: &mut Taken) -> Result<(), Error> {
        let begin = self.sequence.wrapping_add(1);
        let messages = requests.iter().enumerate().map(|(number, request)| {
            let last = number + 1 == requests.len();
            let acknowledged = if last { NLM_F_ACK } else { 0 };
            (request.message.clone(), request.flags | acknowledged)
        });
        let whole = |e| {
            let what = requests.first().map_or("", |request| &request.what);
            Error::new(format_args!("{what} {}", self.place), e)
        };
        let datagram = encode(messages, begin);
        self.sequence = self.sequence.wrapping_add(requests.len() as u32);
        self.socket.send(&datagram, 0).map_err(whole)?;
        let mut first = None;
        loop {
            for answer in self.receive().map_err(whole)? {
                let number = answer.header.sequence_number.wrapping_sub(begin) as usize;
                let (Some(request), NetlinkPayload::Error(e)) =
                    (requests.get(number), answer.payload)
                else {
                    continue;
                };
                let refusal = e.to_io();
                let is_refused = e.code.is_some()
                    && !request.tolerates(&refusal)
                    && !taken.keep(request, &refusal);
                if is_refused && first.is_none() {
                    let what = format_args!("{} {}", request.what, self.place);
                    first = Some(Error::new(what, refusal));
                }
                if number + 1 == requests.len() {
                    return first.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// The links of these names, those that are there, asked for all at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn links(&mut self, names: &[&str]) -> Result<HashMap<String, Link>, Error> {
        let begin = self.sequence.wrapping_add(1);
        let messages = names.iter().map(|name| {
            let mut message = LinkMessage::default();
            message
                .attributes
                .push(LinkAttribute::IfName((*name).to_owned()));
            (RouteNetlinkMessage::GetLink(message), 0)
        });
        let failed = |e| {
            let what = format_args!("look up link {} {}", names.join(", "), self.place);
            Error::new(what, e)
        };
        let datagram = encode(messages, begin);
        self.sequence = self.sequence.wrapping_add(names.len() as u32);
        let mut links = HashMap::new();
        if names.is_empty() {
            return Ok(links);
        }
        self.socket.send(&datagram, 0).map_err(failed)?;
        let mut answered = 0;
        while answered < names.len() {
            for answer in self.receive().map_err(failed)? {
                let number = answer.header.sequence_number.wrapping_sub(begin) as usize;
                if number >= names.len() {
                    continue;
                }
                answered += 1;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        links.extend(new_link(message).map(|link| (link.name.clone(), link)));
                    }
                    NetlinkPayload::Error(e) => {
                        let e = failed(e.to_io());
                        if !e.is_gone() {
                            return Err(e);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(links)
    }

    /// All links.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn all_links(&mut self) -> Result<Vec<Link>, Error> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("list links", question, new_link)
    }

    /// All addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> Result<Vec<LinkAddress>, Error> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("list addresses", question, |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => LinkAddress::parse(&message),
            _ => None,
        })
    }

    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut buffer = Vec::with_capacity(ANSWER);
        self.socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        let mut messages = Vec::new();
        while rest.len() >= size_of::<u32>() {
            let message = lenient::decode::<RouteNetlinkMessage>(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            // Messages begin at multiples of four bytes (NLMSG_ALIGN).
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            messages.push(message);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(messages)
    }
}

/// The messages as one datagram, numbered from `begin` on.
fn encode(messages: impl Iterator<Item = (RouteNetlinkMessage, u16)>, begin: u32) -> Vec<u8> {
    let mut datagram = Vec::new();
    for (number, (message, flags)) in (0..).zip(messages) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = begin.wrapping_add(number);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = datagram.len();
        let length = message.buffer_len().next_multiple_of(4);
        datagram.resize(start + length, 0);
        message.serialize(&mut datagram[start..]);
    }
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_datagram_are_numbered_and_aligned() {
        let ask = |name: &str| {
            let mut message = LinkMessage::default();
            message
                .attributes
                .push(LinkAttribute::IfName(name.to_owned()));
            (RouteNetlinkMessage::GetLink(message), 0)
        };
        let datagram = encode([ask("a"), ask("bcdefg"), ask("lo")].into_iter(), 7);
        let mut rest = datagram.as_slice();
        for number in 7..10 {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).unwrap();
            assert_eq!(message.header.sequence_number, number);
            rest = &rest[(message.header.length as usize).next_multiple_of(4)..];
        }
        assert!(rest.is_empty());
    }
}
