//! The errors of the pools, with messages that say what a person can do.

use std::{fmt, io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use ebbtide_types::{Family, NetworkRef, format::BACK};

use super::{Owner, withheld};
use crate::catalog::DerivedNote;

/// A request that failed. Nothing was taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    /// No pool serves this node and network.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// An annotation is invalid.
    #[error(transparent)]
    Annotation(#[from] BadAnnotation),
    /// Every pool that serves this node and network is used up.
    #[error(transparent)]
    Full(#[from] Full),
    /// A requested address is unavailable.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Another request of the same owner is in flight. It is not waited for: try again later.
    #[error("{doing} {owner} is still under way; try again in a moment")]
    Busy {
        /// The owner.
        owner: Owner,
        /// What is in flight, as in "adding".
        doing: &'static str,
    },
    /// A request that changes the pod's reservation is in flight. It is not waited for.
    #[error("the reservation of pod {0} is being changed; try again in a moment")]
    ReservationBusy(String),
    /// An address cannot be adopted for the pod.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The owner has no allocation.
    #[error("{owner} has no address here; add it first")]
    NotHeld {
        /// The owner.
        owner: Owner,
    },
    /// The writer thread has died; a bug, reported in the log where it happened.
    #[error("the journal's writer thread has ended (see the log); restart the agent")]
    WriterDied,
    /// An allocation could not be serialized as JSON; a bug.
    #[error(
        "an allocation could not be put into JSON: {0}; this is a defect of the agent: please report it"
    )]
    Encode(Arc<serde_json::Error>),
    /// A change could not be written to disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An address that cannot be adopted for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "reserve {address} for pod {pod}: it {with}; see `ebbtidectl ip {address}`, and release one of the two"
)]
pub struct Conflict {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// The address.
    pub address: IpAddr,
    /// The conflict, as a predicate.
    pub with: String,
}

/// A requested address that is unavailable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the requested address {address} is not available: {reason}")]
pub struct Unavailable {
    /// The address.
    pub address: IpAddr,
    /// The reason, as a sentence.
    pub reason: String,
}

/// Addresses that this node cannot withdraw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Addresses that pods have or that are reserved for pods.
    pub held: Vec<IpAddr>,
    /// Addresses in cooldown: another node must not hand them out yet either.
    pub in_cooldown: Vec<IpAddr>,
}

impl std::error::Error for InUse {}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = (self.held.iter().chain(&self.in_cooldown))
            .take(5)
            .map(ToString::to_string)
            .collect();
        let (held, in_cooldown) = (self.held.len(), self.in_cooldown.len());
        let more = if held + in_cooldown > all.len() {
            "..."
        } else {
            ""
        };
        write!(
            f,
            "{held} of these addresses are in use and {in_cooldown} are in cooldown ({}{more}); \
             release them, or try again when they are free",
            all.join(", ")
        )
    }
}

/// An invalid annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: annotation {annotation} = {value:?} {reason}; {remedy}")]
pub struct BadAnnotation {
    /// The annotated object, as in `pod web-0`.
    pub object: String,
    /// The annotation's name.
    pub annotation: &'static str,
    /// The annotation's value.
    pub value: String,
    /// What is wrong with the value.
    pub reason: String,
    /// What the person can do.
    pub remedy: &'static str,
}

/// No pool serves this node and network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAddress {
    /// The family that was requested and has no pool; none: no family has any.
    pub family: Option<Family>,
    /// The node.
    pub node: String,
    /// The network.
    pub network: Option<String>,
    /// The annotation that names the candidates, if one does.
    pub annotation: Option<&'static str>,
    /// The NIC whose addresses from the cloud's metadata alone were candidates, if it was so.
    pub metadata: Option<Box<NoMetadata>>,
    /// Each candidate and the reason why it was passed over.
    pub candidates: Vec<(String, PassedOver)>,
}

/// A NIC of whose metadata a request has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoMetadata {
    /// Its name on this node.
    pub link: String,
    /// The pools that it has nevertheless: the request names others.
    pub pools: Vec<String>,
    /// What is known of the reason, if it has none.
    pub note: Option<DerivedNote>,
}

