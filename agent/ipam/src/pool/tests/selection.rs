use ebbtide_types::{Family, ObjectName};

use super::*;
use crate::pool::select::{Choice, select};

const POOLS: &str = "
    any: {subnet: 10.0.0.0/24, default: true}
    b-node: {subnet: 10.0.1.0/24, default: true, nodeName: [node, other]}
    a-node: {subnet: 10.0.2.0/24, default: true, nodeName: [node]}
    net: {subnet: 10.0.3.0/24, default: true, multusName: [default/ens5]}
    both: {subnet: 10.0.4.0/24, default: true, nodeName: [node], multusName: [ens5]}
    else: {subnet: 10.0.5.0/24, default: true, nodeName: [other]}
    v6: {subnet: 'fd00::/64', default: true, nodeName: [six]}
    named: {subnet: 10.0.6.0/24}
    off: {subnet: 10.0.7.0/24, disable: true}
    odd: {subnet: 10.0.8.0/24, podAffinity: {matchLabels: {app: x}}}
";

fn names(selection: &[Choice<'_>]) -> Vec<(Family, Vec<String>)> {
    let names = |choice: &Choice<'_>| {
        let pools = choice.pools.iter().map(|pool| pool.name.clone());
        (choice.family, pools.collect())
    };
    selection.iter().map(names).collect()
}

#[test]
fn default_pools_are_tried_the_more_specific_first_and_ties_by_name() {
    let catalog = catalog(POOLS);
    let owner = owner("c");
    let ens5 = ObjectName {
        namespace: "default".into(),
        name: "ens5".into(),
    };
    let foreign = ObjectName {
        namespace: "x".into(),
        name: "ens5".into(),
    };
    let v4 = |names: &[&str]| {
        (
            Family::V4,
            names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    };
    let cases = [
        ("node", None, vec![v4(&["a-node", "b-node", "any"])]),
        (
            "node",
            Some(&ens5),
            vec![v4(&["both", "a-node", "b-node", "net", "any"])],
        ),
        (
            "node",
            Some(&foreign),
            vec![v4(&["both", "a-node", "b-node", "any"])],
        ),
        ("other", None, vec![v4(&["b-node", "else", "any"])]),
        ("third", None, vec![v4(&["any"])]),
        (
            "six",
            None,
            vec![v4(&["any"]), (Family::V6, vec!["v6".into()])],
        ),
    ];
    for (node, network, expected) in cases {
        let mut request = Request::new(&owner, node, &catalog);
        request.network = network;
        assert_eq!(
            names(&select(&request).unwrap()),
            expected,
            "{node} {network:?}"
        );
    }
}

#[test]
fn a_named_list_keeps_its_order_and_decides_on_the_families() {
    let catalog = catalog(POOLS);
    let owner = owner("c");
    let named = |node, ipv4: &[&str], ipv6: &[&str]| {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (ipv4, ipv6) = (own(ipv4), own(ipv6));
        let mut request = Request::new(&owner, node, &catalog);
        request.source = Source::Named {
            ipv4: &ipv4,
            ipv6: &ipv6,
        };
        select(&request)
            .map(|selection| names(&selection))
            .map_err(|error| (error.family, error.candidates))
    };
    assert_eq!(
        named("node", &["named", "else", "any", "a-node"], &[]),
        Ok(vec![(
            Family::V4,
            vec!["named".into(), "any".into(), "a-node".into()]
        )])
    );
    assert_eq!(
        named("node", &["any"], &["v6"]),
        Ok(vec![(Family::V4, vec!["any".into()])]),
        "v6 is another node's"
    );
    let unknown = vec![("nope".to_owned(), PassedOver::Unknown)];
    assert_eq!(
        named("node", &["any"], &["nope"]),
        Err((Some(Family::V6), unknown)),
        "a typing error is not hidden"
    );
    assert_eq!(
        named("node", &["v6"], &[]),
        Err((
            Some(Family::V4),
            vec![("v6".into(), PassedOver::WrongFamily(Family::V6))]
        ))
    );
    assert_eq!(
        named("node", &["off"], &[]),
        Err((Some(Family::V4), vec![("off".into(), PassedOver::Disabled)]))
    );
    assert_eq!(
        named("node", &["odd", "else"], &[]),
        Err((
            None,
            vec![
                (
                    "odd".into(),
                    PassedOver::NotKnown("podAffinity", "the pod's labels")
                ),
                ("else".into(), PassedOver::WrongNode(vec!["other".into()])),
            ]
        ))
    );
}

#[test]
fn a_disabled_pool_counts_only_where_it_would_serve() {
    let catalog = catalog(
        "
        four: {subnet: 10.0.0.0/24, default: true}
        six: {subnet: 'fd00::/64', default: true, disable: true, nodeName: [node]}",
    );
    let owner = owner("c");
    let family = |node, families| {
        let mut request = Request::new(&owner, node, &catalog);
        request.families = families;
        select(&request)
            .map(|selection| selection.len())
            .map_err(|error| error.family)
    };
    assert_eq!(family("node", Families::default()), Err(Some(Family::V6)));
    assert_eq!(family("elsewhere", Families::default()), Ok(1));
    assert_eq!(
        family(
            "node",
            Families {
                ipv4: true,
                ipv6: false
            }
        ),
        Ok(1)
    );
    assert_eq!(
        family(
            "node",
            Families {
                ipv4: false,
                ipv6: false
            }
        ),
        Err(None)
    );
}

#[test]
fn the_message_lists_every_candidate_and_why_in_one_line() {
    let catalog = catalog(
        "
        a: {subnet: 10.0.0.0/24, default: true, nodeName: [x, y]}
        b: {subnet: 10.0.1.0/24, default: true, multusName: [default/ens6]}
        c: {subnet: 10.0.2.0/24}
        d: {subnet: 10.0.3.0/24, nodeName: [x]}
        e: {subnet: 10.0.4.0/24, default: true, nodeAffinity: {matchLabels: {zone: z}}}",
    );
    let owner = owner("c");
    let network = ObjectName {
        namespace: "default".into(),
        name: "ens5".into(),
    };
    let mut request = Request::new(&owner, "node", &catalog);
    request.network = Some(&network);
    let message = select(&request).unwrap_err().to_string();
    assert_eq!(
        message,
        "no pool serves node \"node\" and network default/ens5: pool a is for node x, y; \
         pool e has nodeAffinity, and the agent does not know the node's labels; pool b is for network default/ens6; \
         pool c is not `default: true` and the network does not name it. Declare a SpiderIPPool with `default: true` \
         for this node (nodeName) and network (multusName), or correct one of these"
    );
    let nothing = Catalog::default();
    let message = select(&Request::new(&owner, "node", &nothing))
        .unwrap_err()
        .to_string();
    assert!(message.contains("no pool is declared"), "{message}");
}
