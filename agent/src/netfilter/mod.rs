//! What others' firewall rules do to the packets that pods send by their NIC.
//!
//! In l3 mode these pass the host's OUTPUT and POSTROUTING. The rules are read as text, by
//! `iptables-save` and its kin and by `nft` where they are installed: rules of the old kind cannot be
//! had by netlink at all, those of the new kind have a binary format for each extension, and the text
//! is what the rule's owner will recognise.

mod nft;
mod rule;

use std::collections::HashMap;

pub use rule::{Fit, Packet, Rule};

use crate::netlink::model::Family;

/// The name of a table (for nft with the family before it), and of a chain in it.
type Chain = (String, String);

/// The rules of one family, by table and chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    chains: HashMap<Chain, Vec<Rule>>,
    /// The chains in which the kernel begins where sources are translated.
    translating: Vec<Chain>,
    /// The chains in which the kernel begins with what leaves the host.
    leaving: Vec<Chain>,
    /// Whether they are nft's.
    is_nft: bool,
}

/// A rule that catches what pods send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The rule, as it was written.
    pub rule: String,
    /// Whether it catches all of it; else it depends on what is sent where.
    pub all: bool,
    /// What keeps it off the pods, where `PODS` are their addresses.
    pub remedy: String,
}

/// How a packet leaves a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By its end, or back to the chain before.
    On,
    /// With a verdict: no other rule of the table is asked.
    Out,
}

/// Deeper than anybody nests chains; the kernel forbids loops.
const DEPTH: usize = 32;

