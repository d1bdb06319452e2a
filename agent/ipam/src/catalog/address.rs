//! Sets of addresses of one family, as sorted ranges.
//!
//! Ranges are kept as integers, so that an IPv6 /64 costs as much as one address.

use std::{fmt, net::IpAddr, net::Ipv4Addr, net::Ipv6Addr};

use ipnet::IpNet;

use ebbtide_types::Family;

/// Converts the number into an address.
fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // Numbers of this family come from 32-bit addresses only, so nothing is cut off.
        Family::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// An error in the text of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressSetError {
    /// Not `address` and not `first-last`.
    #[error("is neither an address nor a range \"first-last\"")]
    Malformed,
    /// One end is IPv4, the other IPv6, or the family is not the expected one.
    #[error("is not {0}")]
    Family(Family),
    /// The range ends before it begins.
    #[error("ends before it begins")]
    Backwards,
}

/// A set of addresses of one family: sorted, disjoint, not adjacent, inclusive ranges.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::catalog::AddressSet;
/// use ebbtide_types::Family;
///
/// let pool = AddressSet::parse("10.0.0.5-10.0.0.9", Family::V4)?;
/// let used = AddressSet::single("10.0.0.7".parse()?);
/// let free = pool.without(&used);
/// assert_eq!(free.len(), 4);
/// assert_eq!(free.to_string(), "10.0.0.5-10.0.0.6, 10.0.0.8-10.0.0.9");
/// assert_eq!(free.get(2), Some("10.0.0.8".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct AddressSet {
    family: Family,
    ranges: Vec<Range>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    /// The number of addresses of the set before `first`.
    before: u128,
}

impl AddressSet {
    /// Returns the empty set.
    #[must_use]
    pub const fn empty(family: Family) -> Self {
        Self {
            family,
            ranges: Vec::new(),
        }
    }

