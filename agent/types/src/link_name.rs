//! Checks names of interfaces by the kernel's rules.

use crate::printable::is_unprintable;

/// Names that no link can have, since other files beside those of the links have them: settings for all
/// (`sysctl_dev_name_is_allowed`, include/linux/inetdevice.h), and bonding's.
const RESERVED: [&str; 3] = ["all", "default", "bonding_masters"];

/// Describes why a text cannot be an interface's name, as a predicate; `None` if it can (`dev_valid_name` and
/// `dev_alloc_name`, which replaces `%d` by a number, net/core/dev.c; `IFNAMSIZ` is 16 with the final zero). Each
/// namespace has an `lo` already.
///
/// # Examples
///
/// ```
/// use ebbtide_types::link_name::name_fault;
///
/// assert_eq!(name_fault("eth0"), None);
/// let why = name_fault("an-interface-too-long").unwrap_or_default();
/// assert!(why.starts_with("has 21 characters"), "{why}");
/// ```
#[must_use]
pub fn name_fault(text: &str) -> Option<String> {
    const LONGEST: usize = 15;
    // The kernel's `isspace` is of bytes, and 0xa0 is one (lib/ctype.c).
    let bad = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || is_unprintable(c);
    let has_blank_byte = text.bytes().any(|byte| byte == 0xa0);
    match text.len() {
        0 => Some("is empty".to_owned()),
        length if length > LONGEST => Some(format!(
            "has {length} characters, and an interface's name {LONGEST} at most: use a shorter one"
        )),
        _ if matches!(text, "." | "..") || text.contains(bad) || has_blank_byte => Some(
            "is not an interface's name: it has no '/', ':', blanks or control characters, and is not '.' or '..'"
                .to_owned(),
        ),
        _ if text.contains('%') => Some(
            "is not an interface's name: the kernel takes '%' for a place to put a number in"
                .to_owned(),
        ),
        _ if RESERVED.contains(&text) => Some(
            "is not an interface's name: the kernel has a file of this name beside those of the interfaces"
                .to_owned(),
        ),
        _ if text == "lo" => Some("is the loopback interface, which is there already".to_owned()),
        _ => None,
    }
}
