//! Kernel objects as plain data. A namespace's plan consists of these, and the kernel's state is read back as these, so
//! comparing and printing them needs no privileges.

use std::{fmt, net::IpAddr};

use ebbtide_types::{Family, Mac};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The protocol of Ebbtide's routes and rules (`rtm_protocol`, `FRA_PROTOCOL`): removal and repair touch no others.
/// Values above 4 (`RTPROT_STATIC`) are for daemons to choose (include/uapi/linux/rtnetlink.h).
pub const PROTOCOL: u8 = 0xeb;

/// The main routing table.
pub const MAIN_TABLE: u32 = 254;

/// The kernel's table of the namespace's own addresses (`RT_TABLE_LOCAL`, include/uapi/linux/rtnetlink.h).
pub const LOCAL_TABLE: u32 = 255;

/// Returns the network of one address alone: /32 or /128.
#[must_use]
pub fn host_net(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// Link name.
    pub link: String,
    /// Address and prefix length.
    pub address: IpNet,
    /// Whether the kernel makes no route to its subnet (`IFA_F_NOPREFIXROUTE`, include/uapi/linux/if_addr.h). An
    /// existing address is not changed.
    pub no_prefix_route: bool,
}

/// A unicast route.
///
/// # Examples
///
/// ```
/// use ebbtide_kernel::netlink::model::{MAIN_TABLE, Route};
/// use ebbtide_types::Family;
///
/// let route = Route {
///     link: "eth0".into(),
///     destination: Family::V4.everything(),
///     via: Some([10, 0, 0, 1].into()),
///     source: None,
///     table: MAIN_TABLE,
/// };
/// assert_eq!(route.to_string(), "route default via 10.0.0.1 dev eth0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Link name.
    pub link: String,
    /// Destination.
    pub destination: IpNet,
    /// Next hop; always taken to be on the link (`onlink`), whatever its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// Preferred source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Routing table.
    pub table: u32,
}

/// The packets that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Selector {
    /// Every packet.
    All,
    /// Locally generated packets (`iif lo`) whose mark has `mark` set within `mask`. Forwarded packets are left to the
    /// main table: a marked request that the pod forwards to a container of its own must not be sent back.
    LocalMark {
        /// Value.
        mark: u32,
        /// The mask.
        mask: u32,
    },
    /// Packets, local or forwarded, whose mark has `mark` set within `mask`.
    Mark {
        /// Value.
        mark: u32,
        /// The mask.
        mask: u32,
    },
    /// Packets that came in by `link`, whose mark has `mark` set within `mask`.
    InLinkMark {
        /// Name of the link.
        link: String,
        /// Value.
        mark: u32,
        /// The mask.
        mask: u32,
    },
    /// Locally generated packets (`iif lo`) with this source, whose mark has `mark` set within `mask`.
    LocalFromMark {
        /// Their source.
        from: IpNet,
        /// Value.
        mark: u32,
        /// The mask.
        mask: u32,
    },
    /// Packets from this network that came in by `link`, whose mark has `mark` set within `mask`.
    InLinkFromMark {
        /// Their source.
        from: IpNet,
        /// Name of the link.
        link: String,
        /// Value.
        mark: u32,
        /// The mask.
        mask: u32,
    },
    /// Packets from this network that must leave by this link (`oif`).
    OutLink {
        /// Their source.
        from: IpNet,
        /// Name of the link.
        link: String,
    },
    /// Packets from this address.
    From(IpAddr),
    /// All packets; the table's default route is ignored (`suppress_prefixlength 0`).
    AllButDefault,
}

/// A routing policy rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Its priority: lower values are evaluated first.
    pub priority: u32,
    /// The packets that it matches.
    pub selector: Selector,
    /// What is done with these packets.
    #[serde(flatten)]
    pub action: Action,
}

/// The action of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Looks up this table; packets without a route there continue with the next rule.
    Table(u32),
    /// Continues with the rule of this priority, which must exist: otherwise the kernel ignores this rule
    /// (`fib_rules_lookup`, net/core/fib_rules.c).
    Goto(u32),
    /// Does nothing: a target of goto.
    Nop,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => write!(f, "lookup {table}"),
            Self::Goto(priority) => write!(f, "goto {priority}"),
            Self::Nop => f.write_str("nop"),
        }
    }
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Neighbour {
    /// Link name.
    pub link: String,
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// A setting below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sysctl {
    /// Path below `/proc/sys`, with slashes.
    pub path: String,
    /// Value.
    pub value: String,
}

/// An eBPF program attached at a tc hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Filter {
    /// Link name.
    pub link: String,
    /// The direction on the link.
    pub direction: Direction,
    /// The program's name in the eBPF object.
    pub program: String,
    /// The number of the pod whose addresses alone may pass, or whose limit holds. The program receives it with each
    /// packet: it is the filter's class, of which programs see 16 bits (`tc_classid` of `struct qdisc_skb_cb`,
    /// include/net/sch_generic.h).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_from: Option<u16>,
}

