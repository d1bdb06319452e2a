//! The priorities of Ebbtide's policy rules in the host, which may have to move.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use ebbtide_kernel::{
    netlink::foreign::ForeignRule,
    node::{self, PRIORITIES, Routed},
};
use tracing::{info, warn};

use super::locked;

/// The rules move at most [`MAX_MOVES`] times in this period: another program may insist on being first as well.
const MOVE_PERIOD: Duration = Duration::from_secs(30);
const MAX_MOVES: usize = 3;

/// The priority at which Ebbtide's rules begin, and when it changed.
#[derive(Debug, Default)]
pub(super) struct RuleBase(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    base: Option<u32>,
    moves: Vec<Instant>,
    /// Whether it was already logged that there is no better place.
    logged: bool,
}

impl RuleBase {
    /// Returns the priority at which the rules begin, once they were applied.
    pub(super) fn base(&self) -> Option<u32> {
        locked(&self.0).base
    }

    /// Decides where the rules begin: where no foreign rule is, and before foreign rules that would catch Ebbtide's
    /// traffic.
    pub(super) fn update(
        &self,
        preferred: u32,
        foreign: &[ForeignRule],
        routed: &Routed,
        now: Instant,
    ) -> u32 {
        let mut state = locked(&self.0);
        let current = state.base;
        let wanted = node::preceding_base(preferred, current, foreign, routed);
        if wanted.is_none() && !state.logged {
            warn!(
                "no {PRIORITIES} consecutive priorities are free before the foreign routing rules: \
                 `ebbtidectl doctor` lists the rules that catch packets of pods"
            );
        }
        state.logged = wanted.is_none();
        let anywhere = || node::free_priorities(preferred, foreign).unwrap_or(preferred);
        let Some(current) = current else {
            let base = wanted.unwrap_or_else(anywhere);
            if base != preferred {
                info!(
                    "because of foreign routing rules, Ebbtide's begin at priority {base}, not \
                     at {preferred}"
                );
            }
            state.base = Some(base);
            return base;
        };
        state
            .moves
            .retain(|then| now.duration_since(*then) < MOVE_PERIOD);
        match wanted {
            Some(base) if base != current && state.moves.len() < MAX_MOVES => {
                info!(
                    "foreign routing rules were added before or among Ebbtide's, which begin at \
                     priority {base} now"
                );
                state.moves.push(now);
                state.base = Some(base);
                base
            }
            _ => current,
        }
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_types::Family;

    use super::*;

    #[test]
    fn rules_move_at_once_but_not_again_and_again() {
        let place = RuleBase::default();
        let start = Instant::now();
        let mut first = 2000;
        let mut settle = |seconds| {
            // A foreign rule is in front again.
            let rule = ForeignRule {
                table: Some(9),
                ..ForeignRule::new(Family::V4, first)
            };
            let now = start + Duration::from_secs(seconds);
            let base = place.update(1000, &[rule], &Routed::default(), now);
            first = base - 2;
            base
        };
        let bases = [0, 0, 1, 2, 3, 29, 30, 31].map(&mut settle);
        assert_eq!(bases, [1000, 990, 980, 970, 970, 970, 960, 950]);
        assert_eq!(place.base(), Some(950));
    }
}
