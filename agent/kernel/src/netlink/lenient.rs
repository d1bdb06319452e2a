//! Decodes kernel messages that have unreadable attributes, without these.
//!
//! The netlink library rejects a whole message for one attribute that it cannot parse: text that is not UTF-8 (the
//! kernel takes any bytes as a link's alias), a nested attribute of another length in another kernel. Then the agent
//! would not see that link, and a dump would fail because of an unrelated one.

use std::{fmt::Debug, io};

use bytes::BytesMut;
use rtnetlink::{
    packet_core::{
        DecodeError, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage, NetlinkSerializable,
    },
    proto::{NetlinkCodec, NetlinkMessageCodec},
};
use tracing::debug;

/// `struct nlmsghdr` (include/uapi/linux/netlink.h).
const HEADER: usize = 16;
/// `struct nlattr`: length and type.
const ATTRIBUTE: usize = 4;
/// The levels of nested attributes that are searched: those of a kind of link have three.
const DEPTH: u8 = 3;

/// Decodes the message at the start of `bytes`.
///
/// # Errors
/// If it is no message, or cannot be decoded even without any of its attributes.
pub fn decode<T: NetlinkDeserializable>(bytes: &[u8]) -> Result<NetlinkMessage<T>, DecodeError> {
    NetlinkMessage::deserialize(bytes).or_else(|error| {
        let Some((fixed, attributes)) = split(bytes) else {
            return Err(error);
        };
        let whole = |attributes: &[u8]| with_length(&[fixed, attributes].concat());
        let reads =
            |attributes: &[u8]| NetlinkMessage::<T>::deserialize(&whole(attributes)).is_ok();
        let kept = readable(attributes, &reads, DEPTH);
        let mut message = NetlinkMessage::deserialize(&whole(&kept)).map_err(|_still| error)?;
        debug!(
            "read a message without what cannot be read of it: {:?}",
            message.header
        );
        // The next message begins after the original length.
        message.header.length = NetlinkBuffer::new(bytes).length();
        Ok(message)
    })
}

/// Returns as many of the attributes, in order, as `reads` accepts together; of nested ones the accepted part.
fn readable(mut attributes: &[u8], reads: &dyn Fn(&[u8]) -> bool, depth: u8) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some((attribute, rest)) = first(attributes) {
        attributes = rest;
        let with = [&kept[..], attribute].concat();
        if reads(&with) {
            kept = with;
            continue;
        }
        let Some((head, nested)) = attribute.split_at_checked(ATTRIBUTE) else {
            continue;
        };
        if depth == 0 || !is_list(nested) {
            continue;
        }
        let with = |nested: &[u8]| [&kept[..], &with_attribute_length(head, nested)].concat();
        let nested = readable(nested, &|nested| reads(&with(nested)), depth - 1);
        let with = with(&nested);
        if !nested.is_empty() && reads(&with) {
            kept = with;
        }
    }
    kept
}

/// Splits off the first attribute, padded to a multiple of four bytes (NLA_ALIGN).
fn first(attributes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
    if length < ATTRIBUTE || length > attributes.len() {
        return None;
    }
    let padded = length.next_multiple_of(4).min(attributes.len());
    Some(attributes.split_at(padded))
}

/// Whether the bytes consist of attributes alone.
fn is_list(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some((_, behind)) = first(rest) {
        rest = behind;
    }
    rest.is_empty() && !bytes.is_empty()
}

fn with_attribute_length(head: &[u8], nested: &[u8]) -> Vec<u8> {
    let mut attribute = [head, nested].concat();
    let length = u16::try_from(attribute.len()).unwrap_or(u16::MAX);
    attribute[..2].copy_from_slice(&length.to_ne_bytes());
    attribute
}

fn with_length(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// Splits a message into its fixed part and its attributes.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let buffer = NetlinkBuffer::new_checked(bytes).ok()?;
    let fixed = HEADER + body(buffer.message_type())?;
    bytes
        .get(..buffer.length() as usize)?
        .split_at_checked(fixed)
}

/// Returns the length of the structure after the header, by message type (include/uapi/linux/rtnetlink.h).
const fn body(kind: u16) -> Option<usize> {
    Some(match kind {
        // `ifinfomsg`, `ifaddrmsg`, `rtmsg`, `ndmsg`, `fib_rule_hdr`.
        16..20 => 16,
        20..24 => 8,
        24..36 => 12,
        // `tcmsg`, of queueing disciplines, classes and filters, and of chains.
        36..48 | 100..104 => 20,
        // `rtgenmsg`, padded.
        88..92 => 4,
        _ => return None,
    })
}

