use std::path::Path;

use ebbtide_cloud::{CloudNic, Kind, View};
use ebbtide_ipam::catalog::DerivedNic;
use ebbtide_kernel::node::Nic;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 6]);

const NETWORK: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: cloud, namespace: shop, annotations: {ebbtide.io/addresses: metadata}}
spec: {cniType: ipvlan, ipvlan: {master: [ens6]}}
";

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A ledger that was told each of these lists of addresses twice.
fn ledger(lists: &[&[&str]]) -> Ledger {
    let mut ledger = Ledger::default();
    let mut now = 0;
    for list in lists {
        for _ in 0..2 {
            let view = View {
                nics: vec![CloudNic {
                    mac: MAC,
                    id: "eni-6".into(),
                    primary: vec!["10.0.1.4".parse().unwrap()],
                    blocks: [(Kind::V4Addresses, nets(list))].into(),
                    subnets: nets(&["10.0.1.0/24"]),
                    gateways: vec!["10.0.1.1".parse().unwrap()],
                }],
            };
            let _changes = ledger.observe(now, &view, &|_| false);
            now += 10;
        }
    }
    ledger
}

fn facts() -> NodeFacts {
    NodeFacts {
        nics: vec![Nic {
            mac: Some(MAC),
            ..Nic::named("ens6", 3)
        }],
        ..NodeFacts::default()
    }
}

fn catalog(ledger: &Ledger) -> Catalog {
    let nic = DerivedNic {
        node: "node1".into(),
        link: "ens6".into(),
        family: Family::V4,
        blocks: ledger.usable(MAC),
        primary: vec!["10.0.1.4".parse().unwrap()],
        gateway: Some("10.0.1.1".parse().unwrap()),
        subnets: nets(&["10.0.1.0/24"]),
        source: "AWS eni-6".into(),
    };
    Catalog::from_texts([(Path::new("n.yaml"), NETWORK)]).with_derived(&[nic], &[])
}

fn sets(text: &str) -> Sets {
    Sets::parse(&[(Family::V4, text.to_owned())].into()).unwrap()
}

fn v4(text: &str) -> AddressSet {
    AddressSet::parse_list(text, Family::V4).unwrap()
}

/// Returns the report where pods have `used`, and `resting` cools down or is reserved.
fn report(ledger: &Ledger, used: &str, resting: &str, asked: &str, kept: &str) -> NodeCloud {
    let (facts, catalog) = (facts(), catalog(ledger));
    let known = Known {
        node: "node1",
        provider: Some(Provider::Aws),
        ledger,
        facts: &facts,
        catalog: &catalog,
        wanted: &["ens6", "ens9"].map(str::to_owned).into(),
        asked: &sets(asked),
        kept: &sets(kept),
    };
    let standing = |of: &AddressSet| Standing {
        used: v4(used).common(of),
        resting: v4(resting).common(of),
    };
    told(&known, standing, |link, first| {
        assert_eq!((link, first), ("ens6", Family::V4));
        [(first, 2)].into()
    })
}

#[test]
fn a_report_has_each_address_in_the_state_that_it_is_in() {
    let ledger = ledger(&[
        &[
            "10.0.1.5/32",
            "10.0.1.6/32",
            "10.0.1.7/32",
            "10.0.1.8/32",
            "10.0.1.9/32",
            "10.0.1.10/32",
        ],
        // 10.0.1.9 and .10 are told no more, and then .10 again: it is not believed yet.
        &["10.0.1.5/32", "10.0.1.6/32", "10.0.1.7/32", "10.0.1.8/32"],
        &[
            "10.0.1.5/32",
            "10.0.1.6/32",
            "10.0.1.7/32",
            "10.0.1.8/32",
            "10.0.1.10/32",
        ],
    ]);
    let report = report(
        &ledger,
        "10.0.1.5, 10.0.1.9",
        "10.0.1.6",
        "10.0.1.5-10.0.1.7, 10.0.1.10",
        "10.0.1.8",
    );
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        serde_json::json!({
            "version": 1, "node": "node1", "cloud": "aws",
            "nics": [{
                "id": "eni-6", "mac": "02:00:00:00:00:06", "link": "ens6", "waiting": {"v4": 2},
                "blocks": ["10.0.1.5/32", "10.0.1.6/32", "10.0.1.7/32", "10.0.1.8/32", "10.0.1.10/32"],
                "pools": [{
                    "name": "node1-ens6-v4", "networks": ["shop/cloud"], "family": "v4", "subnet": "10.0.1.0/24",
                    "gateway": "10.0.1.1", "ranges": "10.0.1.5-10.0.1.8", "used": "10.0.1.5, 10.0.1.9",
                    "resting": "10.0.1.6, 10.0.1.8, 10.0.1.10", "held": "10.0.1.9", "surrendered": "10.0.1.7",
                }],
            }],
        })
    );
    assert_eq!(surrendered(&report), sets("10.0.1.7"));
}

#[test]
fn an_address_is_surrendered_when_nobody_has_it_and_nobody_is_to_get_it() {
    let ledger = ledger(&[&["10.0.1.5/32", "10.0.1.6/32"]]);
    for (what, used, resting, asked, kept, expected) in [
        ("not asked back", "", "", "", "", ""),
        ("asked back", "", "", "10.0.1.5", "", "10.0.1.5"),
        ("a pod has it", "10.0.1.5", "", "10.0.1.5", "", ""),
        (
            "it cools down, or is reserved",
            "",
            "10.0.1.5",
            "10.0.1.5",
            "",
            "",
        ),
        ("not asked back any more", "", "", "", "10.0.1.5", ""),
        ("not of the pool", "", "", "10.0.1.99", "", ""),
        (
            "all",
            "",
            "",
            "10.0.1.0-10.0.1.255",
            "",
            "10.0.1.5-10.0.1.6",
        ),
    ] {
        let report = report(&ledger, used, resting, asked, kept);
        assert_eq!(report.nics[0].pools[0].surrendered, expected, "{what}");
    }
}

#[test]
fn without_a_cloud_there_is_nothing_to_tell_but_that() {
    let ledger = Ledger::default();
    let known = Known {
        node: "node1",
        provider: None,
        ledger: &ledger,
        facts: &facts(),
        catalog: &Catalog::default(),
        wanted: &["ens6".to_owned()].into(),
        asked: &Sets::default(),
        kept: &Sets::default(),
    };
    let nobody = |of: &AddressSet| Standing {
        used: AddressSet::empty(of.family()),
        resting: AddressSet::empty(of.family()),
    };
    let report = told(&known, nobody, |_, _| BTreeMap::new());
    assert_eq!((report.cloud.as_str(), report.nics.len()), ("none", 0));
}

#[test]
fn only_addresses_of_that_nics_pools_can_be_asked_back() {
    let ledger = ledger(&[&["10.0.1.5/32", "10.0.1.6/32"]]);
    let (facts, catalog) = (facts(), catalog(&ledger));
    for (nic, asked, expected) in [
        ("eni-6", "10.0.1.5", "10.0.1.5"),
        ("eni-6", "10.0.1.4-10.0.1.9", "10.0.1.5-10.0.1.6"),
        ("eni-7", "10.0.1.5", ""),
        ("", "10.0.1.5", ""),
    ] {
        let back = [(nic.to_owned(), vec![v4(asked)])].into();
        let (wish, offered) = wished(&back, &ledger, &facts, &catalog);
        assert_eq!(wish.to_string(), asked);
        assert_eq!(offered.to_string(), expected, "{nic} {asked}");
    }
}
