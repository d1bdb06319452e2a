//! What a scrape tells, as plain data.

use std::time::Duration;

use ebbtide_kernel::datapath::{HOST_PROGRAMS, Limited};
use ebbtide_kube::calls::Answer;
use ebbtide_layout::{Counters, Spoofed};

use super::{Process, totals::ByNic};

/// Everything that is read at the moment of a scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The release.
    pub version: String,
    /// This process.
    pub process: Process,
    /// The node, if this is an agent.
    pub node: Option<NodeState>,
    /// Whether this controller is the elected one, if it is one.
    pub leads: Option<bool>,
    /// What the API server was asked: verb, answer, number.
    pub api_calls: Vec<(&'static str, Answer, u64)>,
}

/// An agent's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// Whether requests of the plugin are answered.
    pub is_ready: bool,
    /// Whether plugin and configuration are on the host as they should be.
    pub is_installed: bool,
    /// The pools that serve this node.
    pub pools: Vec<PoolState>,
    /// The number of pods' interfaces by kind.
    pub interfaces: Vec<(InterfaceKind, u64)>,
    /// Those that ran before the agent and are not reconciled yet.
    pub not_reconciled: u64,
    /// Pods' addresses that the node takes for its own.
    pub addresses_on_node: u64,
    /// What is wrong with what was declared.
    pub problems: Problems,
    /// The reconciler.
    pub queue: QueueState,
    /// The programs at the NICs.
    pub nics: Vec<OnNic>,
    /// The programs in pods; `None` if the kernel did not let them be read.
    pub pods: Option<InPods>,
    /// What was dropped since pods were first limited, for their bandwidth; `None` as above.
    pub limited: Option<Limited>,
    /// The table of flows; `None` as above.
    pub flows: Option<FlowTable>,
    /// The cloud's metadata, if there is a cloud.
    pub cloud: Option<CloudState>,
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolState {
    /// Its name.
    pub name: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// All addresses that it may hand out.
    pub capacity: u128,
    /// Those that can be handed out now.
    pub free: u128,
    /// Those that pods have.
    pub used: u128,
    /// Those that were released a moment ago.
    pub cooldown: u128,
    /// Those that the node or a router has.
    pub withheld: u128,
    /// Whether it hands out no new addresses.
    pub is_disabled: bool,
}

/// Who made an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceKind {
    /// Ebbtide.
    Ipvlan,
    /// Another plugin.
    Chained,
}

impl InterfaceKind {
    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipvlan => "ipvlan",
            Self::Chained => "chained",
        }
    }
}

/// What is wrong with declared objects, and with networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Objects that are not in use.
    pub left_out: u64,
    /// Objects in use without a field.
    pub field_ignored: u64,
    /// Objects in use without some of their addresses.
    pub narrowed: u64,
    /// Networks that want another mode than their NIC has.
    pub other_mode: u64,
}

/// The reconciler's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Items that are due, or in work.
    pub length: u64,
    /// How long the first of those that are due has waited.
    pub oldest: Duration,
    /// Whether the node is not in the desired state, in spite of attempts.
    pub node_fails: bool,
    /// The number of containers of which the same is true.
    pub failing_containers: u64,
    /// How long the first of them has failed.
    pub failing_for: Duration,
    /// How often the node was compared: in the desired state, locked, failed.
    pub of_node: [u64; 3],
    /// How often containers were.
    pub of_containers: [u64; 3],
}

/// What the programs at a NIC, and at veths by the NIC of their traffic, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnNic {
    /// The NIC's name.
    pub name: String,
    /// By program, as [`HOST_PROGRAMS`].
    pub programs: [Counters; HOST_PROGRAMS.len()],
    /// Packets that would have left by this NIC with another one's address, and were redirected.
    pub wrong_redirected: u64,
    /// Those that left by it.
    pub wrong_passed: u64,
}

/// What the programs in pods counted since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InPods {
    /// By NIC and program, as [`PROGRAMS`](ebbtide_kernel::datapath::PROGRAMS).
    pub programs: ByNic,
    /// What the spoof guard dropped.
    pub spoofed: Spoofed,
    /// What was dropped since it was for a cloud's metadata service.
    pub to_metadata: Spoofed,
}

/// How full the table of flows is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTable {
    /// The flows.
    pub flows: u64,
    /// The buckets that they are in.
    pub buckets: u64,
}

/// What is known of the cloud's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloudState {
    /// The number of NICs whose metadata networks or pods want.
    pub wanted: u64,
    /// When it was last read whole, in seconds since 1970.
    pub last_read: Option<u64>,
    /// How often on end it could not be read.
    pub failures: u64,
    /// What is assigned to each NIC.
    pub nics: Vec<CloudBlocks>,
    /// Addresses of pods that the cloud does not tell any more.
    pub withdrawn: u64,
}

/// Addresses and prefixes that the cloud assigned to a NIC, by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloudBlocks {
    /// The link's name; the MAC of one that is not there.
    pub nic: String,
    /// Pods may have them.
    pub usable: u64,
    /// They are not told any more.
    pub held: u64,
    /// They are not believed yet.
    pub waiting: u64,
}