/// Decodes the datagrams of connections, as [`decode`] does.
#[derive(Debug)]
pub(super) struct Codec;

impl NetlinkMessageCodec for Codec {
    fn decode<T>(datagram: &mut BytesMut) -> io::Result<Option<NetlinkMessage<T>>>
    where
        T: NetlinkDeserializable + Debug,
    {
        while let Ok(buffer) = NetlinkBuffer::new_checked(datagram.as_ref()) {
            // Messages begin at multiples of four bytes (NLMSG_ALIGN).
            let length = (buffer.length() as usize).next_multiple_of(4);
            let bytes = datagram.split_to(length.min(datagram.len()));
            match decode(&bytes) {
                Ok(message) => return Ok(Some(message)),
                Err(error) => debug!("a message that cannot be read: {error}"),
            }
        }
        datagram.clear();
        Ok(None)
    }

    fn encode<T>(message: NetlinkMessage<T>, buffer: &mut BytesMut) -> io::Result<()>
    where
        T: NetlinkSerializable + Debug,
    {
        NetlinkCodec::encode(message, buffer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rtnetlink::packet_route::{
        RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    };

    use super::*;

    const IFALIAS: u16 = 20;
    const LINKINFO: u16 = 18;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let head = [[0; 2], kind.to_ne_bytes()].concat();
        let mut attribute = with_attribute_length(&head, payload);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        attribute
    }

    /// A link `ens6` whose other attributes are these.
    fn link(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = 4;
        message
            .attributes
            .push(LinkAttribute::IfName("ens6".to_owned()));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let (fixed, name) = split(&bytes).expect("a message");
        with_length(&[fixed, &attributes.concat(), name].concat())
    }

    fn read(bytes: &[u8]) -> (u32, Vec<LinkAttribute>) {
        let message = decode::<RouteNetlinkMessage>(bytes).expect("a message");
        let length = message.header.length;
        match message.payload {
            rtnetlink::packet_core::NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(
                link,
            )) => (length, link.attributes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_is_read_without_the_attribute_that_cannot_be() {
        let name = LinkAttribute::IfName("ens6".to_owned());
        let bridge = || attribute(1, b"bridge\0");
        let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]);
        for (what, attributes, expected) in [
            (
                "an alias in Latin-1",
                vec![attribute(IFALIAS, b"B\xfcro\0")],
                vec![],
            ),
            ("one with no end", vec![attribute(IFALIAS, b"\xff")], vec![]),
            (
                "data of a kind that are too short, but not the kind",
                vec![attribute(
                    LINKINFO,
                    &[bridge(), attribute(2, &attribute(1, b"x"))].concat(),
                )],
                vec![kind],
            ),
        ] {
            let bytes = link(&attributes);
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).expect_err(what);
            let (length, found) = read(&bytes);
            assert_eq!(length as usize, bytes.len(), "{what}");
            let expected = [expected, vec![name.clone()]].concat();
            // The data are not compared.
            let found: Vec<_> = found
                .into_iter()
                .map(|attribute| match attribute {
                    LinkAttribute::LinkInfo(info) => LinkAttribute::LinkInfo(
                        info.into_iter()
                            .filter(|info| matches!(info, LinkInfo::Kind(_)))
                            .collect(),
                    ),
                    other => other,
                })
                .collect();
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn what_comes_behind_such_a_message_in_a_datagram_is_read_too() {
        let odd = link(&[attribute(IFALIAS, b"\xfc")]);
        let mut datagram = BytesMut::from(&[odd, link(&[])].concat()[..]);
        for _ in 0..2 {
            let message = Codec::decode::<RouteNetlinkMessage>(&mut datagram).expect("no error");
            assert!(message.is_some());
        }
        let end = Codec::decode::<RouteNetlinkMessage>(&mut datagram).expect("no error");
        assert!(end.is_none() && datagram.is_empty());
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_message_it_is_read_or_refused(
            kind in 16_u16..112, rest in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut bytes = vec![0; HEADER];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes.extend(rest);
            let bytes = with_length(&bytes);
            let _read = decode::<RouteNetlinkMessage>(&bytes);
            let mut datagram = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Codec::decode::<RouteNetlinkMessage>(&mut datagram) {}
            prop_assert!(datagram.is_empty());
        }
    }
}