impl Ruleset {
    /// Parses what `iptables-save` prints. What is not understood is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut chains: HashMap<_, Vec<Rule>> = HashMap::new();
        let mut table = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim().to_owned();
            } else if let Some((chain, mut rule)) = Rule::parse(line) {
                rule.text = format!("-t {table} {}", rule.text);
                chains.entry((table.clone(), chain)).or_default().push(rule);
            }
        }
        let chain = |table: &str, chain: &str| (table.to_owned(), chain.to_owned());
        Self {
            chains,
            translating: vec![chain("nat", "POSTROUTING")],
            leaving: ["raw", "mangle", "filter"]
                .map(|table| chain(table, "OUTPUT"))
                .into(),
            is_nft: false,
        }
    }

    /// Parses what `nft --json list ruleset` prints, as a packet of this family meets it. With
    /// `others`, without the tables of iptables' newer kind, which `iptables-save` prints.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn parse_nft(json: &str, family: Family, others: bool) -> Result<Self, serde_json::Error> {
        nft::parse(json, family, others)
    }

    /// The rules that give what the pod sends another source address.
    #[must_use]
    pub fn masquerades(&self, packet: &Packet<'_>) -> Vec<Caught> {
        let translates =
            |rule: &Rule| matches!(rule.target.as_str(), "MASQUERADE" | "SNAT" | "NETMAP");
        self.catch(&self.translating, packet, &translates)
    }

    /// The rules that drop what conntrack, which sees but half of it, calls invalid.
    #[must_use]
    pub fn drops(&self, packet: &Packet<'_>) -> Vec<Caught> {
        let drops = |rule: &Rule| {
            matches!(rule.target.as_str(), "DROP" | "REJECT") && rule.is_about(packet.state)
        };
        self.catch(&self.leaving, packet, &drops)
    }

    /// Follows the packet through chains in which the kernel begins.
    fn catch(
        &self,
        chains: &[Chain],
        packet: &Packet<'_>,
        catch: &dyn Fn(&Rule) -> bool,
    ) -> Vec<Caught> {
        let mut all = Vec::new();
        for chain @ (table, name) in chains {
            let mut caught = Vec::new();
            self.walk((table, name), packet, true, DEPTH, catch, &mut caught);
            all.extend(caught.into_iter().map(|(rule, all)| Caught {
                rule,
                all,
                remedy: self.remedy(chain, packet),
            }));
        }
        all
    }

    /// What ends the way through this chain for what pods send by the packet's NIC.
    fn remedy(&self, (table, chain): &Chain, packet: &Packet<'_>) -> String {
        let nic = packet.nic;
        let ip = if packet.source.is_ipv4() { "ip" } else { "ip6" };
        match self.is_nft {
            true => format!(
                "put `nft insert rule {table} {chain} oifname {nic} {ip} saddr PODS accept` before it"
            ),
            false => format!(
                "put `-t {table} -I {chain} -o {nic} -s PODS -j ACCEPT` before it, in the same kind of \
                 iptables"
            ),
        }
    }

    /// Follows the packet through a chain and notes the rules that `catch` it.
    fn walk(
        &self,
        (table, chain): (&str, &str),
        packet: &Packet<'_>,
        all: bool,
        depth: usize,
        catch: &dyn Fn(&Rule) -> bool,
        caught: &mut Vec<(String, bool)>,
    ) -> Way {
        let mut all = all;
        for rule in self
            .chains
            .get(&(table.to_owned(), chain.to_owned()))
            .into_iter()
            .flatten()
        {
            let fit = rule.fits(packet);
            if fit == Fit::No {
                continue;
            }
            let all_here = all && fit == Fit::Yes;
            if catch(rule) {
                caught.push((rule.text.clone(), all_here));
            }
            let is_chain = self
                .chains
                .contains_key(&(table.to_owned(), rule.target.clone()));
            let way = match rule.target.as_str() {
                "RETURN" if fit == Fit::Yes => return Way::On,
                "ACCEPT" | "DROP" | "REJECT" | "MASQUERADE" | "SNAT" | "NETMAP" => Way::Out,
                target if is_chain && depth > 0 => {
                    self.walk((table, target), packet, all_here, depth - 1, catch, caught)
                }
                _ => Way::On,
            };
            match (way, fit) {
                (Way::Out, Fit::Yes) => return Way::Out,
                (Way::On, Fit::Yes) if rule.is_goto => return Way::On,
                // Some of it is gone; what goes on is not all.
                (Way::Out, _) => all = false,
                _ if rule.target == "RETURN" => all = false,
                _ => {}
            }
        }
        Way::On
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Packet<'_> = Packet {
        source: std::net::IpAddr::V4(std::net::Ipv4Addr::new(172, 31, 16, 4)),
        nic: "ens5",
        state: "NEW",
    };

    /// As kube-proxy, Docker and the CNI plugin `portmap` have them.
    const HARMLESS: &str = "\
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
*filter
:OUTPUT ACCEPT [0:0]
-A OUTPUT -m conntrack --ctstate INVALID -o docker0 -j DROP
-A FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
";

    fn caught(rules: &str) -> Vec<(bool, String)> {
        let ruleset = Ruleset::parse(&format!("*nat\n{rules}\nCOMMIT\n"));
        let found = ruleset.masquerades(&POD).into_iter();
        found.map(|one| (one.all, one.rule)).collect()
    }

    #[test]
    fn what_is_not_for_pods_is_not_found() {
        let ruleset = Ruleset::parse(HARMLESS);
        assert_eq!(ruleset.masquerades(&POD), []);
        let invalid = Packet {
            state: "INVALID",
            ..POD
        };
        assert_eq!(ruleset.drops(&invalid), []);
    }

    #[test]
    fn what_takes_a_pods_address_away_is_found() {
        // Rules, and the number of the one that is found, and whether it catches everything.
        let cases: [(&str, Option<(usize, bool)>); 9] = [
            ("-A POSTROUTING -o ens5 -j MASQUERADE", Some((0, true))),
            (
                "-A POSTROUTING -o ens5 -j SNAT --to-source 172.31.22.228",
                Some((0, true)),
            ),
            (
                "-A POSTROUTING -s 172.31.16.0/24 -j ACCEPT\n-A POSTROUTING -j MASQUERADE",
                None,
            ),
            (
                "-A POSTROUTING -s 172.31.16.0/24 -j RETURN\n-A POSTROUTING -j MASQUERADE",
                None,
            ),
            // ip-masq-agent's.
            (
                "-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ\n\
                 -A IP-MASQ -d 10.0.0.0/8 -j RETURN\n-A IP-MASQ -j MASQUERADE",
                Some((2, false)),
            ),
            (
                "-A POSTROUTING -j A\n-A POSTROUTING -j MASQUERADE\n-A A -o ens5 -j ACCEPT",
                None,
            ),
            (
                "-A POSTROUTING -g A\n-A POSTROUTING -j MASQUERADE\n-A A -o ens6 -j ACCEPT",
                None,
            ),
            (
                "-A POSTROUTING -j A\n-A A -j B\n-A A -j MASQUERADE\n-A B -o ens5 -j RETURN",
                Some((2, true)),
            ),
            ("-A POSTROUTING -j LOOP\n-A LOOP -j LOOP", None),
        ];
        for (rules, expected) in cases {
            let lines: Vec<&str> = rules.lines().map(str::trim).collect();
            let expected: Vec<_> = expected
                .map(|(line, all)| (all, format!("-t nat {}", lines[line])))
                .into_iter()
                .collect();
            assert_eq!(caught(&lines.join("\n")), expected, "{rules}");
        }
    }

    #[test]
    fn what_drops_half_seen_connections_is_found() {
        let invalid = Packet {
            state: "INVALID",
            ..POD
        };
        for (rules, found) in [
            ("-A OUTPUT -m conntrack --ctstate INVALID -j DROP", true),
            (
                "-A OUTPUT -m state --state INVALID,UNTRACKED -j REJECT",
                true,
            ),
            (
                "-A OUTPUT -j F\n-A F -p tcp -m conntrack --ctstate INVALID -j DROP",
                true,
            ),
            (
                "-A OUTPUT -s 172.31.0.0/16 -j ACCEPT\n-A OUTPUT -m state --state INVALID -j DROP",
                false,
            ),
            ("-A OUTPUT -d 10.0.0.1/32 -j DROP", false),
            ("-A INPUT -m conntrack --ctstate INVALID -j DROP", false),
        ] {
            let ruleset = Ruleset::parse(&format!("*filter\n{rules}\nCOMMIT\n"));
            assert_eq!(!ruleset.drops(&invalid).is_empty(), found, "{rules}");
        }
    }
}
