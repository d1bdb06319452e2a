//! Translates the output of `nft --json list ruleset` (libnftables-json(5)) into iptables' syntax, so that both are
//! evaluated in one place.

use std::collections::HashMap;

use ebbtide_types::Family;
use serde_json::{Map, Value};

use super::{
    Chain, QUEUE, Ruleset,
    rule::{FAMILY, Match, Rule},
};

/// The tables of iptables-nft.
const IPTABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// Sets by name, with their known elements.
type Sets<'a> = HashMap<(Chain, &'a str), &'a Value>;

pub(super) fn parse(
    json: &str,
    family: Family,
    others: bool,
) -> Result<Ruleset, serde_json::Error> {
    let ruleset: Value = serde_json::from_str(json)?;
    let objects = ruleset["nftables"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let of = |kind: &'static str| {
        let found = objects.iter().filter_map(move |object| object.get(kind));
        found.filter_map(|object| Some((chain_of(object, family, others)?, object)))
    };
    let mut parsed = Ruleset {
        is_nft: true,
        ..Ruleset::default()
    };
    for (mut chain, object) in of("chain") {
        text(object, "name").clone_into(&mut chain.1);
        if text(object, "policy") == "drop" {
            parsed.dropping.insert(chain.clone());
        }
        match (text(object, "type"), text(object, "hook")) {
            ("filter", "forward") => parsed.forwarding.push(chain),
            ("filter", "input") => parsed.entering.push(chain),
            ("nat", "postrouting") => parsed.translating.push(chain),
            ("filter" | "route", "output" | "postrouting") => parsed.leaving.push(chain),
            _ => {}
        }
    }
    let sets: Sets<'_> = of("set")
        .chain(of("map"))
        .filter(|(_, set)| {
            set["flags"]
                .as_array()
                .is_none_or(|flags| is_settled(flags))
        })
        .map(|(chain, set)| ((chain, text(set, "name")), &set["elem"]))
        .collect();
    for (chain, object) in of("rule") {
        let rules = rules(object, &chain, &sets);
        parsed.chains.entry(chain).or_default().extend(rules);
    }
    Ok(parsed)
}

/// Returns table and chain of an object, if packets of this family may reach it.
fn chain_of(object: &Value, family: Family, others: bool) -> Option<Chain> {
    let (kind, table) = (text(object, "family"), text(object, "table"));
    let met = kind == "inet"
        || kind
            == match family {
                Family::V4 => "ip",
                Family::V6 => "ip6",
            };
    let iptables = kind != "inet" && IPTABLES.contains(&table) && {
        let name = [text(object, "chain"), text(object, "name")].concat();
        // Its chains are in capitals; an administrator's, in a table of the same name, are not.
        name.chars().any(char::is_alphabetic) && !name.contains(char::is_lowercase)
    };
    let chain = text(object, "chain").to_owned();
    (met && !(others && iptables)).then(|| (format!("{kind} {table}"), chain))
}