    /// Parses `"address"` or `"first-last"` (both ends included; spaces around the dash are allowed).
    ///
    /// # Errors
    /// [`AddressSetError`] for anything else, another family than `family`, or a range that runs backwards.
    pub fn parse(text: &str, family: Family) -> Result<Self, AddressSetError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let read = |part: &str| -> Result<u128, AddressSetError> {
            let address: IpAddr = part
                .trim()
                .parse()
                .map_err(|_| AddressSetError::Malformed)?;
            if Family::of(address) != family {
                return Err(AddressSetError::Family(family));
            }
            Ok(number(address))
        };
        let (first, last) = (read(first)?, read(last)?);
        if last < first {
            return Err(AddressSetError::Backwards);
        }
        Ok(Self::from_numbers(family, vec![(first, last)]))
    }

    /// Parses what [`AddressSet`] writes: addresses and ranges, with commas between them; nothing is the empty set.
    ///
    /// # Errors
    /// As [`AddressSet::parse`], for the first part that is wrong.
    pub fn parse_list(text: &str, family: Family) -> Result<Self, AddressSetError> {
        let parts = text.split(',').filter(|part| !part.trim().is_empty());
        let sets: Vec<Self> = parts
            .map(|part| Self::parse(part, family))
            .collect::<Result<_, _>>()?;
        Ok(Self::union_of(family, &sets))
    }

    /// Returns the addresses that both sets have, which must be of the same family.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// Returns all addresses of a prefix, network and broadcast addresses included.
    #[must_use]
    pub fn of_net(net: &IpNet) -> Self {
        Self::from_numbers(
            Family::of_net(net),
            vec![(number(net.network()), number(net.broadcast()))],
        )
    }

    /// Returns a set of one address.
    #[must_use]
    pub fn single(address: IpAddr) -> Self {
        Self::from_numbers(
            Family::of(address),
            vec![(number(address), number(address))],
        )
    }

    fn from_numbers(family: Family, mut numbers: Vec<(u128, u128)>) -> Self {
        numbers.sort_unstable();
        let mut ranges: Vec<Range> = Vec::with_capacity(numbers.len());
        for (first, last) in numbers {
            match ranges.last_mut() {
                Some(previous) if first <= previous.last.saturating_add(1) => {
                    previous.last = previous.last.max(last)
                }
                _ => ranges.push(Range {
                    first,
                    last,
                    before: 0,
                }),
            }
        }
        let mut before = 0u128;
        for range in &mut ranges {
            range.before = before;
            before = before.saturating_add((range.last - range.first).saturating_add(1));
        }
        Self { family, ranges }
    }

    fn numbers(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.ranges.iter().map(|range| (range.first, range.last))
    }

    /// Returns the family of all its addresses.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Returns the union of sets of one family. Merges a list of ranges at once: one union for each
    /// takes minutes where a pool has a hundred thousand.
    #[must_use]
    pub fn union_of<'a>(family: Family, sets: impl IntoIterator<Item = &'a Self>) -> Self {
        let sets = sets
            .into_iter()
            .inspect(|set| debug_assert_eq!(set.family, family));
        Self::from_numbers(family, sets.flat_map(Self::numbers).collect())
    }

    /// Returns the union of this set and the other, which must be of the same family.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        debug_assert_eq!(self.family, other.family);
        Self::from_numbers(self.family, self.numbers().chain(other.numbers()).collect())
    }

    /// Returns this set without the other, which must be of the same family.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        debug_assert_eq!(self.family, other.family);
        let mut kept = Vec::new();
        // Both are ascending: a hole behind the current range is never visited again.
        let mut holes = other.numbers().peekable();
        for (mut first, last) in self.numbers() {
            while holes.next_if(|hole| hole.1 < first).is_some() {}
            let mut rest = true;
            while let Some(&(hole_first, hole_last)) = holes.peek().filter(|hole| hole.0 <= last) {
                if hole_first > first {
                    kept.push((first, hole_first - 1));
                }
                if hole_last >= last {
                    rest = false;
                    break;
                }
                first = hole_last + 1;
                holes.next();
            }
            if rest {
                kept.push((first, last));
            }
        }
        Self::from_numbers(self.family, kept)
    }

    /// Returns the first and last address of some range that both sets contain, or none.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<(IpAddr, IpAddr)> {
        if self.family != other.family {
            return None;
        }
        let (mut a, mut b) = (
            self.ranges.iter().peekable(),
            other.ranges.iter().peekable(),
        );
        while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
            let (first, last) = (left.first.max(right.first), left.last.min(right.last));
            if first <= last {
                return Some((address(self.family, first), address(self.family, last)));
            }
            if left.last < right.last {
                a.next()
            } else {
                b.next()
            };
        }
        None
    }

    /// Returns the set of those addresses that are of the family.
    #[must_use]
    pub fn of(family: Family, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let addresses = addresses.into_iter();
        let of_family = addresses.filter(|address| Family::of(*address) == family);
        let numbers = of_family.map(|address| (number(address), number(address)));
        Self::from_numbers(family, numbers.collect())
    }

    /// Returns the `count` lowest addresses, or all if there are fewer.
    #[must_use]
    pub fn first(&self, count: u128) -> Self {
        let mut left = count;
        let mut taken = Vec::new();
        for (first, last) in self.numbers() {
            if left == 0 {
                break;
            }
            let end = last.min(first.saturating_add(left - 1));
            left -= end - first + 1;
            taken.push((first, end));
        }
        Self::from_numbers(self.family, taken)
    }

    /// Whether every address of this set is in `net`.
    #[must_use]
    pub fn is_inside(&self, net: &IpNet) -> bool {
        self.family == Family::of_net(net) && self.without(&Self::of_net(net)).is_empty()
    }

    /// Returns the number of addresses; saturates at `u128::MAX` for `::/0`.
    #[must_use]
    pub fn len(&self) -> u128 {
        self.ranges.last().map_or(0, |range| {
            range
                .before
                .saturating_add((range.last - range.first).saturating_add(1))
        })
    }

    /// Whether the set has no address.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the address at `index` in ascending order, from 0.
    #[must_use]
    pub fn get(&self, index: u128) -> Option<IpAddr> {
        let after = self.ranges.partition_point(|range| range.before <= index);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let number = range.first.checked_add(index - range.before)?;
        (number <= range.last).then(|| address(self.family, number))
    }

    /// Returns the index of `address` in ascending order, if it is in the set.
    #[must_use]
    pub fn index_of(&self, address: IpAddr) -> Option<u128> {
        if Family::of(address) != self.family {
            return None;
        }
        let number = number(address);
        let after = self.ranges.partition_point(|range| range.first <= number);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (number <= range.last).then(|| range.before + (number - range.first))
    }

    /// Whether `address` is in the set.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.index_of(address).is_some()
    }

    /// Iterates over the ranges, ascending, both ends included.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        self.numbers()
            .map(|(first, last)| (address(self.family, first), address(self.family, last)))
    }
}

