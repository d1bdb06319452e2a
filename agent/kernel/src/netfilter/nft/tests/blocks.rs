//! Firewalls that block pods.

use super::*;
use crate::netfilter::Protocol;

/// A firewall of nft's own, in a table for both families, and a map of verdicts; as nft 1.0.6 prints them.
fn firewall(policy: &str, rules: &[(&str, String)]) -> String {
    let base = |name: &str, hook: &str| {
        format!(
            r#"{{"chain": {{"family": "inet", "table": "fw", "name": "{name}", "handle": 1, "type": "filter",
                "hook": "{hook}", "prio": 0, "policy": "{policy}"}}}}"#
        )
    };
    let map = r#"{"map": {"family": "inet", "name": "verdicts", "table": "fw", "type": ["ipv4_addr", "inet_service"],
        "handle": 2, "map": "verdict", "elem": [[{"concat": ["10.96.0.5", 80]}, {"goto": {"target": "extra"}}]]}}"#;
    let rules = rules.iter().map(|(chain, expressions)| {
        format!(
            r#", {{"rule": {{"family": "inet", "table": "fw", "chain": "{chain}", "handle": 7,
                "expr": [{expressions}]}}}}"#
        )
    });
    let rules: String = rules.collect();
    let (forward, input) = (base("fwd", "forward"), base("in", "input"));
    format!(r#"{{"nftables": [{forward}, {input}, {map}{rules}]}}"#)
}

