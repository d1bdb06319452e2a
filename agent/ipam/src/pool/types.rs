//! The values that go in and out.

use std::{fmt, net::IpAddr};

use ebbtide_types::{Family, ObjectName};
use serde::{Deserialize, Serialize};

use super::{PodRef, Record, Reservation, Subject};
use crate::catalog::{Catalog, Route};

/// Who has an address: one CNI attachment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The name of the CNI network configuration.
    pub network: String,
    /// The runtime's id of the sandbox.
    pub container_id: String,
    /// The interface in the pod.
    pub interface: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of container {} in network {}",
            self.interface, self.container_id, self.network
        )
    }
}

/// One address and what belongs to it, as the pool had it when it was assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The address.
    pub address: IpAddr,
    /// The length of the pool's subnet, in bits.
    pub prefix_len: u8,
    /// The pool's name.
    pub pool: String,
    /// The pool's gateway; none also where an annotation turns the default route off.
    pub gateway: Option<IpAddr>,
    /// The pool's routes, and those of the pod's annotation whose gateway is in the subnet.
    pub routes: Vec<Route>,
}

/// Addresses that an owner has, written on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Who has them.
    pub owner: Owner,
    /// The pod whose sandbox that is; none where there is no Kubernetes.
    pub pod: Option<PodRef>,
    /// At most one of each family, IPv4 first.
    pub assigned: Vec<Assigned>,
    /// What the owner wants to be remembered with them.
    pub record: Record,
    /// When they were assigned: seconds since 1970 by the wall clock.
    pub since: u64,
    /// Whether they wait for the pod's next sandbox when this one is gone.
    pub sticky: bool,
}

/// What is known of one address on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Who has it.
    pub holder: Option<Owner>,
    /// What that owner has on disk; none while its first request is under way.
    pub allocation: Option<Allocation>,
    /// For whom it waits, if no sandbox has it.
    pub reservation: Option<Reservation>,
    /// When it was released, if nobody has had it since: seconds since 1970.
    pub released_at: Option<u64>,
    /// In how many milliseconds it may be handed out again; 0 if it does not rest.
    pub cooldown_for: u64,
    /// Why nobody new gets it, if that is so.
    pub withheld: Option<String>,
    /// Who had it before, the latest first, since the agent started.
    pub past: Vec<super::Past>,
}

/// Where the candidate pools come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// All pools with `default: true`.
    Defaults,
    /// Pools by name or by pattern (`*`, `?`, `[a-c]`), in order of preference.
    Named {
        /// For the IPv4 address.
        ipv4: &'a [String],
        /// For the IPv6 address.
        ipv6: &'a [String],
    },
}

/// Which families the configuration allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}

impl Default for Families {
    fn default() -> Self {
        Self {
            ipv4: true,
            ipv6: true,
        }
    }
}

impl Families {
    pub(super) const fn allow(self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

/// A wish for addresses, with all facts that decide on it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks.
    pub owner: &'a Owner,
    /// The node's name.
    pub node: &'a str,
    /// The network that the interface belongs to; none if it was configured without a name.
    pub network: Option<&'a ObjectName>,
    /// The pod, its namespace and the node's labels, as far as they are known. Annotations win
    /// over `source`.
    pub subject: &'a Subject,
    /// Where the candidates come from.
    pub source: Source<'a>,
    /// The annotation that they come from; filled in by [`super::Pools::reserve`].
    pub annotation: Option<&'static str>,
    /// Which families are allowed at all.
    pub families: Families,
    /// Addresses that it is to have and no others, one of a family at most. A family that is not
    /// among them is served from the candidates as ever.
    pub requested_addresses: &'a [IpAddr],
    /// The pools there are.
    pub catalog: &'a Catalog,
}

const NOBODY: &Subject = &Subject::UNKNOWN;

impl<'a> Request<'a> {
    /// A wish for addresses of the default pools, whatever families they have.
    #[must_use]
    pub fn new(owner: &'a Owner, node: &'a str, catalog: &'a Catalog) -> Self {
        Self {
            owner,
            node,
            network: None,
            subject: NOBODY,
            source: Source::Defaults,
            annotation: None,
            families: Families::default(),
            requested_addresses: &[],
            catalog,
        }
    }
}
