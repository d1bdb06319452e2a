//! Picks the NICs' values within `nicMarks`: values that no foreign rule routes by.
//!
//! **What is guaranteed.** Let `p` be what Ebbtide sets within the field (a NIC's value, with or without REPLY) and
//! `m/k` the mark of a foreign rule. No foreign rule matches *because* of `p`: if `k` covers any bit of `p`, then `p`
//! differs from `m` in a bit of the field that `k` covers, whatever the packet's other bits are. And no packet whose
//! mark is exactly `m` has `p` within the field, so none of Ebbtide's rules matches it. Not covered are marks without a
//! rule, and bits outside of `k` that differ from `m`.

use crate::netlink::foreign::ForeignRule;

/// The mark's field that belongs to Ebbtide, and the foreign rules that may match bits of it.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::{netlink::foreign::ForeignRule, node::Values};
/// use ebbtide_types::Family;
///
/// // Somebody's rule matches packets by the bit 0x2.
/// let rule = ForeignRule {
///     mark: Some((0x2, 0x2)),
///     ..ForeignRule::new(Family::V4, 100)
/// };
/// let values = Values { field: 0x6e, reply: 0x40, foreign: &[rule] };
/// // The NICs with the indices 2 and 3 get values without that bit.
/// assert_eq!(values.assign(&[2, 3], &[]), [0x4, 0x8]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// All bits of the field.
    pub field: u32,
    /// The bit of the field for replies.
    pub reply: u32,
    /// Foreign rules.
    pub foreign: &'a [ForeignRule],
}

impl<'a> Values<'a> {
    /// Returns the first foreign rule whose packets could be confused with those that have `bits` in the field.
    #[must_use]
    pub fn conflicting_rule(&self, bits: u32) -> Option<&'a ForeignRule> {
        self.foreign.iter().find(|rule| {
            rule.mark
                .is_some_and(|(mark, mask)| conflict(bits, self.field, mark, mask))
        })
    }

    /// Returns the first foreign rule that excludes `value` for a NIC.
    #[must_use]
    pub fn excluding_rule(&self, value: u32) -> Option<&'a ForeignRule> {
        self.conflicting_rule(value)
            .or_else(|| self.conflicting_rule(value | self.reply))
    }

    /// All values for NICs, without regard to foreign rules. All bits together are for redirected packets.
    fn all(&self) -> impl Iterator<Item = u32> {
        let bits = self.field & !self.reply;
        (1..)
            .map_while(move |number| spread(number, bits))
            .filter(move |value| *value != bits)
    }

    /// Returns a value for each of `nics`: its current one, unless a foreign rule excludes it, else the first that is
    /// free; zero if none is left. `known` holds the current values by interface index.
    #[must_use]
    pub fn assign(&self, nics: &[u32], known: &[(u32, u32)]) -> Vec<u32> {
        let bits = self.field & !self.reply;
        let may_stay = |value: u32| {
            value != 0
                && value & !bits == 0
                && value != bits
                && self.excluding_rule(value).is_none()
        };
        let known: Vec<(u32, u32)> = known
            .iter()
            .filter(|(nic, value)| nics.contains(nic) && may_stay(*value))
            .copied()
            .collect();
        let mut taken: Vec<u32> = known.iter().map(|(_, value)| *value).collect();
        nics.iter()
            .map(|nic| {
                if let Some((_, value)) = known.iter().find(|(known, _)| known == nic) {
                    return *value;
                }
                let is_free =
                    |value: &u32| !taken.contains(value) && self.excluding_rule(*value).is_none();
                let free = self.all().find(is_free).unwrap_or(0);
                taken.push(free);
                free
            })
            .collect()
    }

    /// Returns the foreign rule that leaves a NIC without a value; `None` if there are simply too few values.
    #[must_use]
    pub fn blocking_rule(&self) -> Option<&'a ForeignRule> {
        self.all().find_map(|value| self.excluding_rule(value))
    }
}

/// Whether packets with `bits` in the field could match the rule `mark/mask`, or its packets Ebbtide's rules.
const fn conflict(bits: u32, field: u32, mark: u32, mask: u32) -> bool {
    let ours_for_theirs = bits & mask != 0 && (bits ^ mark) & mask & field == 0;
    let theirs_for_ours = mark & field == bits;
    ours_for_theirs || theirs_for_ours
}

/// Spreads the bits of `number` over the bits that are set in `field`; `None` if they do not fit.
fn spread(number: u32, field: u32) -> Option<u32> {
    let (mut rest, mut bits) = (number, 0);
    for bit in (0..32).map(|position| 1 << position) {
        if field & bit != 0 {
            bits |= if rest & 1 == 1 { bit } else { 0 };
            rest >>= 1;
        }
    }
    (rest == 0).then_some(bits)
}

#[cfg(test)]
mod tests {
    use ebbtide_types::Family;

    use super::*;

    const FIELD: u32 = 0x6e;
    const REPLY: u32 = 0x40;

    fn rules(marks: &[(u32, u32)]) -> Vec<ForeignRule> {
        let rule = |mark: &(u32, u32)| ForeignRule {
            mark: Some(*mark),
            ..ForeignRule::new(Family::V4, 32_765)
        };
        marks.iter().map(rule).collect()
    }

