//! Strict reverse path filtering on a NIC.

use crate::netlink::{model::Sysctl, sysctl};

/// Whether the link drops what it would not send back by itself (`rp_filter`, RFC 3704). The larger of its own
/// setting and that of `all` holds (Documentation/networking/ip-sysctl.rst).
#[must_use]
pub fn is_strict(link: &str) -> bool {
    const STRICT: u32 = 1;
    let value = |link: &str| {
        let setting = Sysctl {
            path: format!("net/ipv4/conf/{link}/rp_filter"),
            value: String::new(),
        };
        let text = sysctl::read(&setting).ok().flatten();
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    value("all").max(value(link)) == STRICT
}
