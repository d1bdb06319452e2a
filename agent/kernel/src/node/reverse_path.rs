//! The rules that satisfy reverse path filters, of the kernel and of firewalls.
//!
//! Strict filtering looks up the reverse path with the packet's mark where `src_valid_mark` is on, and with `iif` set to
//! the link by which the packet is about to *leave*, or to `lo` if it is for this node (`__fib_validate_source`,
//! net/ipv4/fib_frontend.c: `flowi4_iif = oif ? : LOOPBACK_IFINDEX`, and `__mkroute_input` passes the outgoing one). So
//! `iif NIC` with the mark of the same NIC is the packet itself, and is routed as without Ebbtide.
//!
//! There is one exception. A request that comes in by a NIC may have to leave by it again: a NodePort's backend may be on
//! another node, in this NIC's own subnet. Then the outgoing link of the lookup is the NIC, and nothing but the source
//! tells the two apart. The reverse path starts at the backend, in that subnet. So what is from there has a rule of its
//! own, to the NIC's own table. The request itself must not match it, or it would miss the routes of others (tunnels to
//! another plugin's pods). So the program gives no mark to what comes from that subnet. It needs none: the main table
//! leads back to it by this NIC. A subnet that another link has as well is left out, since the main table may lead there
//! by the other one. A firewall looks up before translation, with `iif lo`, so the rule is for the kernel's filter alone.
//!
//! A firewall may filter as well, before translation: nft's `fib saddr . mark . iif` (nft_fib4_eval, nft_fib6_eval) and
//! iptables' `-m rpfilter --validmark` look up the reverse path from the requested address, with the packet's mark and
//! `iif lo`. iptables without `--validmark` looks up, for IPv6, with only that address and `oif` set to the NIC, like a
//! socket of the node that is bound to both. So where that match is loaded, such a socket is routed by the NIC's own
//! table, except on the NIC with the node's default route. Otherwise it would leave by the NIC with the default route,
//! since IPv6 takes `oif` for a hint, and the egress program there would redirect it to this one.

use std::net::{IpAddr, Ipv4Addr};

use ebbtide_types::Family;
use ipnet::IpNet;

use super::{
    Nic, StrictRpFilter,
    plan::{Rules, Step},
};
use crate::netlink::model::{Action, Rule, Selector, host_net};

/// Returns the IPv4 subnet around the address `own` of a NIC, if the main table leads there by this NIC: its prefix makes
/// a route, and no other link's address makes one that overlaps it.
pub(super) fn beside(nic: &Nic, own: Option<Ipv4Addr>, links: &[Nic]) -> Option<IpNet> {
    let makes_a_route = |net: &&IpNet| (1..net.max_prefix_len()).contains(&net.prefix_len());
    let own = own.map(IpAddr::V4)?;
    let mut nets = nic.addresses.iter().filter(makes_a_route);
    let subnet = nets.find(|net| net.addr() == own)?.trunc();
    let others = links.iter().filter(|link| link.ifindex != nic.ifindex);
    let mut routes = others.flat_map(|link| link.addresses.iter().filter(makes_a_route));
    let is_shared =
        routes.any(|net| subnet.contains(&net.network()) || net.contains(&subnet.network()));
    (!is_shared).then_some(subnet)
}

/// Returns the rules for the lookups of the filters on a NIC with this mark; `beside` is its own subnet, `to_own` its own
/// table.
pub(super) fn lookups(
    nic: &Nic,
    family: Family,
    filtered: StrictRpFilter,
    beside: Option<IpNet>,
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
    if let Some(from) = beside.filter(|net| Family::of_net(net) == family) {
        let link = nic.name.clone();
        let again = Selector::InLinkFromMark {
            from,
            link,
            mark,
            mask,
        };
        lookups.push(rules.at(Step::Replies, family, again, to_own));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nics_own_subnet_is_what_no_other_link_leads_to() {
        for (name, own, others, expected) in [
            ("alone", "192.168.0.154/24", &[][..], Some("192.168.0.0/24")),
            (
                "beside another",
                "192.168.0.154/24",
                &["172.31.199.183/20"],
                Some("192.168.0.0/24"),
            ),
            ("shared", "192.168.0.154/24", &["192.168.0.155/24"], None),
            (
                "within another",
                "192.168.0.154/24",
                &["192.168.3.1/16"],
                None,
            ),
            (
                "around another",
                "192.168.0.154/24",
                &["192.168.0.129/28"],
                None,
            ),
            (
                "an address there",
                "192.168.0.154/24",
                &["192.168.0.99/32"],
                Some("192.168.0.0/24"),
            ),
            (
                "IPv6",
                "192.168.0.154/24",
                &["fd00::1/64"],
                Some("192.168.0.0/24"),
            ),
            ("no prefix", "192.168.0.154/32", &[], None),
        ] {
            let link = |name: &str, ifindex, address: &str| Nic {
                addresses: vec![address.parse().unwrap()],
                ..Nic::named(name, ifindex)
            };
            let nic = link("eth1", 3, own);
            let mut links = vec![nic.clone()];
            links.extend(others.iter().map(|address| link("eth0", 2, address)));
            let address = Some(Ipv4Addr::new(192, 168, 0, 154));
            let found = beside(&nic, address, &links);
            assert_eq!(found, expected.map(|net| net.parse().unwrap()), "{name}");
            assert_eq!(
                beside(&nic, None, &links),
                None,
                "{name}, without an address"
            );
        }
    }
}
