//! Detects strict reverse path filtering on a NIC, by the kernel or by a firewall.

use std::fs;

use ebbtide_types::Family;

use crate::netlink::{model::Sysctl, sysctl};

/// Who drops packets that come in by a link by which the node would not send back (RFC 3704).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StrictRpFilter {
    /// The kernel, for IPv4, after the destination has been translated (`rp_filter`).
    pub kernel: bool,
    /// Firewall rules, before that.
    pub firewall: Firewall,
}

/// The families in which a firewall may filter reverse paths: `fib saddr . mark . iif` of nft (firewalld's
/// `IPv6_rpfilter`, on by default), `-m rpfilter` of iptables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
    /// For IPv6 perhaps by rules that ignore the mark: iptables' without `--validmark`.
    pub without_marks: bool,
}

/// Returns a lookup of who filters on which link; the firewall's part is a snapshot.
pub fn strict_rp_filters() -> impl Fn(&str) -> StrictRpFilter {
    let firewall = Firewall::detect();
    move |link| StrictRpFilter {
        kernel: is_strict(link),
        firewall,
    }
}

impl StrictRpFilter {
    /// Whether anything filters in this family.
    #[must_use]
    pub fn is_in(self, family: Family) -> bool {
        self.firewall.is_in(family) || self.kernel && family == Family::V4
    }

    /// Removes the firewall in the families in which the main table's default route is over the link: there all packets
    /// pass its filter, as without Ebbtide.
    #[must_use]
    pub fn but_for(self, defaults: &[Family]) -> Self {
        let Firewall {
            v4,
            v6,
            without_marks,
        } = self.firewall;
        let is_other = |family| !defaults.contains(&family);
        Self {
            firewall: Firewall {
                v4: v4 && is_other(Family::V4),
                v6: v6 && is_other(Family::V6),
                without_marks: without_marks && is_other(Family::V6),
            },
            ..self
        }
    }
}

impl Firewall {
    /// Whether the firewall may filter in this family.
    #[must_use]
    pub fn is_in(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Detects what may be filtered without reading all rules: by the modules and matches that the kernel has loaded.
    /// If nothing can be determined, it assumes filtering.
    fn detect() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let modules = read("/proc/modules");
        let v4 = read("/proc/net/ip_tables_matches");
        let v6 = read("/proc/net/ip6_tables_matches");
        Self {
            v4: may(&modules, &v4, &["ipt_rpfilter", "nft_fib_ipv4"]),
            v6: may(&modules, &v6, &["ip6t_rpfilter", "nft_fib_ipv6"]),
            without_marks: may(&modules, &v6, &["ip6t_rpfilter"]),
        }
    }
}

/// Whether one of the modules `those` or iptables' match may be in use. `modules` is `/proc/modules`, empty in a kernel
/// without modules. `matches` are those available to iptables so far: a built-in one is always listed.
fn may(modules: &str, matches: &str, those: &[&str]) -> bool {
    let loaded = |name: &str| {
        modules
            .lines()
            .any(|line| line.split(' ').next() == Some(name))
    };
    modules.is_empty()
        || matches.lines().any(|name| name == "rpfilter")
        || those.iter().copied().any(loaded)
}

/// Whether the link drops packets whose reverse path is another link (`rp_filter`, RFC 3704). The larger of its own
/// setting and that of `all` applies (Documentation/networking/ip-sysctl.rst).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firewall_may_filter_where_the_kernel_has_what_it_takes() {
        const OTHERS: &str = "ipvlan 49152 0 - Live 0x0\nnft_fib 12288 0 - Live 0x0\n";
        for (name, modules, matches, may_filter) in [
            ("nothing loaded", OTHERS.to_owned(), "tcp\nudp\n", false),
            (
                "nft",
                format!("{OTHERS}nft_fib_ipv6 12288 1 - Live 0x0\n"),
                "",
                true,
            ),
            (
                "nft, the other family",
                format!("{OTHERS}nft_fib_ipv4 12288 1 - Live 0x0\n"),
                "",
                false,
            ),
            (
                "iptables",
                format!("{OTHERS}ip6t_rpfilter 12288 1 - Live 0x0\n"),
                "rpfilter\n",
                true,
            ),
            ("built in", OTHERS.to_owned(), "tcp\nrpfilter\n", true),
            ("a kernel without modules", String::new(), "", true),
        ] {
            let found = may(&modules, matches, &["ip6t_rpfilter", "nft_fib_ipv6"]);
            assert_eq!(found, may_filter, "{name}");
        }
    }
}
