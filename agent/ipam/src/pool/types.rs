//! The input and output types of the pools.

use std::{fmt, net::IpAddr};

use ebbtide_types::{Family, ObjectName};
use serde::{Deserialize, Serialize};

use super::{PodRef, Record, Reservation, Subject};
use crate::catalog::{Catalog, Route};

/// The owner of an address: one CNI attachment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The name of the CNI network configuration.
    pub network: String,
    /// The sandbox's container ID, from the runtime.
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

/// One assigned address, with the pool's settings at the time of assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The address.
    pub address: IpAddr,
    /// The length of the pool's subnet, in bits.
    pub prefix_len: u8,
    /// The pool's name.
    pub pool: String,
    /// The pool's gateway; none also where an annotation disables the default route.
    pub gateway: Option<IpAddr>,
    /// The pool's routes, and those routes of the pod's annotation whose gateway is in the subnet.
    pub routes: Vec<Route>,
}

/// The addresses of one owner, as stored on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The owner.
    pub owner: Owner,
    /// The pod of that sandbox; none without Kubernetes.
    pub pod: Option<PodRef>,
    /// At most one of each family, IPv4 first.
    pub assigned: Vec<Assigned>,
    /// Opaque data that the owner stores with them.
    pub record: Record,
    /// The time of assignment: seconds since 1970 by the wall clock.
    pub since: u64,
    /// Whether they are reserved for the pod's next sandbox when this one is removed.
    pub sticky: bool,
}

/// The state of one address on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressStatus {
    /// The current owner.
    pub holder: Option<Owner>,
    /// That owner's allocation on disk; none while its first request is in flight.
    pub allocation: Option<Allocation>,
    /// The reservation of the address, if no sandbox has it.
    pub reservation: Option<Reservation>,
    /// The time of its release, if it was not taken since: seconds since 1970.
    pub released_at: Option<u64>,
    /// The rest of its cooldown in milliseconds; 0 if it does not cool down.
    pub cooldown_for: u64,
    /// The reason why it is withheld, if it is.
    pub withheld: Option<String>,
    /// Its earlier owners since the agent's start, the latest first.
    pub past: Vec<super::Past>,
}

/// The source of the candidate pools.
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

/// The address families that the configuration allows.
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

/// A request for addresses, with all facts that decide on it.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::pool::{Options, Owner, Pools, Request, Reserved, Source};
///
/// # let pools = "
/// # apiVersion: spiderpool.spidernet.io/v2beta1
/// # kind: SpiderIPPool
/// # metadata: {name: ens5-v4}
/// # spec: {default: true, subnet: 10.0.0.0/24, ips: [10.0.0.5-10.0.0.6]}
/// # ";
/// # let catalog = ebbtide_ipam::catalog::Catalog::from_texts([("pools.yaml".as_ref(), pools)]);
/// # let directory = tempfile::tempdir()?;
/// # let pools = Pools::open(directory.path(), Options::default())?;
/// # let owner = Owner { network: "pods".into(), container_id: "4f1c".into(), interface: "eth0".into() };
/// // One address by name, of pools whose names match.
/// let request = Request {
///     source: Source::Named { ipv4: &["ens5-*".into()], ipv6: &[] },
///     requested_addresses: &["10.0.0.6".parse()?],
///     ..Request::new(&owner, "node1", &catalog)
/// };
/// let Reserved::New(grant) = pools.reserve(&request)? else {
///     unreachable!("it has no addresses yet")
/// };
/// assert_eq!(grant.assigned()[0].address.to_string(), "10.0.0.6");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The owner that requests them.
    pub owner: &'a Owner,
    /// The node's name.
    pub node: &'a str,
    /// The network of the interface; none if it was configured without a name.
    pub network: Option<&'a ObjectName>,
    /// The pod, its namespace and the node's labels, as far as known. Annotations win over `source`.
    pub subject: &'a Subject,
    /// The source of the candidates.
    pub source: Source<'a>,
    /// The NIC whose addresses from the cloud's metadata alone are candidates: all of them, or those that `source`
    /// names. None: declared pools alone are.
    pub metadata: Option<&'a str>,
    /// The annotation that names the candidates; set by [`super::Pools::reserve`].
    pub annotation: Option<&'static str>,
    /// The families that are allowed.
    pub families: Families,
    /// The requested addresses, at most one of a family: the request gets these or fails. A family
    /// that is not among them is served from the candidates.
    pub requested_addresses: &'a [IpAddr],
    /// The declared pools.
    pub catalog: &'a Catalog,
}

const NOBODY: &Subject = &Subject::UNKNOWN;

impl<'a> Request<'a> {
    /// A request for addresses of the default pools, whatever families they have.
    #[must_use]
    pub fn new(owner: &'a Owner, node: &'a str, catalog: &'a Catalog) -> Self {
        Self {
            owner,
            node,
            network: None,
            subject: NOBODY,
            source: Source::Defaults,
            metadata: None,
            annotation: None,
            families: Families::default(),
            requested_addresses: &[],
            catalog,
        }
    }
}
