//! The rules that satisfy reverse path filters, of the kernel and of firewalls.
//!
//! Strict filtering looks up the reverse path with the packet's mark where `src_valid_mark` is on, and with `iif` set to
//! the link by which the packet is about to *leave*, or to `lo` if it is for this node (`__fib_validate_source`,
//! net/ipv4/fib_frontend.c: `flowi4_iif = oif ? : LOOPBACK_IFINDEX`, and `__mkroute_input` passes the outgoing one). So
//! `iif NIC` with the mark of the same NIC is the packet itself, and is routed as without Ebbtide.
//!
//! A firewall may filter as well, before translation: nft's `fib saddr . mark . iif` (nft_fib4_eval, nft_fib6_eval) and
//! iptables' `-m rpfilter --validmark` look up the reverse path from the requested address, with the packet's mark and
//! `iif lo`. iptables without `--validmark` looks up, for IPv6, with only that address and `oif` set to the NIC, like a
//! socket of the node that is bound to both. So where that match is loaded, such a socket is routed by the NIC's own
//! table, except on the NIC with the node's default route. Otherwise it would leave by the NIC with the default route,
//! since IPv6 takes `oif` for a hint, and the egress program there would redirect it to this one.

use ebbtide_types::Family;
use ipnet::IpNet;

use super::{
    Nic, StrictRpFilter,
    plan::{Rules, Step},
};
use crate::netlink::model::{Action, Rule, Selector, host_net};

/// Returns the rules for the lookups of the filters on a NIC with this mark; `to_own` is the NIC's own table.
pub(super) fn lookups(
    nic: &Nic,
    family: Family,
    filtered: StrictRpFilter,
    (mark, mask): (u32, u32),
    to_own: Action,
    rules: Rules<'_>,
) -> Vec<Rule> {
    let link = nic.name.clone();
    let lookups = [
        (
            Step::NotStrict,
            Selector::InLinkMark { link, mark, mask },
            rules.go_on(),
        ),
        (
            Step::NotStrict,
            Selector::LocalMark { mark, mask },
            rules.go_on(),
        ),
        (Step::StrictRpFilter, Selector::Mark { mark, mask }, to_own),
    ];
    let mut lookups: Vec<Rule> = lookups
        .map(|(step, selector, action)| rules.at(step, family, selector, action))
        .into();
    // The kernel's own filter drops what is for the node, so the firewall's lookups change nothing.
    let is_last = family == Family::V6 || !filtered.kernel;
    if is_last && filtered.firewall.is_in(family) {
        let without = filtered.firewall.without_marks && family == Family::V6;
        let asked = before_translation(nic, family, (mark, mask), to_own, without, rules);
        lookups.extend(asked);
    }
    lookups
}

/// The rules for a firewall's lookups before translation, which start from the node's own addresses.
fn before_translation(
    nic: &Nic,
    family: Family,
    (mark, mask): (u32, u32),
    to_own: Action,
    without_marks: bool,
    rules: Rules<'_>,
) -> Vec<Rule> {
    let own = nic.addresses.iter().map(IpNet::addr);
    let own = own.filter(|address| Family::of(*address) == family);
    let each = own.map(host_net).flat_map(|from| {
        let link = nic.name.clone();
        let marked = Selector::LocalFromMark { from, mark, mask };
        let marked = rules.at(Step::Replies, family, marked, to_own);
        let asked = Selector::OutLink { from, link };
        let unmarked = rules.at(Step::Replies, family, asked, to_own);
        [Some(marked), without_marks.then_some(unmarked)]
            .into_iter()
            .flatten()
    });
    each.collect()
}
