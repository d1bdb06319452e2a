//! Strict reverse path filtering on NICs without a mark.

use ebbtide_kernel::datapath::HostNic;

use super::{Finding, Severity};

/// Reports NICs that filter strictly and have no mark of their own. With a mark, the lookup uses the NIC's own table
/// and succeeds.
pub(super) fn strict(nics: &[HostNic], is_strict: impl Fn(&str) -> bool) -> Vec<Finding> {
    let unmarked = nics.iter().filter(|nic| nic.mark == 0);
    unmarked
        .filter(|nic| is_strict(&nic.name))
        .map(|nic| Finding {
            severity: Severity::Serious,
            what: format!(
                "{0} has no mark of its own (nicMarks has too few bits), and its rp_filter is strict: what \
                 comes in there from beyond its network is dropped, unless the default route is {0}'s",
                nic.name
            ),
            hint: format!(
                "give nicMarks more bits in the agent's configuration, or `sysctl -w \
                 net.ipv4.conf.{}.rp_filter=2`",
                nic.name
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_filtering_is_found_where_no_mark_satisfies_it() {
        for (mark, is_strict, found) in [(0, true, true), (0, false, false), (2, true, false)] {
            let nic = HostNic {
                name: "ens6".to_owned(),
                mark,
                ..HostNic::default()
            };
            let findings = strict(&[nic], |_| is_strict);
            assert_eq!(!findings.is_empty(), found, "{mark} {is_strict}");
            assert!(findings.iter().all(|f| f.hint.contains("ens6")));
        }
    }
}