    const fn values(foreign: &[ForeignRule]) -> Values<'_> {
        Values {
            field: FIELD,
            reply: REPLY,
            foreign,
        }
    }

    #[test]
    fn a_number_is_spread_over_the_bits_that_are_ours_and_no_others() {
        for (number, field, expected) in [
            (1, 0x2e, Some(0x02)),
            (5, 0x2e, Some(0x0a)),
            (15, 0x2e, Some(0x2e)),
            (16, 0x2e, None),
            (1, 0, None),
        ] {
            assert_eq!(spread(number, field), expected, "{number} in {field:#x}");
        }
    }

    #[test]
    fn a_nic_keeps_its_value_and_two_never_have_the_same() {
        let values = values(&[]);
        assert_eq!(values.assign(&[3, 4], &[]), [0x02, 0x04]);
        assert_eq!(
            values.assign(&[4, 7], &[(3, 0x02), (4, 0x04)]),
            [0x04, 0x02]
        );
        assert_eq!(values.assign(&[3], &[(3, 0x100)]), [0x02], "another field");
        let many: Vec<u32> = (1..=15).collect();
        let given = values.assign(&many, &[]);
        assert_eq!(given[14], 0, "fourteen is all that four bits have");
        assert!(
            given[..14]
                .iter()
                .all(|value| *value != 0 && value & !0x2e == 0)
        );
    }

    #[test]
    fn nics_have_no_values_that_others_route_by() {
        const WORD: u32 = u32::MAX;
        for (name, marks, known, expected) in [
            ("nobody's", vec![], vec![], [0x2, 0x4]),
            ("2", vec![(2, WORD)], vec![], [0x4, 0x6]),
            (
                "3, which is 2 within ours",
                vec![(3, WORD)],
                vec![],
                [0x4, 0x6],
            ),
            ("a reply's, 66", vec![(66, WORD)], vec![], [0x4, 0x6]),
            (
                "85, which is 0x44 within ours",
                vec![(85, WORD)],
                vec![],
                [0x2, 0x6],
            ),
            (
                "many small ones",
                [1, 2, 3, 4, 5, 20, 66, 68, 85]
                    .map(|mark| (mark, WORD))
                    .into(),
                vec![],
                [0x6, 0x8],
            ),
            ("one bit", vec![(2, 2)], vec![], [0x4, 0x8]),
            ("two bits", vec![(0x4, 0xc)], vec![], [0x2, 0x8]),
            (
                "nothing of ours",
                vec![(0x8_0000, 0xff_0000), (0x4000, 0x4000)],
                vec![],
                [0x2, 0x4],
            ),
            ("unmarked packets", vec![(0, 0xff)], vec![], [0x2, 0x4]),
            (
                "a high mark with low bits",
                vec![(0x1_0002, WORD)],
                vec![],
                [0x4, 0x6],
            ),
            (
                "what a NIC has already",
                vec![(4, WORD)],
                vec![(3, 4), (4, 8)],
                [0x2, 0x8],
            ),
            (
                "another one",
                vec![(2, WORD)],
                vec![(3, 8), (4, 4)],
                [0x8, 0x4],
            ),
            ("REPLY's own bit", vec![(0x40, 0x40)], vec![(3, 2)], [0, 0]),
        ] {
            let foreign = rules(&marks);
            assert_eq!(values(&foreign).assign(&[3, 4], &known), expected, "{name}");
        }
    }

    #[test]
    fn where_all_are_others_the_rule_in_the_way_is_named() {
        let foreign = rules(&[(0x40, 0x40)]);
        let found = values(&foreign).blocking_rule().map(ToString::to_string);
        assert_eq!(found.as_deref(), Some("32765: from all fwmark 0x40/0x40"));
        assert_eq!(values(&[]).blocking_rule(), None);
    }

    /// Whatever the field and the foreign rules: assigned values match none of them, nor their marks Ebbtide's.
    #[test]
    fn whatever_others_route_by_no_packet_is_taken_for_anothers() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 16) as u32
        };
        let mut given = 0;
        for round in 0..3000 {
            let field = match round % 3 {
                0 => FIELD,
                1 => random() & 0xff | 0x7,
                _ => random() & random() | 0x7_0000,
            };
            let reply = ebbtide_layout::reply_bit(field);
            let marks: Vec<(u32, u32)> = (0..random() % 8)
                .map(|_| match random() % 3 {
                    0 => (random() & 0xff, u32::MAX),
                    1 => (random() & 0xff, random() & 0xff),
                    _ => (random(), random()),
                })
                .collect();
            let foreign = rules(&marks);
            let values = Values {
                field,
                reply,
                foreign: &foreign,
            };
            for value in values.assign(&[1, 2, 3], &[(2, random() & field)]) {
                if value == 0 {
                    continue;
                }
                given += 1;
                for bits in [value, value | reply] {
                    assert_eq!(bits & !field, 0);
                    for (mark, mask) in &marks {
                        assert_ne!(mark & field, bits, "{mark:#x} is ours in {field:#x}");
                        // As the kernel does (`fib_rule_match`), with anything in the bits outside of the field.
                        let others = random() & !field;
                        let matches = |packet: u32| (packet ^ mark) & mask == 0;
                        assert!(
                            !matches(others | bits) || matches(others),
                            "{bits:#x} in {field:#x} is {mark:#x}/{mask:#x}"
                        );
                    }
                }
            }
        }
        assert!(given > 1000, "{given}");
    }
}