impl fmt::Display for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.ranges().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            if first == last {
                write!(f, "{separator}{first}")
            } else {
                write!(f, "{separator}{first}-{last}")
            }?;
        }
        Ok(())
    }
}

impl fmt::Debug for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// Parses a prefix as strictly as an address: `10.0.01.0/24` is refused, since some read it as octal.
#[must_use]
pub fn prefix(text: &str) -> Option<IpNet> {
    let (front, length) = text.split_once('/')?;
    let plain = length == "0" || !length.starts_with(['0', '+']);
    let length = length.parse().ok().filter(|_| plain)?;
    IpNet::new(front.parse().ok()?, length).ok()
}

/// Parses an address with or without a prefix length, which is dropped: the pool has it. `None`: neither.
#[must_use]
pub fn host_address(text: &str) -> Option<IpAddr> {
    let net = text.parse().map(|net: IpNet| net.addr());
    net.ok().or_else(|| text.parse().ok())
}

/// Blocks of addresses that no host has (RFC 6890, RFC 4291), with their purpose.
const NO_HOSTS: [(&str, &str); 8] = [
    ("0.0.0.0/8", "this network, without a host"),
    ("127.0.0.0/8", "loopback"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, and its last address broadcast"),
    ("::/128", "the unspecified address"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "IPv4 in IPv6's form"),
    ("ff00::/8", "multicast"),
];

/// Link-local IPv6 addresses: hosts have them, but each is valid on one link only, and they are not
/// routed (RFC 4291, 2.5.6). IPv4's (169.254.0.0/16) may be in pools: some providers route them.
const OF_A_LINK: (&str, &str) = ("fe80::/10", "link-local");

fn blocks(family: Family) -> impl Iterator<Item = (IpNet, &'static str)> {
    let all = NO_HOSTS
        .into_iter()
        .filter_map(|(net, what)| Some((net.parse().ok()?, what)));
    all.filter(move |(net, _)| Family::of_net(net) == family)
}

/// Whether a host can have the address, judged by the address alone.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    !blocks(Family::of(address)).any(|(net, _)| net.contains(&address))
}

/// Returns a block of addresses unusable for pods that overlaps the set, with its purpose.
pub(super) fn unusable(addresses: &AddressSet) -> Option<(IpNet, &'static str)> {
    let (net, what) = OF_A_LINK;
    let of_a_link = net.parse().ok().map(|net| (net, what));
    let mut all = blocks(addresses.family()).chain(of_a_link);
    all.find(|(net, _)| AddressSet::of_net(net).intersection(addresses).is_some())
}

/// Returns the addresses of a subnet that no host can have.
pub(super) fn never_assigned(subnet: &IpNet) -> AddressSet {
    let network = AddressSet::single(subnet.network());
    match subnet {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            network.union(&AddressSet::single(subnet.broadcast()))
        }
        IpNet::V6(v6) if v6.prefix_len() < 127 => network,
        _ => AddressSet::empty(Family::of_net(subnet)),
    }
}
