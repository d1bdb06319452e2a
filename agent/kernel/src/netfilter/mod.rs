//! Determines what foreign firewall rules do to pods' packets.
//!
//! Packets that pods send by their NIC pass, in l3 mode, the host's OUTPUT and POSTROUTING. In every mode those over a
//! pod's veth pass FORWARD, if they are forwarded, or INPUT, if they are for the node. The rules are read as text, by
//! `iptables-save` and its variants and by `nft` where they are installed: legacy rules cannot be read by netlink at
//! all, those of nf_tables have a binary format for each extension, and the text is what the rule's owner will
//! recognise.

mod nft;
mod packet;
mod rule;

use std::collections::{HashMap, HashSet};

pub use packet::{Hook, Packet, Protocol};
pub use rule::{Fit, Rule};

use ebbtide_types::Family;

/// The name of a table (for nft prefixed with the family), and of a chain in it.
type Chain = (String, String);

/// The rules of one family, by table and chain.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::netfilter::{Packet, Ruleset};
///
/// let rules = Ruleset::parse("*nat\n-A POSTROUTING -o ens5 -j MASQUERADE\nCOMMIT\n");
/// let pod = "172.31.16.4".parse()?;
/// let caught = rules.masquerades(&Packet::sent(pod, "ens5", "NEW"));
/// assert_eq!(caught[0].rule, "-t nat -A POSTROUTING -o ens5 -j MASQUERADE");
/// assert!(rules.masquerades(&Packet::sent(pod, "ens6", "NEW")).is_empty());
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    chains: HashMap<Chain, Vec<Rule>>,
    /// Base chains for source translation.
    translating: Vec<Chain>,
    /// Base chains for packets that leave the host.
    leaving: Vec<Chain>,
    /// Base chains for packets that the host forwards.
    forwarding: Vec<Chain>,
    /// Base chains for packets to the host.
    entering: Vec<Chain>,
    /// Those of these chains with the policy drop.
    dropping: HashSet<Chain>,
    /// Whether the rules are nft's.
    is_nft: bool,
}

/// A rule, or the policy of a chain, that matches pods' packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The rule, as it was written.
    pub rule: String,
    /// Whether it matches all of them; else it depends on the packet and its destination.
    pub all: bool,
    /// The command that exempts the pods, with `PODS` for their addresses.
    pub remedy: String,
}

/// The result of a chain for packets.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Whether some may reach its end, or return to the calling chain.
    on: bool,
    /// Whether some may be accepted: no other rule of the table is evaluated.
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

/// Selects the rules to report. The second argument is whether the rule, or one on the path to it, picks out some of
/// the packets: those to one address or port, or with a mark.
type Catch<'a> = &'a dyn Fn(&Rule, bool) -> bool;

/// A verdict that is not known in advance.
const QUEUE: &str = "QUEUE";

/// Maximum depth of nested chains, more than anybody uses; the kernel forbids loops.
const DEPTH: usize = 32;

impl Ruleset {
    /// Parses the output of `iptables-save`. Ignores what it does not understand.
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

    /// Parses the output of `nft --json list ruleset`, for packets of this family. With `others`, leaves out the tables
    /// of iptables-nft, which `iptables-save` prints.
    ///
    /// # Errors
    /// If it is not valid JSON.
    pub fn parse_nft(json: &str, family: Family, others: bool) -> Result<Self, serde_json::Error> {
        nft::parse(json, family, others)
    }

    /// Returns the rules that translate the source address of what the pod sends.
    #[must_use]
    pub fn masquerades(&self, packet: &Packet<'_>) -> Vec<Caught> {
        let translates =
            |rule: &Rule, _| matches!(rule.target.as_str(), "MASQUERADE" | "SNAT" | "NETMAP");
        self.catch(&self.translating, packet, &translates)
    }

    /// Returns the rules that drop packets as invalid, since conntrack sees only one direction.
    #[must_use]
    pub fn drops(&self, packet: &Packet<'_>) -> Vec<Caught> {
        let drops = |rule: &Rule, _| is_drop(rule) && rule.is_about(packet.state);
        self.catch(&self.leaving, packet, &drops)
    }

    /// Returns the rules and policies that drop what the host forwards or what is for it. A rule that picks out packets
    /// by an unknown address, port or mark is meant for those and not for pods.
    #[must_use]
    pub fn blocks(&self, packet: &Packet<'_>) -> Vec<Caught> {
        let chains = match packet.hook() {
            Hook::Output => &self.leaving,
            Hook::Forward => &self.forwarding,
            Hook::Input => &self.entering,
        };
        self.catch(chains, packet, &|rule, picked| is_drop(rule) && !picked)
    }

    /// Follows the packet through base chains. If `catch` selects drops, their policies are considered, too.
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

    /// Returns a chain's policy, in the form of a rule at its end.
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

    /// Returns the command that accepts, before the rest of this chain, what pods send by the packet's NIC, or all
    /// packets over their veths.
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

    /// Follows the packet through a chain and collects the rules that `catch` selects. `all` and `picked` describe its
    /// path so far: whether all such packets take it, and whether some were picked out.
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
        // What happened to some packets, while others continued.
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
                // The queue's reader may accept it.
                "ACCEPT" | "MASQUERADE" | "SNAT" | "NETMAP" | QUEUE | "NFQUEUE" => Way::ACCEPTED,
                _ if self.chains.contains_key(&target) && depth > 0 => {
                    let here = (all_here, picked);
                    self.walk(&target, packet, here, depth - 1, catch, caught)
                }
                _ => Way::ON,
            };
            // Dropped packets are dropped for later rules, too: none is exempt from those.
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
