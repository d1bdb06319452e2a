//! The NICs whose addresses pods may have, of what the ledger believes and what the kernel has. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use ebbtide_cloud::{
    Provider,
    ledger::{Ledger, Nic as ToldNic, Reason, SETTLE},
};
use ebbtide_ipam::catalog::{DerivedNic, DerivedNote};
use ebbtide_kernel::node::{self, Nic, NodeFacts};
use ebbtide_types::{Family, Mac};

/// Links that have the MAC of the link below them.
const CHILDREN: [&str; 6] = ["ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "vlan"];

/// Returns the link that is the NIC with this MAC.
///
/// The hardware's own MAC counts, as a link's can be changed. Of several, it is none that another one is built on or built
/// of: on Azure the virtual function has the MAC of the link whose port it is, a VLAN's or a child's link that of its
/// parent, and a bond that of its first port.
pub(super) fn link_of(facts: &NodeFacts, mac: Mac) -> Option<&Nic> {
    let is_it = |nic: &&Nic| nic.permanent_mac == Some(mac) || nic.mac == Some(mac);
    let is_whole = |nic: &&Nic| {
        let kind = nic.kind.as_deref().unwrap_or_default();
        nic.port_of.is_none() && !CHILDREN.contains(&kind)
    };
    let mut found = facts.nics.iter().filter(is_it).filter(is_whole);
    let first = found.next()?;
    let by_hardware = |nic: &&Nic| nic.permanent_mac == Some(mac) && nic.kind.is_none();
    let others: Vec<&Nic> = found.collect();
    match by_hardware(&first) {
        true => Some(first),
        false => others.into_iter().find(by_hardware).or(Some(first)),
    }
}

/// Returns the MAC by which the cloud knows a link.
pub(super) fn told<'a>(
    facts: &NodeFacts,
    ledger: &'a Ledger,
    link: &str,
) -> Option<(Mac, &'a ToldNic)> {
    let mut nics = ledger.nics();
    nics.find(|(mac, _)| link_of(facts, *mac).is_some_and(|nic| nic.name == link))
}

/// What is derived for the links that networks or requests want the metadata of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Derived {
    /// Pools' NICs.
    pub(super) nics: Vec<DerivedNic>,
    /// What to say of those that have none.
    pub(super) notes: Vec<DerivedNote>,
    /// The links of which something is told that is believed soon.
    pub(super) soon: BTreeSet<String>,
}

/// Derives the pools of the links in `wanted`.
pub(super) fn derive(
    node: &str,
    provider: Provider,
    ledger: &Ledger,
    facts: &NodeFacts,
    wanted: &BTreeSet<String>,
) -> Derived {
    let mut derived = Derived::default();
    for link in wanted {
        let Some((mac, nic)) = told(facts, ledger, link) else {
            derived.notes.push(not_told(facts, ledger, link));
            continue;
        };
        let usable = ledger.usable(mac);
        let held = ledger.held(mac);
        let waiting = ledger.waiting(mac);
        // A family of which something is held or waits has a pool, which is full: a pod must not be without it because
        // the cloud faltered. Where nothing was usable ever, it is said so instead.
        let is_known = !usable.is_empty()
            || !held.is_empty()
            || waiting
                .iter()
                .any(|one| matches!(one.reason, Reason::Returning { .. }));
        let families: BTreeSet<Family> = usable
            .iter()
            .chain(held.iter().map(|held| &held.block))
            .chain(waiting.iter().map(|waiting| &waiting.block))
            .filter(|_| is_known)
            .map(Family::of_net)
            .collect();
        let source = format!("{provider} {}", shown(nic, mac));
        for family in families {
            derived.nics.push(DerivedNic {
                node: node.to_owned(),
                link: link.clone(),
                family,
                blocks: usable.clone(),
                primary: nic.primary.clone(),
                gateway: gateway(provider, nic, facts, link, family),
                subnets: nic.subnets.clone(),
                source: source.clone(),
            });
        }
        let mut note = DerivedNote::of_nic(link, provider.into(), &nic.id);
        let mut left = waiting.iter().filter_map(|one| one.reason.seconds_left());
        if left.any(|left| left <= SETTLE) {
            derived.soon.insert(link.clone());
        }
        if let Some(first) = waiting.first() {
            note.reason = format!(
                "what NIC {} was assigned is not believed yet: {first}",
                shown(nic, mac)
            );
            note.more = String::new();
        }
        derived.notes.push(note);
    }
    derived
}