impl Filter {
    /// Whether the program limits the pod's bandwidth. It has a place of its own at the hook, behind the other one.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        LIMIT_PROGRAMS.iter().any(|(name, _)| *name == self.program)
    }
}

/// The programs that limit a pod's bandwidth, and their directions.
pub const LIMIT_PROGRAMS: [(&str, Direction); 2] = [
    ("limit_egress", Direction::Egress),
    ("limit_ingress", Direction::Ingress),
];

/// The queueing discipline of a link that sends each packet when its time has come: `fq`. It replaces the kernel's default
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FairQueue {
    /// Link name.
    pub link: String,
}

/// The direction of packets on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Received on the link.
    Ingress,
    /// Sent on the link.
    Egress,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} on {}", self.address, self.link)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.destination.prefix_len() == 0 {
            f.write_str("route default")?;
        } else {
            write!(f, "route {}", self.destination)?;
        }
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", self.link)?;
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}: ", self.family, self.priority)?;
        match &self.selector {
            Selector::All | Selector::AllButDefault => f.write_str("from all")?,
            Selector::LocalMark { mark, mask } => write!(f, "fwmark {mark:#x}/{mask:#x} iif lo")?,
            Selector::Mark { mark, mask } => write!(f, "fwmark {mark:#x}/{mask:#x}")?,
            Selector::InLinkMark { link, mark, mask } => {
                write!(f, "fwmark {mark:#x}/{mask:#x} iif {link}")?;
            }
            Selector::LocalFromMark { from, mark, mask } => {
                write!(f, "from {from} fwmark {mark:#x}/{mask:#x} iif lo")?;
            }
            Selector::InLinkFromMark {
                from,
                link,
                mark,
                mask,
            } => write!(f, "from {from} fwmark {mark:#x}/{mask:#x} iif {link}")?,
            Selector::OutLink { from, link } => write!(f, "from {from} oif {link}")?,
            Selector::From(address) => write!(f, "from {address}")?,
        }
        write!(f, " {}", self.action)?;
        match &self.selector {
            Selector::AllButDefault => f.write_str(" suppress_prefixlength 0"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "neighbour {} dev {} lladdr {}",
            self.address, self.link, self.mac
        )
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl {} = {}", self.path, self.value)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "program {} at {} {}",
            self.program, self.link, self.direction
        )
    }
}

impl fmt::Display for FairQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "qdisc fq on {}", self.link)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The desired state of Ebbtide's objects in one namespace, links excepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacePlan {
    /// Sysctls, in the order in which they are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<Sysctl>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// Neighbours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
    /// Routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Queueing disciplines that pace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<FairQueue>,
}

impl NamespacePlan {
    /// Adds all objects of another plan of the same namespace.
    pub fn extend(&mut self, more: &Self) {
        self.sysctls.extend_from_slice(&more.sysctls);
        self.addresses.extend_from_slice(&more.addresses);
        self.neighbours.extend_from_slice(&more.neighbours);
        self.routes.extend_from_slice(&more.routes);
        self.rules.extend_from_slice(&more.rules);
        self.filters.extend_from_slice(&more.filters);
        self.queues.extend_from_slice(&more.queues);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_survive_their_text() {
        let mac = Mac([0x02, 0xeb, 0xb0, 0, 0, 1]);
        assert_eq!(String::from(mac), "02:eb:b0:00:00:01");
        assert_eq!(Mac::try_from(String::from(mac)), Ok(mac));
        for bad in ["", "02:eb", "02:eb:b0:00:00:01:02", "xx:eb:b0:00:00:01"] {
            assert!(Mac::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn objects_read_like_their_ip_commands() {
        let route = Route {
            link: "veth0".into(),
            destination: Family::V4.everything(),
            via: Some([169, 254, 1, 1].into()),
            source: None,
            table: 7700,
        };
        assert_eq!(
            route.to_string(),
            "route default via 169.254.1.1 dev veth0 table 7700"
        );
        let rule = Rule {
            family: Family::V6,
            priority: 1000,
            selector: Selector::LocalMark {
                mark: 0x1000,
                mask: 0x1000,
            },
            action: Action::Table(7700),
        };
        assert_eq!(
            rule.to_string(),
            "IPv6 rule 1000: fwmark 0x1000/0x1000 iif lo lookup 7700"
        );
    }

    #[test]
    fn rules_are_written_as_they_were_before_there_were_other_actions() {
        let rule = Rule {
            family: Family::V4,
            priority: 1001,
            selector: Selector::All,
            action: Action::Table(7700),
        };
        let text = r#"{"family":"v4","priority":1001,"selector":"all","table":7700}"#;
        assert_eq!(serde_json::to_string(&rule).unwrap(), text);
        assert_eq!(serde_json::from_str::<Rule>(text).unwrap(), rule);
        let other = Rule {
            action: Action::Nop,
            ..rule
        };
        let text = serde_json::to_string(&other).unwrap();
        assert_eq!(
            serde_json::from_str::<Rule>(&text).unwrap(),
            other,
            "{text}"
        );
    }
}
