//! Digests of destinations, and of flows.

use crate::{Address, FlowKey};

/// A multiplier: odd, and with bits everywhere, from the golden ratio in 64 bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns a digest of a destination, never zero. Two collide with a probability of 1 in 65,535. `ports`: the source's
/// and the destination's.
#[inline(always)]
#[must_use]
pub const fn digest(destination: &Address, ports: [u8; 4]) -> u16 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *destination;
    let network = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let host = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
    let mixed = (network ^ host.rotate_left(32)).wrapping_mul(SPREAD);
    let mixed = (mixed ^ (mixed >> 29) ^ u32::from_ne_bytes(ports) as u64).wrapping_mul(SPREAD);
    let folded = (mixed >> 48) as u16;
    if folded == 0 { 1 } else { folded }
}

/// Returns a digest of a flow, of which all bits may be used.
#[inline(always)]
#[must_use]
pub fn hash(key: &FlowKey) -> u64 {
    const WORDS: usize = size_of::<FlowKey>() / size_of::<u64>();
    // SAFETY: a key is that many words, aligned like one, without padding (asserted in the layout), and any bytes are a
    // word.
    let words = unsafe { &*(&raw const *key).cast::<[u64; WORDS]>() };
    let mut hash = 0_u64;
    let mut i = 0;
    while i < WORDS {
        hash = (hash ^ words[i]).wrapping_mul(SPREAD);
        hash ^= hash >> 32;
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    #[test]
    fn destinations_that_a_proxy_would_take_for_each_other_have_different_digests() {
        let balancer = digest(&mapped([192, 0, 2, 50]), [0x9c, 0x40, 0, 80]);
        let mut same = 0;
        for third in 0..=255 {
            for last in 0..=255 {
                let backend = mapped([10, 244, third, last]);
                same += u32::from(digest(&backend, [0x9c, 0x40, 0x1f, 0x90]) == balancer);
            }
        }
        // Of 65,536 backends about one collides by chance.
        assert!(same < 10, "{same}");
    }

    #[test]
    fn another_port_is_another_digest() {
        let to = mapped([192, 0, 2, 50]);
        let mut seen = std::collections::HashSet::new();
        for port in 0..=u16::MAX {
            let [high, low] = port.to_be_bytes();
            seen.insert(digest(&to, [high, low, 0, 80]));
        }
        // 65,536 balls in as many bins occupy about 41,400 of them.
        assert!(seen.len() > 40_000, "{}", seen.len());
        assert!(!seen.contains(&0));
    }
}
