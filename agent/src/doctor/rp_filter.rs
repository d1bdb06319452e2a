//! Reverse path filtering where no mark satisfies it.

use super::{Finding, Severity};
use crate::{
    datapath::HostNic,
    netlink::{model::Sysctl, sysctl},
};

/// The setting of `link` (or `all`), and the larger of the two holds (Documentation/networking/ip-sysctl.rst).
fn setting(link: &str) -> Sysctl {
    Sysctl {
        path: format!("net/ipv4/conf/{link}/rp_filter"),
        value: "2".to_owned(),
    }
}

fn value(link: &str) -> u32 {
    let text = sysctl::read(&setting(link)).ok().flatten();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// NICs that have no mark of their own and filter strictly. Those with a mark may: the mark leads the look-up
/// to the NIC's own table.
pub(super) fn strict(nics: &[HostNic]) -> Vec<Finding> {
    judge(nics, value)
}

fn judge(nics: &[HostNic], value: impl Fn(&str) -> u32) -> Vec<Finding> {
    const STRICT: u32 = 1;
    let is_strict = |nic: &&HostNic| value("all").max(value(&nic.name)) == STRICT;
    let unmarked = nics.iter().filter(|nic| nic.mark == 0).filter(is_strict);
    unmarked
        .map(|nic| Finding {
            severity: Severity::Serious,
            what: format!(
                "{0} has no mark of its own (nicMarks has too few bits), and its rp_filter is strict: what \
                 comes in there from beyond its network is dropped, unless the default route is {0}'s",
                nic.name
            ),
            way_out: format!(
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
        for (mark, all, own, found) in [
            (0, 1, 0, true),
            (0, 0, 1, true),
            (0, 1, 2, false),
            (0, 2, 1, false),
            (0, 0, 0, false),
            (2, 1, 1, false),
        ] {
            let nic = HostNic {
                name: "ens6".to_owned(),
                ifindex: 4,
                mark,
                addresses: Vec::new(),
            };
            let value = |link: &str| if link == "all" { all } else { own };
            let findings = judge(&[nic], value);
            assert_eq!(!findings.is_empty(), found, "{mark} {all} {own}");
            assert!(findings.iter().all(|f| f.way_out.contains("ens6")));
        }
    }
}
