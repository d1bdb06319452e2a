//! Parses a rule in the syntax of `iptables-save`, and decides whether a packet matches it, as far as that is possible
//! without the packet.

use std::net::IpAddr;

use ebbtide_types::Family;
use ipnet::IpNet;

use super::packet::{Hook, Packet};

/// Whether a packet matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Every such packet does.
    Yes,
    /// None does.
    No,
    /// It depends on something unknown: the destination, a set, a protocol.
    Maybe,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its original text.
    pub text: String,
    /// Conditions, all of which a packet must match.
    pub(super) matches: Vec<Match>,
    /// The target of matching packets: `ACCEPT`, `MASQUERADE`, a chain; empty for none.
    pub target: String,
    /// Whether the target is a goto, not a jump: what returns from it returns from this chain too.
    pub is_goto: bool,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Whether it matches packets with none of the values.
    pub(super) negated: bool,
    /// What is compared, as the name of iptables' option.
    pub(super) option: String,
    /// Any of these.
    pub(super) values: Vec<String>,
}

/// Splits a line into words, with the quotes that `iptables-save` writes around comments.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for letter in line.chars() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => {
                escaped = true;
                continue;
            }
            '"' => {
                quoted = !quoted;
                continue;
            }
            ' ' if !quoted => {
                words.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = words.last_mut() {
            last.push(letter);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

impl Rule {
    /// Parses a line `-A CHAIN ...` into the chain and the rule. Returns `None` for any other line.
    #[must_use]
    pub fn parse(line: &str) -> Option<(String, Self)> {
        let mut words = words(line).into_iter().peekable();
        // With counters (`-c`) a line begins with `[packets:bytes]`.
        words.next_if(|word| word.starts_with('['));
        words.next_if(|word| word == "-A")?;
        let chain = words.next()?;
        let mut rule = Self {
            text: line.trim().to_owned(),
            matches: Vec::new(),
            target: String::new(),
            is_goto: false,
        };
        let mut negated = false;
        while let Some(word) = words.next() {
            match word.as_str() {
                "!" => {
                    negated = true;
                    continue;
                }
                "--comment" => drop(words.next()),
                // Some extensions are a condition without any option.
                "-m" | "--match" => {
                    let name = words.next();
                    if matches!(name.as_deref(), Some("socket" | "rpfilter")) {
                        rule.matches.push(Match::unknown());
                    }
                }
                "-j" | "-g" => {
                    rule.is_goto = word == "-g";
                    rule.target = words.next()?;
                    // The target's options follow: `--to-source`, `--set-xmark`.
                    break;
                }
                _ => {
                    let values = std::iter::from_fn(|| {
                        words.next_if(|next| next != "!" && !next.starts_with('-'))
                    });
                    let value = values.collect::<Vec<_>>().join(" ");
                    let is_list = is_state(&word);
                    rule.matches.push(Match {
                        negated,
                        option: word,
                        values: match is_list {
                            true => value.split(',').map(str::to_owned).collect(),
                            false => vec![value],
                        },
                    });
                }
            }
            negated = false;
        }
        Some((chain, rule))
    }

    /// Whether the packet matches this rule.
    #[must_use]
    pub fn fits(&self, packet: &Packet<'_>) -> Fit {
        let fits = self.matches.iter().map(|one| one.fits(packet));
        fits.fold(Fit::Yes, |all, one| match (all, one) {
            (Fit::No, _) | (_, Fit::No) => Fit::No,
            (Fit::Maybe, _) | (_, Fit::Maybe) => Fit::Maybe,
            (Fit::Yes, Fit::Yes) => Fit::Yes,
        })
    }

    /// Whether it picks out some of such packets: those to one address or port, with a mark, in a set. A rule that
    /// exempts some and matches the rest does not.
    pub(super) fn picks(&self, packet: &Packet<'_>) -> bool {
        let mut unknown = self
            .matches
            .iter()
            .filter(|one| one.fits(packet) == Fit::Maybe);
        unknown.any(|one| !one.negated)
    }

    /// Whether it matches this conntrack state explicitly.
    #[must_use]
    pub fn is_about(&self, state: &str) -> bool {
        let states = self.matches.iter().filter(|one| is_state(&one.option));
        states.flat_map(|one| &one.values).any(|one| one == state)
    }
}

fn is_state(option: &str) -> bool {
    matches!(option, "--ctstate" | "--state")
}

impl Match {
    fn fits(&self, packet: &Packet<'_>) -> Fit {
        let fits = self
            .values
            .iter()
            .map(|value| match self.has(value, packet) {
                Some(true) => Fit::Yes,
                Some(false) => Fit::No,
                None => Fit::Maybe,
            });
        let any = fits.fold(Fit::No, |all, one| match (all, one) {
            (Fit::Yes, _) | (_, Fit::Yes) => Fit::Yes,
            (Fit::Maybe, _) | (_, Fit::Maybe) => Fit::Maybe,
            (Fit::No, Fit::No) => Fit::No,
        });
        match (any, self.negated) {
            (Fit::Maybe, _) => Fit::Maybe,
            (Fit::Yes, false) | (Fit::No, true) => Fit::Yes,
            (Fit::Yes, true) | (Fit::No, false) => Fit::No,
        }
    }

    /// Creates a condition of unknown effect.
    pub(super) fn unknown() -> Self {
        Self {
            negated: false,
            option: String::new(),
            values: vec![String::new()],
        }
    }

    /// Whether the packet has this value; `None` if that is unknown.
    fn has(&self, value: &str, packet: &Packet<'_>) -> Option<bool> {
        let hook = packet.hook();
        match self.option.as_str() {
            "-s" => is_in(value, packet.source),
            // The node has many addresses; a pod cannot reach the loopback ones.
            "-d" if hook == Hook::Input && is_loopback(value) => Some(false),
            "-d" => is_in(value, packet.destination),
            // A packet for the host has no output link, and one from it no input link.
            "-o" => Some(packet.output.is_some_and(|link| is_link(value, link))),
            "-i" => Some(packet.input.is_some_and(|link| is_link(value, link))),
            // Only bridged packets have these.
            option if option.starts_with("--physdev-") => Some(false),
            "-p" if value == "all" => Some(true),
            "-p" => packet.protocol.map(|protocol| protocol.is_called(value)),
            "--dport" | "--dports" => packet.port.map(|port| is_port(value, port)),
            // What a pod sends by its NIC has none: it is scrubbed between namespaces (`ipvlan_skb_crossing_ns`). What
            // came in by a link may have any.
            "--mark" if hook == Hook::Output => mark_zero_fits(value),
            // A pod's address is not the host's own, nor is its destination by the NIC.
            "--src-type" if value == "LOCAL" => Some(false),
            "--dst-type" if value == "LOCAL" => Some(hook == Hook::Input),
            "--dst-type" if hook != Hook::Output => match value {
                "UNICAST" => Some(hook == Hook::Forward),
                "BROADCAST" | "MULTICAST" => Some(false),
                _ => None,
            },
            FAMILY => Some((value == "ipv4") == (packet.family == Family::V4)),
            // Forwarded packets are a Service's: to a pod, or from a pod to another node's.
            option if is_state(option) && value == "DNAT" => Some(hook == Hook::Forward),
            option if is_state(option) => Some(value == packet.state),
            _ => None,
        }
    }
}

/// Name of the family's option, with the values `ipv4` and `ipv6`. iptables has none, as its tables are per family.
pub(super) const FAMILY: &str = "family";

fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Whether an address is in a network; `None` if the address is unknown.
fn is_in(text: &str, address: Option<IpAddr>) -> Option<bool> {
    let net = network(text)?;
    match address {
        Some(address) => Some(net.contains(&address)),
        None => (net.prefix_len() == 0).then_some(true),
    }
}

fn is_loopback(text: &str) -> bool {
    network(text).is_some_and(|net| net.addr().is_loopback())
}

/// Whether a port is in a list like `53,6443,30000:32767`.
fn is_port(text: &str, port: u16) -> bool {
    text.split(',').any(|part| {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        // `1024:` and `:1023` are open at an end.
        let number = |text: &str, open| match text {
            "" => Some(open),
            text => text.parse::<u16>().ok(),
        };
        let range = number(first, 0).zip(number(last, u16::MAX));
        range.is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}

/// Whether a link matches a pattern: `eth+` is every link whose name begins with `eth`.
fn is_link(pattern: &str, link: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(begin) => link.starts_with(begin),
        None => pattern == link,
    }
}

/// Whether the mark zero matches `VALUE` or `VALUE/MASK`.
fn mark_zero_fits(text: &str) -> Option<bool> {
    let value = text.split('/').next()?;
    let number = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    number.ok().map(|number| number == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_fits_as_far_as_can_be_told() {
        use Fit::{Maybe, No, Yes};
        let packet = Packet::sent([172, 31, 16, 4].into(), "ens5", "NEW");
        for (rule, expected) in [
            ("-j MASQUERADE", Yes),
            ("-o ens5 -j MASQUERADE", Yes),
            ("-o ens+ -j MASQUERADE", Yes),
            ("-o ens6 -j MASQUERADE", No),
            ("! -o docker0 -j MASQUERADE", Yes),
            ("-s 172.31.0.0/16 -j MASQUERADE", Yes),
            ("-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", No),
            ("! -s 172.17.0.0/16 -j MASQUERADE", Yes),
            ("! -d 10.0.0.0/8 -j MASQUERADE", Maybe),
            ("-p tcp -m tcp --dport 53 -j MASQUERADE", Maybe),
            ("-m set --match-set pods src -j MASQUERADE", Maybe),
            ("-m set --match-set pods src -o ens6 -j MASQUERADE", No),
            ("-m mark --mark 0x4000/0x4000 -j MASQUERADE", No),
            ("-m mark ! --mark 0x4000/0x4000 -j RETURN", Yes),
            ("-m mark --mark 0x0/0x4000 -j MASQUERADE", Yes),
            ("-m addrtype ! --dst-type LOCAL -j MASQUERADE", Yes),
            ("-m addrtype --src-type LOCAL -j MASQUERADE", No),
            ("-m conntrack --ctstate NEW,RELATED -j MASQUERADE", Yes),
            ("-m conntrack --ctstate INVALID -j DROP", No),
            (
                "-m comment --comment \"it's -o ens6 \\\"here\\\"\" -j MASQUERADE",
                Yes,
            ),
            ("-i veth0 -j MASQUERADE", No),
        ] {
            let (chain, rule) = Rule::parse(&format!("-A POSTROUTING {rule}")).unwrap();
            assert_eq!(chain, "POSTROUTING");
            assert_eq!(rule.fits(&packet), expected, "{}", rule.text);
        }
    }

    #[test]
    fn lines_that_are_no_rules_are_none() {
        for line in [
            "",
            "*nat",
            ":POSTROUTING ACCEPT [0:0]",
            "COMMIT",
            "# Generated",
            "-A",
            "[1:2]",
        ] {
            assert_eq!(Rule::parse(line), None, "{line}");
        }
        let (chain, rule) = Rule::parse("[12:720] -A A -s 10.0.0.1/32 -g B").unwrap();
        assert_eq!(
            (chain.as_str(), rule.target.as_str(), rule.is_goto),
            ("A", "B", true)
        );
    }
}
