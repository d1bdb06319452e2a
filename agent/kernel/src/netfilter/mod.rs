//! What others' firewall rules do to pods' packets.
//!
//! What pods send by their NIC passes, in l3 mode, the host's OUTPUT and POSTROUTING. In every mode what comes and
//! goes by a pod's veth passes FORWARD, if it is sent on, or INPUT, if it is for the node. The rules are read as text, by
//! `iptables-save` and its kin and by `nft` where they are installed: rules of the old kind cannot be
//! had by netlink at all, those of the new kind have a binary format for each extension, and the text
//! is what the rule's owner will recognise.

mod nft;
mod packet;
mod rule;

use std::collections::{HashMap, HashSet};

pub use packet::{Hook, Packet, Protocol};
pub use rule::{Fit, Rule};

use ebbtide_types::Family;

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
    /// The chains in which it begins with what the host sends on.
    forwarding: Vec<Chain>,
    /// The chains in which it begins with what is for the host.
    entering: Vec<Chain>,
    /// Of these chains, those at whose end everything is dropped.
    dropping: HashSet<Chain>,
    /// Whether they are nft's.
    is_nft: bool,
}

/// A rule, or the policy of a chain, that catches pods' packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The rule, as it was written.
    pub rule: String,
    /// Whether it catches all of it; else it depends on what is sent where.
    pub all: bool,
    /// What keeps it off the pods, where `PODS` are their addresses.
    pub remedy: String,
}

/// What becomes of packets in a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Whether some may leave by its end, or back to the chain before.
    on: bool,
    /// Whether some may be accepted: no other rule of the table is asked.
    accepted: bool,
}

impl Way {
    const ON: Self = Self {
        on: true,
        accepted: false,
    };
    const ACCEPTED: Self = Self {
        on: false,
        accepted: true,
    };
    const DROPPED: Self = Self {
        on: false,
        accepted: false,
    };
}

/// Which rules are looked for. The second says whether some of the packets are picked out for it, by the rule or on
/// the way to it: those to one address or port, with a mark.
type Catch<'a> = &'a dyn Fn(&Rule, bool) -> bool;

/// A verdict that is not known.
const QUEUE: &str = "QUEUE";

/// Deeper than anybody nests chains; the kernel forbids loops.
const DEPTH: usize = 32;