impl NoMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, pools, note } = self;
        match note {
            _ if !pools.is_empty() => write!(
                f,
                "the addresses of NIC {link} on this node are in pool {}. Name that one, or none",
                pools.join(" and pool ")
            ),
            None => write!(
                f,
                "the metadata service has told of no NIC {link}. See that the NIC is there and what the agent's setting \
                 `cloud` is, or declare pools (SpiderIPPool) and use them instead of the metadata"
            ),
            Some(DerivedNote { reason, more, .. }) if more.is_empty() => f.write_str(reason),
            Some(DerivedNote { reason, more, .. }) => write!(f, "{reason}. Assign some: {more}"),
        }
    }
}

impl std::error::Error for NoAddress {}

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = self.metadata.as_ref().map(|metadata| &metadata.link);
        let pool = match (link, self.family) {
            (Some(link), None) => format!("no address of NIC {link}"),
            (Some(link), Some(family)) => format!("no {family} address of NIC {link}"),
            (None, Some(family)) => format!("no {family} pool"),
            (None, None) => "no pool".to_owned(),
        };
        write!(f, "{pool} serves node {:?}", self.node)?;
        match &self.network {
            Some(network) => write!(f, " and network {network}")?,
            None => f.write_str(" and a network without a name")?,
        }
        if let Some(annotation) = self.annotation {
            write!(f, " (pools named by annotation {annotation})")?;
        }
        let mut separator = ": ";
        for (pool, reason) in &self.candidates {
            write!(f, "{separator}pool {pool} {reason}")?;
            separator = "; ";
        }
        if let Some(metadata) = &self.metadata {
            f.write_str(separator)?;
            return metadata.fmt(f);
        }
        if self.candidates.is_empty() {
            f.write_str(": no pool is declared")?;
        }
        f.write_str(
            ". Declare a SpiderIPPool with `default: true` for this node (nodeName) and network \
             (multusName), or correct one of these",
        )
    }
}

/// The reason why a pool was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassedOver {
    /// No valid pool of this name is declared.
    Unknown,
    /// `disable: true`.
    Disabled,
    /// It has addresses of the other family.
    WrongFamily(Family),
    /// The configuration does not allow its family.
    FamilyOff(Family),
    /// It is for other nodes.
    WrongNode(Vec<String>),
    /// It is for other networks.
    WrongNetwork(Vec<NetworkRef>),
    /// A pattern that no pool of the family matches.
    NoMatch,
    /// It is for pods of other namespaces.
    WrongNamespace(Vec<String>),
    /// One of its selectors does not match: the field, and whose labels it selects.
    WrongLabels(&'static str, &'static str),
    /// It has a condition on unknown facts: the field, and what it checks.
    NotKnown(&'static str, &'static str),
    /// It would serve, but it is not `default: true` and nothing names it.
    NotDefault,
    /// The network takes its addresses from the metadata of this NIC, and it is not of it.
    NotOfMetadata(String),
    /// It is of this NIC's metadata, and the network takes its addresses from declared pools.
    OfMetadata(String),
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("is named but not declared, or invalid"),
            Self::Disabled => f.write_str("is disabled"),
            Self::WrongFamily(family) => write!(f, "is {family}"),
            Self::FamilyOff(family) => write!(f, "is {family}, which the configuration turns off"),
            Self::WrongNode(nodes) => write!(f, "is for node {}", nodes.join(", ")),
            Self::WrongNetwork(networks) => {
                let names: Vec<String> = networks.iter().map(ToString::to_string).collect();
                write!(f, "is for network {}", names.join(", "))
            }
            Self::NoMatch => f.write_str("is a pattern that no pool fits"),
            Self::WrongNamespace(names) => write!(f, "is for namespace {}", names.join(", ")),
            Self::WrongLabels(field, whose) => {
                write!(f, "has a {field} that the {whose}'s labels do not meet")
            }
            Self::NotKnown(field, what) => {
                write!(f, "has {field}, and the agent does not know {what}")
            }
            Self::NotOfMetadata(link) => write!(
                f,
                "is none of the metadata of NIC {link}, from which alone the network takes its addresses"
            ),
            Self::OfMetadata(link) => write!(
                f,
                "is of the metadata of NIC {link}, for networks with ebbtide.io/addresses alone"
            ),
            Self::NotDefault => {
                f.write_str("is not `default: true` and the network does not name it")
            }
        }
    }
}

