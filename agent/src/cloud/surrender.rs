//! The addresses that the cloud controller asks back: which nobody gets, and for how long. Pure.
//!
//! The controller may take an address away from a NIC once the agent has told that it is surrendered. It may do so late: a
//! controller that was paused believes what it read before. So what was asked back is given to nobody for [`KEPT`] seconds
//! after it is asked back no more and no report names it: by then the cloud refuses such a controller's request, whose
//! signature is too old. While a report names it, it may have been asked back again without the agent's having seen that.
//!
//! What is asked back is withheld first, then written to disk, then told. [`Surrender::withheld`] contains at every moment
//! what any report names that the API server may have.

use super::sets::Sets;

/// For how many seconds nobody gets an address that is not asked back any more.
pub(crate) const KEPT: u64 = 20 * 60;

/// What is asked back, and what was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surrender {
    asked: Sets,
    kept: Vec<Kept>,
    /// What the report names that the API server has, or may have.
    told: Sets,
}

/// Addresses that are not asked back any more.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    addresses: Sets,
    since: u64,
}

impl Surrender {
    /// Returns the state of an agent that ended: how long its addresses have been kept is not known.
    pub(crate) fn restored(now: u64, asked: Sets, kept: Sets) -> Self {
        let told = asked.union(&kept);
        let kept = Kept {
            addresses: kept,
            since: now,
        };
        Self {
            asked,
            kept: Some(kept)
                .filter(|kept| !kept.addresses.is_empty())
                .into_iter()
                .collect(),
            told,
        }
    }

    /// Takes over what is asked back now. Of `wish`, what is not in `offered` counts only where it was asked back before:
    /// other addresses are no matter of the cloud's. `now` counts seconds by a monotonic clock.
    pub(crate) fn ask(&mut self, now: u64, wish: &Sets, offered: &Sets) {
        let asked = wish.common(&offered.union(&self.withheld()));
        let dropped = self.asked.without(&asked);
        for kept in &mut self.kept {
            kept.addresses = kept.addresses.without(&asked);
        }
        if !dropped.is_empty() {
            self.kept.push(Kept {
                addresses: dropped,
                since: now,
            });
        }
        self.asked = asked;
    }

    /// Ends the time of what was kept for long enough, unless a report names it that may still be read.
    pub(crate) fn expire(&mut self, now: u64) {
        for kept in &mut self.kept {
            if now.saturating_sub(kept.since) >= KEPT {
                kept.addresses = kept.addresses.common(&self.told);
            }
        }
        self.kept.retain(|kept| !kept.addresses.is_empty());
    }

    /// Returns what is asked back now.
    pub(crate) const fn asked(&self) -> &Sets {
        &self.asked
    }

    /// Returns what was asked back, and is kept.
    pub(crate) fn kept(&self) -> Sets {
        let kept = self.kept.iter();
        kept.fold(Sets::default(), |all, kept| all.union(&kept.addresses))
    }

    /// Returns what nobody gets.
    pub(crate) fn withheld(&self) -> Sets {
        self.asked.union(&self.kept())
    }

    /// Notes that a report is about to be written that names these as surrendered.
    pub(crate) fn telling(&mut self, surrendered: &Sets) {
        self.told = self.told.union(surrendered);
    }

    /// Notes that it was written, or that there is nothing that an earlier one could be read from. What is kept, and was
    /// named until now, is kept from now on.
    pub(crate) fn has_told(&mut self, now: u64, surrendered: Sets) {
        let named_no_more = self.told.without(&surrendered);
        let again = self.kept().common(&named_no_more);
        for kept in &mut self.kept {
            kept.addresses = kept.addresses.without(&again);
        }
        self.kept.retain(|kept| !kept.addresses.is_empty());
        if !again.is_empty() {
            self.kept.push(Kept {
                addresses: again,
                since: now,
            });
        }
        self.told = surrendered;
    }
}

#[cfg(test)]
mod tests;
