//! What a ledger reports, in words for the log and for Events.

use std::fmt;

use ebbtide_types::Mac;
use ipnet::IpNet;
use serde::Serialize;

/// What a view changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "change")]
pub enum Change {
    /// A NIC is told for the first time, or again after it was gone.
    NicNew {
        /// The NIC.
        mac: Mac,
        /// The cloud's name of it.
        id: String,
    },
    /// A NIC is told no more. Its usable blocks are reported as held as well.
    NicGone {
        /// The NIC.
        mac: Mac,
        /// The cloud's name of it.
        id: String,
    },
    /// New pods may have addresses of the block.
    Usable {
        /// The NIC.
        mac: Mac,
        /// The cloud's name of it.
        id: String,
        /// The block.
        block: IpNet,
    },
    /// The block is told no more: pods keep their addresses of it, nobody else gets one.
    Held {
        /// The NIC.
        mac: Mac,
        /// The cloud's name of it.
        id: String,
        /// The block.
        block: IpNet,
    },
    /// A block that was withdrawn has been told for long enough again: it is usable.
    Returned {
        /// The NIC.
        mac: Mac,
        /// The cloud's name of it.
        id: String,
        /// The block.
        block: IpNet,
    },
    /// A block that is neither told nor used any more is not remembered any longer.
    Forgotten {
        /// The NIC.
        mac: Mac,
        /// The cloud's name of it.
        id: String,
        /// The block.
        block: IpNet,
    },
}

impl Change {
    /// Returns the NIC, with the cloud's name of it.
    #[must_use]
    pub fn nic(&self) -> (Mac, &str) {
        match self {
            Self::NicNew { mac, id }
            | Self::NicGone { mac, id }
            | Self::Usable { mac, id, .. }
            | Self::Held { mac, id, .. }
            | Self::Returned { mac, id, .. }
            | Self::Forgotten { mac, id, .. } => (*mac, id),
        }
    }

    /// Returns the block that it is about.
    #[must_use]
    pub const fn block(&self) -> Option<IpNet> {
        match self {
            Self::NicNew { .. } | Self::NicGone { .. } => None,
            Self::Usable { block, .. }
            | Self::Held { block, .. }
            | Self::Returned { block, .. }
            | Self::Forgotten { block, .. } => Some(*block),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mac, id) = self.nic();
        match id {
            "" => write!(f, "NIC {mac}"),
            id => write!(f, "NIC {id} ({mac})"),
        }?;
        match self {
            Self::NicNew { .. } => f.write_str(" is there"),
            Self::NicGone { .. } => f.write_str(" is gone"),
            Self::Usable { block, .. } => write!(f, ": {block} can be given to pods"),
            Self::Held { block, .. } => write!(
                f,
                ": the cloud does not tell {block} any more; pods keep what they have of it, new ones get none"
            ),
            Self::Returned { block, .. } => {
                write!(f, ": {block} is back, and can be given to pods again")
            }
            Self::Forgotten { block, .. } => {
                write!(
                    f,
                    ": {block} is forgotten, the cloud took it away and no pod has it"
                )
            }
        }
    }
}

/// A block that was usable and is not told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The block.
    pub block: IpNet,
    /// For how many seconds it was not told, as far as this process knows.
    pub absent_for: u64,
}

/// A block that is told and not usable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// The block.
    pub block: IpNet,
    /// The reason.
    pub reason: Reason,
}

/// The reason why a told block is not usable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "why")]
pub enum Reason {
    /// It is new.
    #[serde(rename_all = "camelCase")]
    New {
        /// How long it has to be told yet, at least.
        seconds_left: u64,
    },
    /// It was withdrawn before.
    #[serde(rename_all = "camelCase")]
    Returning {
        /// How long it has to be told yet, at least.
        seconds_left: u64,
    },
    /// Another NIC of this node is told to have it, too.
    AlsoOn {
        /// That NIC.
        mac: Mac,
    },
    /// Another NIC of this node had it, and pods have addresses of it by that one.
    UsedOn {
        /// That NIC.
        mac: Mac,
    },
}

impl Reason {
    /// Returns how long it takes yet, at least; none where that depends on something else.
    #[must_use]
    pub const fn seconds_left(&self) -> Option<u64> {
        match self {
            Self::New { seconds_left } | Self::Returning { seconds_left } => Some(*seconds_left),
            Self::AlsoOn { .. } | Self::UsedOn { .. } => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New { seconds_left } => {
                write!(
                    f,
                    "new; usable when it has been told twice, {seconds_left} s from now at the earliest"
                )
            }
            Self::Returning { seconds_left } => write!(
                f,
                "told again after the cloud had taken it away; usable if it is told for {seconds_left} s more"
            ),
            Self::AlsoOn { mac } => {
                write!(
                    f,
                    "the cloud tells it of NIC {mac}, too; usable when only one has it"
                )
            }
            Self::UsedOn { mac } => write!(
                f,
                "pods have addresses of it by NIC {mac}, which had it before; usable when they are gone"
            ),
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.block, self.reason)
    }
}
