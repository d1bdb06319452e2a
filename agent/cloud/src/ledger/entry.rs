//! What is remembered of one block of a NIC.

use ebbtide_types::Mac;
use serde::{Deserialize, Serialize};

use super::{FORGET, READS, RETURN, Reason, SETTLE};

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// Told, and new.
    Fresh,
    /// Told, and new pods may have addresses of it.
    Usable,
    /// Not told any more: a tombstone.
    Withdrawn,
    /// Told again after it was withdrawn: a ghost, perhaps.
    Returning,
}

impl State {
    pub(super) const fn is_waiting(self) -> bool {
        matches!(self, Self::Fresh | Self::Returning)
    }
}

/// Another NIC's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It is told there, too.
    AlsoOn(Mac),
    /// It was there, and pods have addresses of it by that NIC.
    UsedOn(Mac),
}

/// What is remembered of one block. Counts are of this process: a restart begins them anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) state: State,
    /// Whether it ever was usable, so that pods may have addresses of it.
    pub(super) was_usable: bool,
    /// Whether it became usable on another NIC after it was withdrawn from this one: its pods are that one's.
    pub(super) is_superseded: bool,
    /// In how many reads on end it was told while it waits.
    #[serde(skip)]
    reads: u32,
    /// For how many seconds on end it was told while it waits.
    #[serde(skip)]
    told_for: u64,
    /// For how many seconds on end it was not told.
    #[serde(skip)]
    pub(super) absent_for: u64,
    #[serde(skip)]
    pub(super) obstacle: Option<Obstacle>,
}

impl Entry {
    /// A block that was told for the first time.
    pub(super) const fn new() -> Self {
        Self {
            state: State::Fresh,
            was_usable: false,
            is_superseded: false,
            reads: 1,
            told_for: 0,
            absent_for: 0,
            obstacle: None,
        }
    }

    /// Counts a read that tells it, this number of seconds after the read before.
    pub(super) fn told(&mut self, passed: u64) {
        match self.state {
            State::Usable => {}
            State::Fresh | State::Returning => {
                if self.reads > 0 {
                    self.told_for = self.told_for.saturating_add(passed);
                }
                self.reads = self.reads.saturating_add(1);
            }
            State::Withdrawn => {
                self.state = State::Returning;
                (self.reads, self.told_for, self.absent_for) = (1, 0, 0);
            }
        }
    }

    /// Counts a read that does not tell it. True: it was usable, and is held from now on.
    pub(super) fn absent(&mut self, passed: u64) -> bool {
        if self.state == State::Withdrawn {
            self.absent_for = self.absent_for.saturating_add(passed);
            return false;
        }
        let was_usable = self.state == State::Usable;
        self.state = State::Withdrawn;
        self.absent_for = 0;
        self.obstacle = None;
        self.begin_anew();
        was_usable
    }

    /// What was told so far proves nothing any more.
    pub(super) const fn begin_anew(&mut self) {
        (self.reads, self.told_for) = (0, 0);
    }

    const fn needed(&self) -> u64 {
        match self.state {
            State::Returning => RETURN,
            _ => SETTLE,
        }
    }

    pub(super) const fn has_proved_itself(&self) -> bool {
        self.reads >= READS && self.told_for >= self.needed()
    }

    pub(super) fn become_usable(&mut self) {
        self.state = State::Usable;
        self.was_usable = true;
        self.is_superseded = false;
        self.begin_anew();
    }

    /// Whether it may be forgotten, if nobody uses it.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.state, State::Withdrawn) && self.absent_for >= FORGET
    }

    /// Returns why it waits.
    pub(super) const fn reason(&self) -> Reason {
        let seconds_left = self.needed().saturating_sub(self.told_for);
        match (self.obstacle, self.state) {
            (Some(Obstacle::AlsoOn(mac)), _) => Reason::AlsoOn { mac },
            (Some(Obstacle::UsedOn(mac)), _) => Reason::UsedOn { mac },
            (None, State::Returning) => Reason::Returning { seconds_left },
            (None, _) => Reason::New { seconds_left },
        }
    }
}