/// Returns the note of a link that the service does not tell of.
fn not_told(facts: &NodeFacts, ledger: &Ledger, link: &str) -> DerivedNote {
    let macs: Vec<String> = ledger.nics().map(|(mac, _)| mac.to_string()).collect();
    let own = facts
        .nic(link)
        .and_then(|nic| nic.permanent_mac.or(nic.mac));
    let reason = match own {
        None => format!("the node has no link {link}"),
        Some(own) => format!(
            "the cloud's metadata service does not tell of {link} ({own}); it tells of {}",
            match macs.as_slice() {
                [] => "no NIC yet".to_owned(),
                macs => macs.join(", "),
            }
        ),
    };
    DerivedNote {
        link: link.to_owned(),
        reason,
        more: String::new(),
    }
}

/// Returns the NIC as people know it.
pub(super) fn shown(nic: &ToldNic, mac: Mac) -> String {
    match nic.id.as_str() {
        "" => mac.to_string(),
        id => id.to_owned(),
    }
}

/// Returns the gateway: the one that is told. AWS and Azure tell none, what is there is their convention, so the kernel's
/// wins, and it is the kernel's for IPv6, where routers announce themselves.
fn gateway(
    provider: Provider,
    nic: &ToldNic,
    facts: &NodeFacts,
    link: &str,
    family: Family,
) -> Option<IpAddr> {
    let of_family = |gateway: &&IpAddr| Family::of(**gateway) == family;
    let told = nic.gateways.iter().find(of_family).copied();
    let kernel = || {
        let link = facts.nic(link)?;
        let mut defaults = node::own_defaults(link, &facts.defaults).into_iter();
        defaults.find(|(of, _)| *of == family)?.1
    };
    match provider {
        Provider::Aws | Provider::Azure => kernel().or(told),
        Provider::Alibaba | Provider::Gcp | Provider::Tencent => told.or_else(kernel),
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_cloud::{CloudNic, Kind, View};
    use ebbtide_kernel::netlink::model::Route;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 6]);

    fn nic(name: &str, ifindex: u32) -> Nic {
        Nic {
            mac: Some(MAC),
            ..Nic::named(name, ifindex)
        }
    }

    fn facts(nics: Vec<Nic>) -> NodeFacts {
        NodeFacts {
            nics,
            ..NodeFacts::default()
        }
    }

    #[test]
    fn a_nic_is_found_by_the_mac_that_the_cloud_knows() {
        let kind = |kind: &str, nic: Nic| Nic {
            kind: Some(kind.to_owned()),
            ..nic
        };
        let hardware = |nic: Nic| Nic {
            permanent_mac: Some(MAC),
            ..nic
        };
        let rows = [
            ("alone", vec![nic("ens6", 3)], Some("ens6")),
            (
                "its MAC was changed",
                vec![
                    Nic {
                        mac: Some(Mac([2, 9, 9, 9, 9, 9])),
                        ..hardware(nic("ens6", 3))
                    },
                    kind("dummy", nic("cheat", 4)),
                ],
                Some("ens6"),
            ),
            (
                "Azure's virtual function is a port of the link",
                vec![
                    Nic {
                        port_of: Some(3),
                        ..hardware(nic("enP1", 2))
                    },
                    nic("eth1", 3),
                ],
                Some("eth1"),
            ),
            (
                "children in the node",
                vec![
                    kind("ipvlan", nic("host0", 9)),
                    kind("macvlan", nic("host1", 10)),
                    kind("vlan", nic("ens6.7", 11)),
                    nic("ens6", 3),
                ],
                Some("ens6"),
            ),
            (
                "a bond has its port's",
                vec![
                    Nic {
                        port_of: Some(5),
                        ..hardware(nic("ens6", 3))
                    },
                    kind("bond", nic("bond0", 5)),
                ],
                Some("bond0"),
            ),
            ("not attached", vec![], None),
        ];
        for (name, nics, expected) in rows {
            let facts = facts(nics);
            let found = link_of(&facts, MAC).map(|nic| nic.name.as_str());
            assert_eq!(found, expected, "{name}");
        }
    }

    fn told_twice(gateways: &[&str]) -> Ledger {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let view = View {
            nics: vec![CloudNic {
                mac: MAC,
                id: "eni-6".into(),
                primary: vec!["10.0.1.4".parse().unwrap()],
                blocks: [(Kind::V4Addresses, list(&["10.0.1.5/32"]))].into(),
                subnets: list(&["10.0.1.0/24"]),
                gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
            }],
        };
        let mut ledger = Ledger::default();
        for now in [0, 30] {
            let _changes = ledger.observe(now, &view, &|_| false);
        }
        ledger
    }

    #[test]
    fn the_gateway_is_the_one_that_is_known_and_not_the_one_that_is_usual() {
        let default = Route {
            link: "ens6".into(),
            destination: "0.0.0.0/0".parse().unwrap(),
            via: Some("10.0.1.254".parse().unwrap()),
            source: None,
            table: 254,
        };
        for (provider, gateways, defaults, expected) in [
            (Provider::Aws, &["10.0.1.1"][..], vec![], Some("10.0.1.1")),
            (
                Provider::Aws,
                &["10.0.1.1"],
                vec![default.clone()],
                Some("10.0.1.254"),
            ),
            (
                Provider::Alibaba,
                &["10.0.1.253"],
                vec![default.clone()],
                Some("10.0.1.253"),
            ),
            (Provider::Tencent, &[], vec![default], Some("10.0.1.254")),
            (Provider::Gcp, &[], vec![], None),
        ] {
            let facts = NodeFacts {
                defaults,
                ..facts(vec![nic("ens6", 3)])
            };
            let ledger = told_twice(gateways);
            let wanted = BTreeSet::from(["ens6".to_owned()]);
            let derived = derive("node1", provider, &ledger, &facts, &wanted);
            let gateway = derived.nics[0].gateway.map(|gateway| gateway.to_string());
            assert_eq!(gateway.as_deref(), expected, "{provider}");
        }
    }

    #[test]
    fn a_family_whose_addresses_falter_has_a_pool_that_is_full() {
        let view = |v4: &[&str], v6: &[&str]| {
            let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            View {
                nics: vec![CloudNic {
                    mac: MAC,
                    id: "eni-6".into(),
                    primary: vec![],
                    blocks: [(Kind::V4Addresses, list(v4)), (Kind::V6Addresses, list(v6))].into(),
                    subnets: vec![],
                    gateways: vec![],
                }],
            }
        };
        let both = view(&["10.0.1.5/32"], &["fd00::5/128"]);
        let without = view(&[], &["fd00::5/128"]);
        let mut ledger = Ledger::default();
        for (now, view, what, pools, soon) in [
            (0, &both, "new", 0, true),
            (10, &both, "usable", 2, false),
            (20, &without, "held", 2, false),
            (30, &both, "told again", 2, false),
        ] {
            let _changes = ledger.observe(now, view, &|_| false);
            let facts = facts(vec![nic("ens6", 3)]);
            let wanted = BTreeSet::from(["ens6".to_owned()]);
            let derived = derive("node1", Provider::Aws, &ledger, &facts, &wanted);
            assert_eq!(derived.nics.len(), pools, "{what}");
            assert_eq!(!derived.soon.is_empty(), soon, "{what}");
        }
    }

    #[test]
    fn a_link_that_is_not_told_is_said_to_be_so() {
        let ledger = told_twice(&[]);
        let facts = facts(vec![
            nic("ens6", 3),
            Nic {
                mac: Some(Mac([2, 0, 0, 0, 0, 7])),
                ..Nic::named("ens7", 4)
            },
        ]);
        let wanted = ["ens6", "ens7", "ens8"].map(str::to_owned).into();
        let derived = derive("node1", Provider::Aws, &ledger, &facts, &wanted);
        assert_eq!(derived.nics.len(), 1);
        assert_eq!(derived.nics[0].source, "AWS eni-6");
        let said: Vec<&str> = derived.notes.iter().map(|n| n.reason.as_str()).collect();
        assert_eq!(
            said,
            [
                "no secondary addresses are assigned to NIC eni-6 yet",
                "the cloud's metadata service does not tell of ens7 (02:00:00:00:00:07); it tells of 02:00:00:00:00:06",
                "the node has no link ens8",
            ]
        );
    }
}