/// Whether a set's elements are fixed, and not added by packets.
fn is_settled(flags: &[Value]) -> bool {
    !flags.iter().any(|flag| flag == "dynamic")
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// Translates a rule into iptables' syntax: into one rule, or with a verdict map into one per verdict.
fn rules(object: &Value, (table, chain): &Chain, sets: &Sets<'_>) -> Vec<Rule> {
    let mut verdicts = Vec::new();
    let mut rule = Rule {
        text: String::new(),
        matches: Vec::new(),
        target: String::new(),
        is_goto: false,
    };
    let mut words = Vec::new();
    for statement in object["expr"].as_array().into_iter().flatten() {
        for (name, value) in statement.as_object().into_iter().flatten() {
            match name.as_str() {
                "match" => {
                    words.push(words_of(value));
                    rule.matches.extend(matches(value, table, sets));
                }
                "vmap" => {
                    words.push(format!("{} vmap", selector_words(&value["key"])));
                    verdicts.extend(verdicts_of(value, table, sets));
                }
                "queue" => {
                    QUEUE.clone_into(&mut rule.target);
                    words.push(name.clone());
                }
                // An extension of iptables that nft cannot translate.
                "xt" if text(value, "type") == "target" => {
                    text(value, "name").clone_into(&mut rule.target);
                    words.push(rule.target.clone());
                }
                // Does not affect what matches.
                "counter" | "log" | "mangle" | "notrack" | "comment" => {}
                // Anything else may or may not match: limits, extensions, maps.
                _ => match verdict(name, value) {
                    Some((target, is_goto)) => {
                        words.push(
                            format!("{name} {}", text(value, "target"))
                                .trim_end()
                                .to_owned(),
                        );
                        (rule.target, rule.is_goto) = (target, is_goto);
                    }
                    None => {
                        words.push(name.clone());
                        rule.matches.push(Match::unknown());
                    }
                },
            }
        }
    }
    let handle = &object["handle"];
    rule.text = format!("nft {table} {chain}, handle {handle}: {}", words.join(" "));
    if verdicts.is_empty() {
        return vec![rule];
    }
    let rules = verdicts.into_iter().map(|one| {
        let mut matches = rule.matches.clone();
        matches.extend(one.matches);
        Rule {
            text: rule.text.clone(),
            matches,
            ..one
        }
    });
    rules.collect()
}

/// Returns the target of a verdict, and whether it is a goto.
fn verdict(name: &str, value: &Value) -> Option<(String, bool)> {
    match name {
        "accept" | "drop" | "reject" | "return" | "masquerade" | "snat" => {
            Some((name.to_uppercase(), false))
        }
        "jump" | "goto" => Some((text(value, "target").to_owned(), name == "goto")),
        _ => None,
    }
}

/// Returns the elements of a verdict map, each as a rule.
fn verdicts_of(vmap: &Value, table: &str, sets: &Sets<'_>) -> Vec<Rule> {
    let rule = |matches, (target, is_goto)| Rule {
        text: String::new(),
        matches,
        target,
        is_goto,
    };
    let data = &vmap["data"];
    let elements = match data.as_str().and_then(|name| name.strip_prefix('@')) {
        Some(name) => {
            let map = ((table.to_owned(), String::new()), name);
            // An empty map has no elements; an unknown one may have any.
            let Some(elements) = sets.get(&map) else {
                return vec![rule(vec![Match::unknown()], (QUEUE.to_owned(), false))];
            };
            elements
        }
        None => &data["set"],
    };
    let elements = elements.as_array().into_iter().flatten();
    let found = elements.filter_map(|element| {
        let (key, verdicts) = (&element[0], element[1].as_object()?);
        let verdict = verdicts
            .iter()
            .find_map(|(name, value)| verdict(name, value))?;
        let matches = match key == "*" {
            true => Vec::new(),
            false => equals(&vmap["key"], key, false, table, sets),
        };
        Some(rule(matches, verdict))
    });
    found.collect()
}

/// Translates a condition into iptables' syntax. A family is part of an address.
fn matches(condition: &Value, table: &str, sets: &Sets<'_>) -> Vec<Match> {
    let negated = condition["op"] == "!=";
    let (left, right) = (&condition["left"], &condition["right"]);
    if !negated && !matches!(text(condition, "op"), "==" | "in") {
        return vec![Match::unknown()];
    }
    equals(left, right, negated, table, sets)
}

fn equals(left: &Value, right: &Value, negated: bool, table: &str, sets: &Sets<'_>) -> Vec<Match> {
    let unknown = Match {
        negated,
        ..Match::unknown()
    };
    let Some(Selector { option, implied }) = selector(left) else {
        return vec![unknown];
    };
    let implied = implied.map(|(option, value)| Match {
        negated: false,
        option: option.to_owned(),
        values: vec![value.to_owned()],
    });
    let found = match values(right, option, table, sets) {
        Some(values) => Match {
            negated,
            option: option.to_owned(),
            values,
        },
        None => unknown,
    };
    implied.into_iter().chain([found]).collect()
}

/// What is compared, as the name of iptables' option.
struct Selector {
    option: &'static str,
    /// The option and value that it implies: the family of an address, the protocol of a port.
    implied: Option<(&'static str, &'static str)>,
}

/// Returns what is compared.
fn selector(left: &Value) -> Option<Selector> {
    let (kind, of): (&String, &Value) = left.as_object().and_then(first)?;
    let implied = match (kind.as_str(), text(of, "protocol"), text(of, "field")) {
        ("payload", "ip", _) => Some((FAMILY, "ipv4")),
        ("payload", "ip6", _) => Some((FAMILY, "ipv6")),
        ("payload", "tcp", _) => Some(("-p", "tcp")),
        ("payload", "udp", _) => Some(("-p", "udp")),
        _ => None,
    };
    let option = match (kind.as_str(), text(of, "key")) {
        ("meta", "oifname" | "oif") => "-o",
        ("meta", "iifname" | "iif") => "-i",
        ("meta", "mark") => "--mark",
        ("meta", "nfproto") => FAMILY,
        ("meta", "l4proto") => "-p",
        // iptables calls this a state, too: `dnat`.
        ("ct", "state" | "status") => "--ctstate",
        // The mark and a mask: of a zero mark nothing else is left.
        ("&", _) if of[0]["meta"]["key"] == "mark" => "--mark",
        ("payload", _) => match (text(of, "protocol"), text(of, "field")) {
            ("ip" | "ip6", "saddr") => "-s",
            ("ip" | "ip6", "daddr") => "-d",
            ("ip", "protocol") | ("ip6", "nexthdr") => "-p",
            ("tcp" | "udp" | "th", "dport") => "--dport",
            _ => return None,
        },
        ("fib", _) if of["result"] == "type" => match of["flags"][0].as_str() {
            Some("saddr") => "--src-type",
            Some("daddr") => "--dst-type",
            _ => return None,
        },
        _ => return None,
    };
    Some(Selector { option, implied })
}

fn first(map: &Map<String, Value>) -> Option<(&String, &Value)> {
    map.iter().next()
}

/// Returns the values on the right side in iptables' syntax; `None` if they are unknown.
fn values(right: &Value, option: &str, table: &str, sets: &Sets<'_>) -> Option<Vec<String>> {
    match right {
        Value::Array(all) => all.iter().map(|one| value(one, option)).collect(),
        Value::Object(map) if map.contains_key("set") => values(&right["set"], option, table, sets),
        Value::String(name) if name.starts_with('@') => {
            let set = ((table.to_owned(), String::new()), &name[1..]);
            values(sets.get(&set)?, option, table, sets)
        }
        // A set without elements.
        Value::Null => Some(Vec::new()),
        one => Some(vec![value(one, option)?]),
    }
}

fn value(one: &Value, option: &str) -> Option<String> {
    // An element with a timeout, a counter or a comment.
    let one = one
        .get("elem")
        .map_or(one, |elem| elem.get("val").unwrap_or(elem));
    if let Some(prefix) = one.get("prefix") {
        return Some(format!("{}/{}", text(prefix, "addr"), prefix["len"]));
    }
    if let Some(range) = one.get("range") {
        return (option == "--dport").then(|| format!("{}:{}", range[0], range[1]));
    }
    match (one, option) {
        (Value::Number(number), _) => Some(number.to_string()),
        (Value::String(text), "-i" | "-o") => Some(match text.strip_suffix('*') {
            Some(begin) => format!("{begin}+"),
            None => text.clone(),
        }),
        (Value::String(text), "--ctstate" | "--src-type" | "--dst-type") => {
            Some(text.to_uppercase())
        }
        (Value::String(text), _) => Some(text.clone()),
        _ => None,
    }
}

/// Formats a condition for people, as well as possible: `oifname "ens5"`.
fn words_of(condition: &Value) -> String {
    let not = if condition["op"] == "!=" { " !=" } else { "" };
    let left = selector_words(&condition["left"]);
    format!("{left}{not} {}", condition["right"])
}

fn selector_words(left: &Value) -> String {
    match left.as_object().and_then(first) {
        Some((_, of)) => match (text(of, "protocol"), text(of, "field"), text(of, "key")) {
            ("", "", "") => left.to_string(),
            ("", "", key) => key.to_owned(),
            (protocol, field, _) => format!("{protocol} {field}"),
        },
        None => left.to_string(),
    }
}

#[cfg(test)]
mod tests;