/// Policy, rules with their chains, and the verdicts on packets to a pod (TCP, forwarded) and to its kubelet.
type Firewall = (
    &'static str,
    &'static str,
    Vec<(&'static str, String)>,
    [Option<bool>; 2],
);

#[test]
fn a_firewall_that_shuts_pods_off_is_found_in_both_families() {
    const OPEN: Option<bool> = None;
    const SHUT: Option<bool> = Some(true);
    const MAYBE: Option<bool> = Some(false);
    let accept = |first: &str| format!(r#"{first}, {{"accept": null}}"#);
    let jump = |first: &str| format!(r#"{first}, {{"jump": {{"target": "extra"}}}}"#);
    let reject = r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#;
    let drop = r#"{"drop": null}"#;
    let established = accept(&meta(
        "==",
        r#"{"ct": {"key": "state"}}"#,
        r#"{"set": ["established", "related"]}"#,
    ));
    let dnat = accept(&meta("in", r#"{"ct": {"key": "status"}}"#, r#""dnat""#));
    let link = |name: &str| meta("==", r#"{"meta": {"key": "iifname"}}"#, name);
    let port = |right: &str| {
        let left = r#"{"payload": {"protocol": "tcp", "field": "dport"}}"#;
        meta("==", left, right)
    };
    let protocol = |right: &str| meta("==", r#"{"meta": {"key": "l4proto"}}"#, right);
    let mark = meta("==", r#"{"meta": {"key": "mark"}}"#, "16384");
    let vmap = |key: &str, data: &str| format!(r#"{{"vmap": {{"key": {key}, "data": {data}}}}}"#);
    let by_state = vmap(
        r#"{"ct": {"key": "state"}}"#,
        r#"{"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}"#,
    );
    let service = r#"{"concat": [{"payload": {"protocol": "ip", "field": "daddr"}},
        {"payload": {"protocol": "th", "field": "dport"}}]}"#;
    let both = |rule: String| vec![("fwd", rule.clone()), ("in", rule)];
    let cases: Vec<Firewall> = vec![
        ("nothing", "accept", Vec::new(), [OPEN, OPEN]),
        ("policy", "drop", both(established.clone()), [SHUT, SHUT]),
        (
            "states by a map",
            "drop",
            both(by_state.clone()),
            [SHUT, SHUT],
        ),
        ("states, open", "accept", both(by_state), [OPEN, OPEN]),
        (
            "firewalld's",
            "accept",
            [
                both(established),
                both(dnat),
                both(accept(&link(r#""lo""#))),
                both(r#"{"goto": {"target": "extra"}}"#.into()),
                vec![
                    ("extra", accept(&port("22"))),
                    (
                        "extra",
                        accept(&protocol(r#"{"set": ["icmp", "ipv6-icmp"]}"#)),
                    ),
                    ("extra", reject.into()),
                ],
            ]
            .concat(),
            [OPEN, SHUT],
        ),
        ("a mark", "drop", both(accept(&mark)), [MAYBE, MAYBE]),
        (
            "the veths",
            "drop",
            both(accept(&link(r#""veth*""#))),
            [SHUT, OPEN],
        ),
        (
            "the NIC",
            "drop",
            both(accept(&link(r#""ens5""#))),
            [OPEN, SHUT],
        ),
        (
            "a port",
            "drop",
            both(accept(&port(r#"{"set": [80, {"range": [10000, 11000]}]}"#))),
            [MAYBE, OPEN],
        ),
        (
            "UDP",
            "drop",
            both(accept(&protocol(r#""udp""#))),
            [SHUT, SHUT],
        ),
        (
            "TCP",
            "drop",
            both(accept(&protocol(r#""tcp""#))),
            [OPEN, OPEN],
        ),
        (
            "a queue",
            "drop",
            both(r#"{"queue": {"num": 1}}"#.into()),
            [OPEN, OPEN],
        ),
        (
            "a protocol by a map",
            "accept",
            both(vmap(
                r#"{"meta": {"key": "l4proto"}}"#,
                r#"{"set": [["tcp", {"drop": null}], ["udp", {"accept": null}]]}"#,
            )),
            [SHUT, SHUT],
        ),
        (
            "a map that is not known",
            "drop",
            both(vmap(service, r#""@heard""#)),
            [MAYBE, MAYBE],
        ),
        (
            "kube-proxy's: Services without endpoints, unknown ports, a limit",
            "accept",
            [
                both(vmap(service, r#""@verdicts""#)),
                both(jump(&mark)),
                both(format!(
                    r#"{{"limit": {{"rate": 3, "burst": 5, "per": "second"}}}}, {drop}"#
                )),
                vec![("extra", reject.into())],
            ]
            .concat(),
            [OPEN, OPEN],
        ),
        (
            "a chain",
            "accept",
            vec![("fwd", jump(&link(r#""ens5""#))), ("extra", drop.into())],
            [SHUT, OPEN],
        ),
    ];
    let veth = "veth0123456789a";
    for (name, policy, rules, [forward, input]) in cases {
        let json = firewall(policy, &rules);
        for (family, pod, ip) in [
            (Family::V4, "172.31.16.4", "ip"),
            (Family::V6, "fd00:16::4", "ip6"),
        ] {
            let pod = pod.parse().unwrap();
            let to_pod = Packet::to_pod(pod, "ens5", veth, Protocol::Tcp);
            let to_node = Packet::to_node(pod, veth, Protocol::Tcp, 10250);
            let set = parse(&json, family, true).unwrap();
            for (packet, expected, remedy) in [
                (
                    to_pod,
                    forward,
                    format!("`nft insert rule inet fw fwd {ip} daddr PODS accept`"),
                ),
                (
                    to_node,
                    input,
                    format!(
                        "`nft insert rule inet fw in iifname \"veth*\" {ip} saddr PODS accept`"
                    ),
                ),
            ] {
                let found = set.blocks(&packet);
                let all = found.first().map(|one| one.all);
                assert_eq!(all, expected, "{name}, {family}: {found:?}");
                for one in found {
                    assert!(one.rule.starts_with("nft inet fw "), "{}", one.rule);
                    assert!(one.remedy.contains(&remedy), "{}", one.remedy);
                }
            }
        }
    }
    let policy = parse(&firewall("drop", &[]), Family::V4, true).unwrap();
    let found = policy.blocks(&Packet::to_pod(
        [172, 31, 16, 4].into(),
        "ens5",
        veth,
        Protocol::Tcp,
    ));
    assert_eq!(found[0].rule, "nft inet fw fwd: policy drop");
}
