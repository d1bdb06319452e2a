//! Frames and numbers netlink requests, and matches answers to them.

use std::io;

use rtnetlink::{
    packet_core::{
        NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
};

use super::lenient;

/// `NLMSG_DONE` (include/uapi/linux/netlink.h).
const DONE: u16 = 3;
/// `NLMSG_MIN_TYPE`: types below it are control messages.
const FIRST_OBJECT: u16 = 16;

/// Requests that are sent in one datagram. The kernel processes all of them before `sendmsg` returns
/// (`netlink_rcv_skb`, net/netlink/af_netlink.c).
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) bytes: Vec<u8>,
    /// The sequence number of the first request.
    begin: u32,
    pub(super) count: usize,
}

impl Datagram {
    /// Encodes the messages with their flags, numbered from `begin` on.
    pub(super) fn new(
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
        begin: u32,
    ) -> Self {
        let mut datagram = Self {
            bytes: Vec::new(),
            begin,
            count: 0,
        };
        for ((message, flags), number) in messages.into_iter().zip(0..) {
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | flags;
            header.sequence_number = begin.wrapping_add(number);
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
            message.finalize();
            let start = datagram.bytes.len();
            let length = message.buffer_len().next_multiple_of(4);
            datagram.bytes.resize(start + length, 0);
            message.serialize(&mut datagram.bytes[start..]);
            datagram.count += 1;
        }
        datagram
    }

    /// Returns the sequence number of the last request.
    pub(super) fn end(&self) -> u32 {
        self.begin.wrapping_add(self.count as u32).wrapping_sub(1)
    }

    /// Returns the number of the request that an answer is for; `None` if it is for none of them.
    pub(super) fn request(&self, answer: &Answer<'_>) -> Option<usize> {
        let number = answer.buffer.sequence_number().wrapping_sub(self.begin) as usize;
        (number < self.count).then_some(number)
    }
}

/// A message from the kernel, not decoded yet.
#[derive(Debug)]
pub(super) struct Answer<'d> {
    bytes: &'d [u8],
    buffer: NetlinkBuffer<&'d [u8]>,
}

impl Answer<'_> {
    /// Returns what follows the header.
    pub(super) fn body(&self) -> &[u8] {
        self.buffer.payload()
    }

    /// Whether objects changed during the dump (`nl_dump_check_consistent`, include/net/netlink.h).
    pub(super) fn is_interrupted(&self) -> bool {
        self.buffer.flags() & NLM_F_DUMP_INTR != 0
    }

    /// Whether it describes an object, and is no control message.
    pub(super) fn is_object(&self) -> bool {
        self.buffer.message_type() >= FIRST_OBJECT
    }

    /// Whether it ends a dump.
    pub(super) fn is_end(&self) -> bool {
        self.buffer.message_type() == DONE
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// If the message cannot be decoded.
    pub(super) fn decode(&self) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
        lenient::decode(self.bytes)
            .map(|message| message.payload)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
    }
}

/// Splits a datagram into answers.
pub(super) fn answers(mut datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(datagram).ok()?.length() as usize;
        let bytes = datagram.get(..length)?;
        // Messages begin at multiples of four bytes (NLMSG_ALIGN).
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        let buffer = NetlinkBuffer::new(bytes);
        Some(Answer { bytes, buffer })
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    fn about(name: &str) -> (RouteNetlinkMessage, u16) {
        let mut message = LinkMessage::default();
        let name = LinkAttribute::IfName(name.to_owned());
        message.attributes.push(name);
        (RouteNetlinkMessage::GetLink(message), 0)
    }

    #[test]
    fn messages_of_one_datagram_are_numbered_and_aligned() {
        for begin in [7, u32::MAX - 1] {
            let datagram = Datagram::new([about("a"), about("bcdefg"), about("lo")], begin);
            assert_eq!(datagram.bytes.len() % 4, 0);
            assert_eq!(datagram.end(), begin.wrapping_add(2));
            let requests: Vec<_> = answers(&datagram.bytes)
                .map(|frame| (datagram.request(&frame), frame.decode().is_ok()))
                .collect();
            let expected = [(Some(0), true), (Some(1), true), (Some(2), true)];
            assert_eq!(requests, expected, "from {begin}");
        }
    }

    #[test]
    fn an_answer_to_something_else_is_to_none_of_the_requests() {
        let existing = Datagram::new([about("a")], 6);
        let later = Datagram::new([about("a")], 9);
        let datagram = Datagram::new([about("a"), about("b")], 7);
        for other in [existing, later] {
            let mut frames = answers(&other.bytes);
            let frame = frames.next().unwrap();
            assert_eq!(datagram.request(&frame), None);
        }
    }

    #[test]
    fn a_datagram_that_is_cut_has_only_its_whole_messages() {
        let datagram = Datagram::new([about("a"), about("bcdefg")], 1);
        for (cut, whole) in [(0, 2), (1, 1), (datagram.bytes.len() - 10, 0)] {
            let kept = &datagram.bytes[..datagram.bytes.len() - cut];
            assert_eq!(answers(kept).count(), whole, "without {cut} bytes");
        }
    }
}
