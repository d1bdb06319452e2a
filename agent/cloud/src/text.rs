//! Texts of metadata services: lists, addresses, prefixes, MACs.

use std::net::IpAddr;

use ebbtide_types::Mac;
use ipnet::IpNet;

use crate::reading::{Unreadable, shown};

/// Returns the items of a list: one a line as AWS and Tencent Cloud write them, or a JSON array, with or without its
/// quotes, as Alibaba Cloud does.
pub(crate) fn items(text: &str) -> impl Iterator<Item = &str> {
    let is_between = |c: char| c.is_ascii_whitespace() || "[]\"',".contains(c);
    text.split(is_between).filter(|item| !item.is_empty())
}

pub(crate) fn address(key: &'static str, text: &str) -> Result<IpAddr, Unreadable> {
    text.parse().map_err(|_| Unreadable::NoAddress {
        key,
        got: shown(text),
    })
}

pub(crate) fn addresses(key: &'static str, text: &str) -> Result<Vec<IpAddr>, Unreadable> {
    items(text).map(|item| address(key, item)).collect()
}

/// A prefix always has its length: an address without one means something else.
pub(crate) fn prefixes(key: &'static str, text: &str) -> Result<Vec<IpNet>, Unreadable> {
    items(text).map(|item| prefix(key, item)).collect()
}

pub(crate) fn prefix(key: &'static str, text: &str) -> Result<IpNet, Unreadable> {
    text.parse().map_err(|_| Unreadable::NoPrefix {
        key,
        got: shown(text),
    })
}

/// Returns the prefix around an address by its mask, `255.255.240.0`.
pub(crate) fn by_mask(key: &'static str, address: IpAddr, mask: &str) -> Result<IpNet, Unreadable> {
    let mask = mask.trim();
    let length = mask
        .parse()
        .ok()
        .filter(|mask: &IpAddr| mask.is_ipv4() == address.is_ipv4());
    let length = length.and_then(|mask| ipnet::ip_mask_to_prefix(mask).ok());
    let net = length.and_then(|length| IpNet::new(address, length).ok());
    net.map(|net| net.trunc())
        .ok_or_else(|| Unreadable::NoPrefix {
            key,
            got: shown(mask),
        })
}

/// Reads a MAC in any of the clouds' forms: `02:0a:...`, `52:54:00:AA...`, `000D3A...`.
pub(crate) fn mac(text: &str) -> Result<Mac, Unreadable> {
    let wrong = || Unreadable::NoMac(shown(text));
    let text = text.trim();
    let width = match text.len() {
        12 => 2,
        17 => 3,
        _ => return Err(wrong()),
    };
    let mut mac = [0; 6];
    let bytes = text.as_bytes().chunks(width);
    for (byte, chunk) in mac.iter_mut().zip(bytes) {
        let digit = |at: usize| char::from(*chunk.get(at)?).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(wrong());
        };
        if chunk.get(2).is_some_and(|between| !b":-".contains(between)) {
            return Err(wrong());
        }
        *byte = u8::try_from(high << 4 | low).map_err(|_| wrong())?;
    }
    // No NIC has these: zeros are an interface without an address, and groups are no senders.
    match mac == [0; 6] || mac[0] & 1 == 1 {
        true => Err(wrong()),
        false => Ok(Mac(mac)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_all_the_forms_that_clouds_write() {
        for text in [
            "10.0.0.1\n10.0.0.2",
            "10.0.0.1\r\n10.0.0.2\r\n",
            "[\"10.0.0.1\",\"10.0.0.2\"]",
            "[10.0.0.1, 10.0.0.2]",
            "10.0.0.1,10.0.0.2",
        ] {
            assert_eq!(items(text).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
        }
        for empty in ["", "\n", "[]", "[\"\"]"] {
            assert_eq!(items(empty).count(), 0, "{empty:?}");
        }
    }

    #[test]
    fn macs_are_the_same_in_all_forms() {
        let same = Mac([0x02, 0x0d, 0x3a, 0x1b, 0, 0xff]);
        for text in [
            "02:0d:3a:1b:00:ff",
            "02:0D:3A:1B:00:FF",
            "02-0d-3a-1b-00-ff",
            "020D3A1B00FF",
            " 020d3a1b00ff\n",
        ] {
            assert_eq!(mac(text), Ok(same), "{text:?}");
        }
        for text in [
            "",
            "02:0d:3a:1b:00",
            "02:0d:3a:1b:00:fg",
            "02:0d:3a:1b:00:+f",
            "02:0d:3a:1b:00:ff:00",
            "020d3a1b00f",
            "02.0d.3a.1b.00.ff",
            "00:00:00:00:00:00",
            "01:0d:3a:1b:00:ff",
            "ff:ff:ff:ff:ff:ff",
            "öööööö",
            "<!DOCTYPE html>",
        ] {
            assert!(mac(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn masks_give_prefixes_if_they_are_masks() {
        let address: IpAddr = "10.128.0.5".parse().unwrap();
        let net = by_mask("subnetmask", address, "255.255.240.0\n");
        assert_eq!(net.unwrap().to_string(), "10.128.0.0/20");
        for mask in ["", "255.255.0.255", "20", "ffff::", "255.255.255"] {
            assert!(by_mask("subnetmask", address, mask).is_err(), "{mask:?}");
        }
    }

    #[test]
    fn a_page_instead_of_a_list_is_shown_short_and_printable() {
        let page = "<html>\u{1b}[2J".to_owned() + &"x".repeat(1000);
        let error = addresses("local-ipv4s", &page).unwrap_err().to_string();
        assert!(error.contains("local-ipv4s has"), "{error}");
        assert!(error.len() < 150 && !error.contains('\u{1b}'), "{error}");
        assert!(
            prefixes("ipv4-prefix", "10.0.0.0").is_err(),
            "without its length"
        );
    }
}