/// Every pool that serves this node and network is used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    /// The family that could not be served.
    pub family: Family,
    /// Its pools in the order in which they were tried.
    pub pools: Vec<FullPool>,
    /// The other candidates, and why they were not tried.
    pub passed_over: Vec<(String, PassedOver)>,
    /// The command that assigns another address to the pools' NIC, or an empty text; none for declared pools.
    pub more: Option<String>,
}

/// A pool that is used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullPool {
    /// Its name.
    pub pool: String,
    /// The number of addresses that it may hand out.
    pub total: u128,
    /// The number of held addresses.
    pub used: u64,
    /// The number of addresses that cool down after their release.
    pub in_cooldown: u64,
    /// The time until the first of those is free again.
    pub next_free: Option<Duration>,
    /// The addresses withheld for now, and why.
    pub withheld: Vec<(IpAddr, String)>,
    /// The number of addresses that nobody holds and that are asked back.
    pub asked_back: u128,
}

impl std::error::Error for Full {}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no free {} address", self.family)?;
        let mut separator = ": ";
        for pool in &self.pools {
            write!(
                f,
                "{separator}pool {} has {} of {} in use, {} cooling down",
                pool.pool, pool.used, pool.total, pool.in_cooldown
            )?;
            if let Some(wait) = pool.next_free {
                write!(
                    f,
                    " (the next one free in {} s)",
                    wait.as_millis().div_ceil(1000)
                )?;
            }
            if !pool.withheld.is_empty() {
                let (count, names) = (pool.withheld.len(), withheld::named(&pool.withheld));
                write!(f, ", {count} not given out ({names})")?;
            }
            if pool.asked_back > 0 {
                write!(
                    f,
                    ", {} asked back by the cloud controller",
                    pool.asked_back
                )?;
            }
            separator = "; ";
        }
        for (pool, reason) in &self.passed_over {
            write!(f, "; pool {pool} {reason}")?;
        }
        match self.more.as_deref() {
            None => f.write_str(
                ". Delete pods, wait, or add addresses (spec.ips) or a pool for this node",
            ),
            Some("") => f.write_str(". Delete pods, wait, or assign more addresses to the NIC"),
            Some(more) => write!(
                f,
                ". Delete pods, wait, or assign more addresses to the NIC: {more}"
            ),
        }
    }
}

/// A change that could not be written to disk. It did not happen: the caller still has what it had before.
#[derive(Debug, Clone, thiserror::Error)]
#[error("writing {path}: {source}; see that the file system has space and works, then try again", path = .path.display())]
pub struct StoreError {
    /// The store's file.
    pub path: PathBuf,
    /// The error of the store or the disk.
    pub source: Arc<io::Error>,
}

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by another agent; stop that one, or give this one a --state-dir of its own", path = .path.display())]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error(
        "{path} is damaged: {detail}; move it aside, drain the node or delete its pods (their addresses are not known any more), then start again",
        path = .path.display()
    )]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What is wrong in it.
        detail: String,
    },
    /// Another version of the agent wrote it.
    #[error("{path} has schema version {found}, this agent knows {supported}: {BACK}", path = .path.display())]
    Schema {
        /// The store's file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version that this code reads and writes.
        supported: u64,
    },
    /// The file system or the store failed otherwise.
    #[error("opening {path}: {detail}; see that the directory is writable and has space", path = .path.display())]
    Failed {
        /// The store's file or directory.
        path: PathBuf,
        /// The error.
        detail: String,
    },
}
