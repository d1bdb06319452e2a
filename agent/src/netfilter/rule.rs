//! A rule, in the words of `iptables-save`, and whether a packet fits it, as far as that can be told
//! without the packet.

use std::net::IpAddr;

use ipnet::IpNet;

/// What is known of a packet that a pod sends by its NIC, when the host's netfilter sees it. Its
/// mark is zero: it is scrubbed between namespaces (`ipvlan_skb_crossing_ns`).
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The pod's address.
    pub source: IpAddr,
    /// The NIC.
    pub nic: &'a str,
    /// What conntrack calls it: `NEW`, `INVALID`.
    pub state: &'a str,
}

/// Whether a packet fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// All do.
    Yes,
    /// None does.
    No,
    /// It depends on what is not known: where it goes, a set, a protocol.
    Maybe,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As it was written, to be found again.
    pub text: String,
    /// What a packet must fit, all of it.
    pub(super) matches: Vec<Match>,
    /// What happens to what fits: `ACCEPT`, `MASQUERADE`, a chain; empty for nothing.
    pub target: String,
    /// Whether the chain is gone to, not jumped to: what returns from it returns from this one too.
    pub is_goto: bool,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Whether it is fitted by what has none of the values.
    pub(super) negated: bool,
    /// What is looked at, as iptables' option is called.
    pub(super) option: String,
    /// Any of these.
    pub(super) values: Vec<String>,
}

/// Splits a line into words, with the quotes that `iptables-save` puts around comments.
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
    /// Parses a line `-A CHAIN ...`; the chain and the rule. `None` for any other line.
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
                "-m" | "--match" | "--comment" => drop(words.next()),
                "-j" | "-g" => {
                    rule.is_goto = word == "-g";
                    rule.target = words.next()?;
                    // What follows says how: `--to-source`, `--set-xmark`.
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

    /// Whether the packet fits this rule.
    #[must_use]
    pub fn fits(&self, packet: &Packet<'_>) -> Fit {
        let fits = self.matches.iter().map(|one| one.fits(packet));
        fits.fold(Fit::Yes, |all, one| match (all, one) {
            (Fit::No, _) | (_, Fit::No) => Fit::No,
            (Fit::Maybe, _) | (_, Fit::Maybe) => Fit::Maybe,
            (Fit::Yes, Fit::Yes) => Fit::Yes,
        })
    }

    /// Whether it speaks of this state of conntrack's.
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

    /// Whether the packet has this value; `None` if that is not known.
    fn has(&self, value: &str, packet: &Packet<'_>) -> Option<bool> {
        match self.option.as_str() {
            "-s" => network(value).map(|net| net.contains(&packet.source)),
            "-d" => (value == "0.0.0.0/0" || value == "::/0").then_some(true),
            "-o" => Some(is_link(value, packet.nic)),
            // What the host sends came in by no link.
            "-i" => Some(false),
            "-p" => (value == "all").then_some(true),
            "--mark" => mark_zero_fits(value),
            // Neither the pod's address nor where it sends to by the NIC is the host's own.
            "--src-type" | "--dst-type" if value == "LOCAL" => Some(false),
            FAMILY => Some((value == "ipv4") == packet.source.is_ipv4()),
            option if is_state(option) => Some(value == packet.state),
            _ => None,
        }
    }
}

/// What iptables has no option for, as each of its tables is for one family: `ipv4` or `ipv6`.
pub(super) const FAMILY: &str = "family";

fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// `eth+` is every link whose name begins so.
fn is_link(pattern: &str, link: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(begin) => link.starts_with(begin),
        None => pattern == link,
    }
}

/// Whether the mark zero is `VALUE` or `VALUE/MASK`.
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
        let packet = Packet {
            source: [172, 31, 16, 4].into(),
            nic: "ens5",
            state: "NEW",
        };
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
