//! Marks that foreign policy rules match as well.

use ebbtide_kernel::{datapath::HostNic, netlink::foreign::ForeignRule, node::Values};

use super::{Finding, Severity};

/// Reports marks of Ebbtide's that foreign rules match, although other values were looked for.
pub(super) fn shared(values: Values<'_>, nics: &[HostNic]) -> Vec<Finding> {
    let unmarked: Vec<&str> = nics
        .iter()
        .filter(|nic| nic.mark == 0)
        .map(|nic| nic.name.as_str())
        .collect();
    let blocking_rule = values.blocking_rule().filter(|_| !unmarked.is_empty());
    let of_nics = blocking_rule.map(|rule| {
        let what = format!(
            "{} has no mark of its own, because foreign rules match all free values of \
             nicMarks: replies to what comes in there may leave by another NIC",
            unmarked.join(", ")
        );
        (what, rule)
    });
    let of_pods = values.conflicting_rule(values.reply).map(|rule| {
        let what = format!(
            "what pods send by their node has the mark {:#x}, and others route by it",
            values.reply
        );
        (what, rule)
    });
    let redirected = values.conflicting_rule(values.field).map(|rule| {
        let what = format!(
            "answers of Services to pods have the mark {:#x}, and others route by it",
            values.field
        );
        (what, rule)
    });
    let all = [of_nics, of_pods, redirected].into_iter().flatten();
    all.map(|(what, rule)| Finding {
        severity: Severity::Serious,
        what: format!("{what} (the rule `{rule}`, {})", rule.family),
        hint: hint(values, rule),
    })
    .collect()
}

fn hint(values: Values<'_>, rule: &ForeignRule) -> String {
    let (mark, mask) = rule.mark.unwrap_or_default();
    format!(
        "give nicMarks bits in the agent's configuration that {mark:#x} (of {mask:#x}) does not have, and that nobody else \
         uses, or the rule a mark without the bits {:#x}",
        values.field
    )
}

#[cfg(test)]
mod tests {
    use ebbtide_types::Family;

    use super::*;

    #[test]
    fn a_mark_that_is_others_too_is_named_with_their_rule() {
        const WORD: u32 = u32::MAX;
        let nic = |name: &str, mark| HostNic {
            name: name.to_owned(),
            mark,
            ..HostNic::default()
        };
        for (name, rule, mark, expected) in [
            ("another value is found", (4, WORD), 2, vec![]),
            ("too few bits, and nobody else", (0x4000, 0x4000), 0, vec![]),
            (
                "the replies' bit",
                (0x40, 0x40),
                0,
                vec!["ens6 has no mark", "what pods send", "answers of Services"],
            ),
            (
                "the replies' bit as a word",
                (0x40, WORD),
                2,
                vec!["what pods send"],
            ),
            ("all bits", (0xff, WORD), 2, vec!["answers of Services"]),
        ] {
            let foreign = [ForeignRule {
                mark: Some(rule),
                table: Some(104),
                ..ForeignRule::new(Family::V4, 32_765)
            }];
            let values = Values {
                field: 0x6e,
                reply: 0x40,
                foreign: &foreign,
            };
            let found = shared(values, &[nic("ens5", 2), nic("ens6", mark)]);
            assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
            for (finding, text) in found.iter().zip(expected) {
                assert!(finding.what.contains(text), "{name}: {}", finding.what);
                assert!(finding.what.contains("lookup 104"), "{}", finding.what);
                assert!(finding.hint.contains("nicMarks"));
            }
        }
    }
}