impl Ruleset {
    /// Parses what `iptables-save` prints. What is not understood is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut chains: HashMap<_, Vec<Rule>> = HashMap::new();
        let mut dropping = HashSet::new();
        let mut table = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim().to_owned();
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_whitespace();
                if let (Some(chain), Some("DROP")) = (words.next(), words.next()) {
                    dropping.insert((table.clone(), chain.to_owned()));
                }
            } else if let Some((chain, mut rule)) = Rule::parse(line) {
                rule.text = format!("-t {table} {}", rule.text);
                chains.entry((table.clone(), chain)).or_default().push(rule);
            }
        }
        let chains_of = |tables: &[&str], chain: &str| -> Vec<Chain> {
            let tables = tables.iter();
            tables
                .map(|table| ((*table).to_owned(), chain.to_owned()))
                .collect()
        };
        Self {
            chains,
            translating: chains_of(&["nat"], "POSTROUTING"),
            leaving: chains_of(&["raw", "mangle", "filter"], "OUTPUT"),
            forwarding: chains_of(&["mangle", "filter", "security"], "FORWARD"),
            entering: chains_of(&["mangle", "filter", "security"], "INPUT"),
            dropping,
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
            |rule: &Rule, _| matches!(rule.target.as_str(), "MASQUERADE" | "SNAT" | "NETMAP");
        self.catch(&self.translating, packet, &translates)
    }

    /// The rules that drop what conntrack, which sees but half of it, calls invalid.
    #[must_use]
    pub fn drops(&self, packet: &Packet<'_>) -> Vec<Caught> {
        let drops = |rule: &Rule, _| is_drop(rule) && rule.is_about(packet.state);
        self.catch(&self.leaving, packet, &drops)
    }

    /// The rules and policies that drop what the host sends on or what is for it. A rule that picks out some of what
    /// is not known here, one address, port or mark, is meant for that and not for pods.
    #[must_use]
    pub fn blocks(&self, packet: &Packet<'_>) -> Vec<Caught> {
        let chains = match packet.hook() {
            Hook::Output => &self.leaving,
            Hook::Forward => &self.forwarding,
            Hook::Input => &self.entering,
        };
        self.catch(chains, packet, &|rule, picked| is_drop(rule) && !picked)
    }

    /// Follows the packet through chains in which the kernel begins. What catches drops looks at their policies, too.
    fn catch(&self, chains: &[Chain], packet: &Packet<'_>, catch: Catch<'_>) -> Vec<Caught> {
        let mut all = Vec::new();
        for chain in chains {
            let mut caught = Vec::new();
            let way = self.walk(chain, packet, (true, false), DEPTH, catch, &mut caught);
            if way.on && self.dropping.contains(chain) {
                let policy = self.policy(chain);
                if catch(&policy, false) {
                    caught.push((policy.text, !way.accepted));
                }
            }
            all.extend(caught.into_iter().map(|(rule, all)| Caught {
                rule,
                all,
                remedy: self.remedy(chain, packet),
            }));
        }
        all
    }

    /// A chain's policy, as the rule at its end that it is.
    fn policy(&self, (table, chain): &Chain) -> Rule {
        let text = match self.is_nft {
            true => format!("nft {table} {chain}: policy drop"),
            false => format!("-t {table} -P {chain} DROP"),
        };
        Rule {
            text,
            matches: Vec::new(),
            target: "DROP".to_owned(),
            is_goto: false,
        }
    }

    /// What ends the way through this chain for what pods send by the packet's NIC, or for all that comes and goes
    /// by their veths.
    fn remedy(&self, (table, chain): &Chain, packet: &Packet<'_>) -> String {
        let nic = packet.output.unwrap_or_default();
        let (ip, iptables) = match packet.family {
            Family::V4 => ("ip", "iptables"),
            Family::V6 => ("ip6", "ip6tables"),
        };
        let option = match table.as_str() {
            "filter" => String::new(),
            table => format!("-t {table} "),
        };
        let nft = |what: String| format!("`nft insert rule {table} {chain} {what} accept`");
        let same = "in the same kind of iptables";
        match (self.is_nft, packet.hook()) {
            (true, Hook::Output) => {
                let insert = nft(format!("oifname {nic} {ip} saddr PODS"));
                format!("put {insert} before it")
            }
            (true, Hook::Forward) => {
                let (to, from) = (
                    nft(format!("{ip} daddr PODS")),
                    nft(format!("{ip} saddr PODS")),
                );
                format!("put {to} and {from} before it")
            }
            (true, Hook::Input) => {
                let insert = nft(format!("iifname \"veth*\" {ip} saddr PODS"));
                format!("put {insert} before it")
            }
            (false, Hook::Output) => {
                format!("put `-t {table} -I {chain} -o {nic} -s PODS -j ACCEPT` before it, {same}")
            }
            (false, Hook::Forward) => format!(
                "put `{iptables} {option}-I {chain} -d PODS -j ACCEPT` and `{iptables} {option}-I {chain} -s PODS \
                 -j ACCEPT` before it, {same}"
            ),
            (false, Hook::Input) => format!(
                "put `{iptables} {option}-I {chain} -i veth+ -s PODS -j ACCEPT` before it, {same}"
            ),
        }
    }

    /// Follows the packet through a chain and notes the rules that `catch` it. `all` and `picked` say how it got
    /// here: whether all such packets do, and whether some were picked out.
    fn walk(
        &self,
        chain @ (table, _): &Chain,
        packet: &Packet<'_>,
        (all, picked): (bool, bool),
        depth: usize,
        catch: Catch<'_>,
        caught: &mut Vec<(String, bool)>,
    ) -> Way {
        let mut all = all;
        // What became of some, while others went on.
        let (mut returned, mut accepted) = (false, false);
        for rule in self.chains.get(chain).into_iter().flatten() {
            let fit = rule.fits(packet);
            if fit == Fit::No {
                continue;
            }
            let all_here = all && fit == Fit::Yes;
            let picked = picked || rule.picks(packet);
            if catch(rule, picked) {
                caught.push((rule.text.clone(), all_here));
            }
            let target = (table.clone(), rule.target.clone());
            let way = match rule.target.as_str() {
                "DROP" | "REJECT" => Way::DROPPED,
                // Who takes it from a queue may accept it.
                "ACCEPT" | "MASQUERADE" | "SNAT" | "NETMAP" | QUEUE | "NFQUEUE" => Way::ACCEPTED,
                _ if self.chains.contains_key(&target) && depth > 0 => {
                    let here = (all_here, picked);
                    self.walk(&target, packet, here, depth - 1, catch, caught)
                }
                _ => Way::ON,
            };
            // What is dropped is dropped for what comes after, too: it is no way around that.
            accepted |= way.accepted;
            let returns = way.on && (rule.target == "RETURN" || rule.is_goto);
            if fit == Fit::Yes && (returns || !way.on) {
                return Way {
                    on: returned || returns,
                    accepted,
                };
            }
            returned |= returns;
            all &= !way.accepted && !returns;
        }
        Way { on: true, accepted }
    }
}

fn is_drop(rule: &Rule) -> bool {
    matches!(rule.target.as_str(), "DROP" | "REJECT")
}

#[cfg(test)]
mod tests;
