//! Rules as nft 1.0.6 prints them.

mod blocks;

use super::*;
use crate::netfilter::Packet;

const TABLES: &str = r#"
{"table": {"family": "ip", "name": "n", "handle": 1}},
{"set": {"family": "ip", "name": "pods", "table": "n", "type": "ipv4_addr", "handle": 3,
  "flags": ["interval"], "elem": ["10.1.1.1", {"prefix": {"addr": "172.31.16.0", "len": 20}}]}},
{"set": {"family": "ip", "name": "heard", "table": "n", "type": "ipv4_addr", "handle": 4,
  "flags": ["dynamic"], "elem": ["172.31.16.4"]}},
{"chain": {"family": "ip", "table": "n", "name": "extra", "handle": 1}},
{"chain": {"family": "ip", "table": "n", "name": "post", "handle": 2, "type": "nat",
  "hook": "postrouting", "prio": 100, "policy": "accept"}},
{"chain": {"family": "inet", "table": "f", "name": "out", "handle": 1, "type": "filter",
  "hook": "output", "prio": 0, "policy": "accept"}},
{"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "handle": 1, "type": "nat",
  "hook": "postrouting", "prio": 100, "policy": "accept"}}"#;

fn sent() -> Packet<'static> {
    Packet::sent([172, 31, 16, 4].into(), "ens5", "NEW")
}

/// A ruleset as nft 1.0.6 prints it.
fn ruleset(family: &str, table: &str, rules: &[(&str, &str)]) -> String {
    let rules = rules.iter().map(|(chain, expressions)| {
        format!(
            r#",{{"rule": {{"family": "{family}", "table": "{table}", "chain": "{chain}",
                "handle": 7, "expr": [{expressions}]}}}}"#
        )
    });
    let rules: String = rules.collect();
    format!(r#"{{"nftables": [{TABLES}{rules}]}}"#)
}

const OUT: &str =
    r#"{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "ens5"}}"#;
const MASQUERADE: &str = r#"{"masquerade": null}"#;

fn source(op: &str, right: &str) -> String {
    format!(
        r#"{{"match": {{"op": "{op}", "left": {{"payload": {{"protocol": "ip", "field":
            "saddr"}}}}, "right": {right}}}}}"#
    )
}

fn meta(op: &str, left: &str, right: &str) -> String {
    format!(r#"{{"match": {{"op": "{op}", "left": {left}, "right": {right}}}}}"#)
}

/// A name, rules with their chains, and whether the found one matches all.
type Case = (&'static str, Vec<(&'static str, String)>, Option<bool>);

