//! What `nft --json list ruleset` prints (libnftables-json(5)), put into the words of iptables: what
//! both can say is judged in one place.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{
    Chain, Ruleset,
    rule::{FAMILY, Match, Rule},
};
use crate::netlink::model::Family;

/// The tables that iptables' newer kind makes.
const IPTABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// Sets by name, with the elements that are known.
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
        match (text(object, "type"), text(object, "hook")) {
            ("nat", "postrouting") => parsed.translating.push(chain),
            ("filter" | "route", "output" | "postrouting") => parsed.leaving.push(chain),
            _ => {}
        }
    }
    let sets: Sets<'_> = of("set")
        .filter(|(_, set)| {
            set["flags"]
                .as_array()
                .is_none_or(|flags| is_settled(flags))
        })
        .map(|(chain, set)| ((chain, text(set, "name")), &set["elem"]))
        .collect();
    for (chain, object) in of("rule") {
        let rule = rule(object, &chain, &sets);
        parsed.chains.entry(chain).or_default().push(rule);
    }
    Ok(parsed)
}

/// Table and chain of an object, if a packet of this family may meet it.
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
        // Its chains are in capitals; those of people, in a table of the same name, are not.
        name.chars().any(char::is_alphabetic) && !name.contains(char::is_lowercase)
    };
    let chain = text(object, "chain").to_owned();
    (met && !(others && iptables)).then(|| (format!("{kind} {table}"), chain))
}

/// Whether a set is what it was made as, and not what packets make of it.
fn is_settled(flags: &[Value]) -> bool {
    !flags.iter().any(|flag| flag == "dynamic")
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn rule(object: &Value, (table, chain): &Chain, sets: &Sets<'_>) -> Rule {
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
                "accept" | "drop" | "reject" | "return" | "masquerade" | "snat" => {
                    rule.target = name.to_uppercase();
                    words.push(name.clone());
                }
                "jump" | "goto" => {
                    rule.is_goto = name == "goto";
                    text(value, "target").clone_into(&mut rule.target);
                    words.push(format!("{name} {}", rule.target));
                }
                // iptables' own extension, where nft does not know it better.
                "xt" if text(value, "type") == "target" => {
                    text(value, "name").clone_into(&mut rule.target);
                    words.push(rule.target.clone());
                }
                // What changes nothing about who fits.
                "counter" | "log" | "mangle" | "notrack" | "comment" => {}
                // Anything else may or may not let the packet go on: limits, extensions, maps.
                _ => {
                    words.push(name.clone());
                    rule.matches.push(unknown());
                }
            }
        }
    }
    let handle = &object["handle"];
    rule.text = format!("nft {table} {chain}, handle {handle}: {}", words.join(" "));
    rule
}

/// A condition of which nothing is known.
fn unknown() -> Match {
    Match {
        negated: false,
        option: String::new(),
        values: vec![String::new()],
    }
}

/// What a match demands, in iptables' words. A family is part of an address.
fn matches(condition: &Value, table: &str, sets: &Sets<'_>) -> Vec<Match> {
    let negated = condition["op"] == "!=";
    let (left, right) = (&condition["left"], &condition["right"]);
    if !negated && !matches!(text(condition, "op"), "==" | "in") {
        return vec![unknown()];
    }
    let mut found = Vec::new();
    let option = match selector(left) {
        Some(Selector::Option(option)) => option,
        Some(Selector::Address(option, family)) => {
            found.push(Match {
                negated: false,
                option: FAMILY.to_owned(),
                values: vec![family.to_owned()],
            });
            option
        }
        None => return vec![unknown()],
    };
    found.push(match values(right, option, table, sets) {
        Some(values) => Match {
            negated,
            option: option.to_owned(),
            values,
        },
        None => unknown(),
    });
    found
}

enum Selector {
    Option(&'static str),
    Address(&'static str, &'static str),
}

/// What is looked at.
fn selector(left: &Value) -> Option<Selector> {
    use Selector::{Address, Option};
    let (kind, of): (&String, &Value) = left.as_object().and_then(first)?;
    Some(match (kind.as_str(), text(of, "key")) {
        ("meta", "oifname" | "oif") => Option("-o"),
        ("meta", "iifname" | "iif") => Option("-i"),
        ("meta", "mark") => Option("--mark"),
        ("meta", "nfproto") => Option(FAMILY),
        ("ct", "state") => Option("--ctstate"),
        // The mark and a mask: of a mark that is zero nothing else is left.
        ("&", _) if of[0]["meta"]["key"] == "mark" => Option("--mark"),
        ("payload", _) => match (text(of, "protocol"), text(of, "field")) {
            ("ip", "saddr") => Address("-s", "ipv4"),
            ("ip6", "saddr") => Address("-s", "ipv6"),
            ("ip", "daddr") => Address("-d", "ipv4"),
            ("ip6", "daddr") => Address("-d", "ipv6"),
            _ => return None,
        },
        ("fib", _) if of["result"] == "type" => match of["flags"][0].as_str() {
            Some("saddr") => Option("--src-type"),
            Some("daddr") => Option("--dst-type"),
            _ => return None,
        },
        _ => return None,
    })
}

fn first(map: &Map<String, Value>) -> Option<(&String, &Value)> {
    map.iter().next()
}

/// The values on the right side, as iptables writes them; `None` if they are not known.
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
    match (one, option) {
        (Value::Number(number), _) => Some(number.to_string()),
        (Value::String(text), "-o") => Some(match text.strip_suffix('*') {
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

/// A match for people, as good as may be: `oifname "ens5"`.
fn words_of(condition: &Value) -> String {
    let left = &condition["left"];
    let left = match left.as_object().and_then(first) {
        Some((_, of)) => match (text(of, "protocol"), text(of, "field"), text(of, "key")) {
            ("", "", "") => left.to_string(),
            ("", "", key) => key.to_owned(),
            (protocol, field, _) => format!("{protocol} {field}"),
        },
        None => left.to_string(),
    };
    let not = if condition["op"] == "!=" { " !=" } else { "" };
    format!("{left}{not} {}", condition["right"])
}

#[cfg(test)]
mod tests;