#[test]
fn what_gives_pods_another_address_is_found_and_what_spares_them_is_not() {
    let any = |first: &str| format!("{first}, {MASQUERADE}");
    let mark = r#"{"&": [{"meta": {"key": "mark"}}, 16384]}"#;
    let interfaces = r#"{"set": ["ens5", "ens6"]}"#;
    let oifname = r#"{"meta": {"key": "oifname"}}"#;
    let local = r#"{"fib": {"result": "type", "flags": ["daddr"]}}"#;
    let protocol = r#"{"meta": {"key": "l4proto"}}"#;
    let daddr = r#"{"payload": {"protocol": "ip", "field": "daddr"}}"#;
    let cases: [Case; 16] = [
        ("oifname ens5", vec![("post", any(OUT))], Some(true)),
        ("everything", vec![("post", MASQUERADE.into())], Some(true)),
        (
            "snat",
            vec![(
                "post",
                format!(r#"{OUT}, {{"snat": {{"addr": "1.2.3.4"}}}}"#),
            )],
            Some(true),
        ),
        (
            "oifname { .. }",
            vec![("post", any(&meta("==", oifname, interfaces)))],
            Some(true),
        ),
        (
            "oifname ens*",
            vec![("post", any(&meta("==", oifname, r#""ens*""#)))],
            Some(true),
        ),
        (
            "other link",
            vec![("post", any(&meta("==", oifname, r#""eth0""#)))],
            None,
        ),
        (
            "not docker0",
            vec![("post", any(&meta("!=", oifname, r#""docker0""#)))],
            Some(true),
        ),
        (
            "docker's subnet",
            vec![(
                "post",
                any(&source(
                    "==",
                    r#"{"prefix": {"addr": "172.17.0.0", "len": 16}}"#,
                )),
            )],
            None,
        ),
        (
            "a set spares them",
            vec![
                (
                    "post",
                    format!(r#"{}, {{"accept": null}}"#, source("==", r#""@pods""#)),
                ),
                ("post", MASQUERADE.into()),
            ],
            None,
        ),
        (
            "a set that packets make",
            vec![
                (
                    "post",
                    format!(r#"{}, {{"accept": null}}"#, source("==", r#""@heard""#)),
                ),
                ("post", MASQUERADE.into()),
            ],
            Some(false),
        ),
        (
            "kube-proxy",
            vec![
                (
                    "post",
                    format!(r#"{}, {{"return": null}}"#, meta("!=", mark, "16384")),
                ),
                ("post", MASQUERADE.into()),
            ],
            None,
        ),
        (
            "local destinations",
            vec![("post", any(&meta("==", local, r#""local""#)))],
            None,
        ),
        (
            "not to 10.0.0.0/8",
            vec![(
                "post",
                any(&meta(
                    "!=",
                    daddr,
                    r#"{"prefix": {"addr": "10.0.0.0", "len": 8}}"#,
                )),
            )],
            Some(false),
        ),
        (
            "a jump for some protocols",
            vec![
                (
                    "post",
                    format!(
                        r#"{}, {{"jump": {{"target": "extra"}}}}"#,
                        meta("==", protocol, r#"{"set": ["tcp", "udp"]}"#)
                    ),
                ),
                ("extra", any(OUT)),
            ],
            Some(false),
        ),
        (
            "a limit",
            vec![(
                "post",
                any(r#"{"limit": {"rate": 3, "burst": 5, "per": "second"}}"#),
            )],
            Some(false),
        ),
        (
            "nobody comes here",
            vec![("extra", MASQUERADE.into())],
            None,
        ),
    ];
    for (name, rules, expected) in cases {
        let rules: Vec<(&str, &str)> = rules
            .iter()
            .map(|(chain, rule)| (*chain, rule.as_str()))
            .collect();
        let set = parse(&ruleset("ip", "n", &rules), Family::V4, false).unwrap();
        let found = set.masquerades(&sent());
        assert_eq!(
            found.first().map(|one| one.all),
            expected,
            "{name}: {found:?}"
        );
        for one in found {
            assert!(one.rule.starts_with("nft ip n "), "{}", one.rule);
            let remedy = "nft insert rule ip n post oifname ens5 ip saddr PODS accept";
            assert!(one.remedy.contains(remedy), "{}", one.remedy);
        }
        // The other family never matches.
        let set = parse(&ruleset("ip", "n", &rules), Family::V6, false).unwrap();
        assert_eq!(set.masquerades(&sent()), [], "{name}");
    }
}

#[test]
fn what_drops_half_seen_connections_is_found_in_both_families() {
    let invalid = |source: &str| Packet::sent(source.parse().unwrap(), "ens5", "INVALID");
    let state = r#"{"ct": {"key": "state"}}"#;
    let drop = |first: &str| format!(r#"{first}, {{"drop": null}}"#);
    for (name, rule, v4, v6) in [
        (
            "ct state invalid",
            drop(&meta("in", state, r#""invalid""#)),
            true,
            true,
        ),
        (
            "ct state { invalid, new }",
            drop(&meta("==", state, r#"{"set": ["invalid", "new"]}"#)),
            true,
            true,
        ),
        (
            "of IPv4",
            format!(
                "{}, {}",
                source("!=", r#""1.1.1.1""#),
                drop(&meta("in", state, r#""invalid""#))
            ),
            true,
            false,
        ),
        (
            "ct state new",
            drop(&meta("in", state, r#"["new", "related"]"#)),
            false,
            false,
        ),
        ("everything", drop(OUT), false, false),
    ] {
        let json = ruleset("inet", "f", &[("out", &rule)]);
        for (family, address, expected) in [
            (Family::V4, "172.31.16.4", v4),
            (Family::V6, "fd00:16::4", v6),
        ] {
            let set = parse(&json, family, false).unwrap();
            let found = set.drops(&invalid(address));
            assert_eq!(!found.is_empty(), expected, "{name}, {family}: {found:?}");
        }
    }
}

#[test]
fn the_tables_of_iptables_are_left_to_iptables_save_where_it_is() {
    let xt = r#"{"xt": {"type": "target", "name": "MASQUERADE"}}"#;
    let json = ruleset("ip", "nat", &[("POSTROUTING", xt)]);
    for (others, found) in [(true, 0), (false, 1)] {
        let set = parse(&json, Family::V4, others).unwrap();
        assert_eq!(set.masquerades(&sent()).len(), found, "{others}");
    }
}

#[test]
fn what_is_not_understood_breaks_nothing() {
    for json in [
        "{}",
        r#"{"nftables": 7}"#,
        r#"{"nftables": [{"rule": {}}, {"rule": 1}, {"chain": null}, {"set": {"elem": {}}}]}"#,
        r#"{"nftables": [{"rule": {"family": "ip", "expr": [{"match": {}}, 3, null, {"jump": 1}]}}]}"#,
    ] {
        let set = parse(json, Family::V4, true).unwrap();
        assert_eq!(set.masquerades(&sent()), []);
    }
    assert!(parse("flush ruleset", Family::V4, true).is_err());
}
