//! Keeps pools that running pods use from changing in ways that would break those pods.

use std::path::PathBuf;

use super::{Catalog, Consequence, Invalid, Pool, Problem, admit};

/// The file named in a [`Problem`] of this rule, which compares two states of the manifests.
const SOURCE: &str = "the manifests, as they were changed";

impl Catalog {
    /// Adjusts this catalog before it replaces `older`, some of whose pools have addresses in use.
    ///
    /// The subnet of such a pool cannot be changed: its pods have routes and a gateway in it. The pool
    /// stays as in `older`, and newer pools that conflict with it are left out, each with a [`Problem`]. Derived pools
    /// are as they are now, in any case.
    #[must_use]
    pub fn keeping_used_pools(mut self, older: &Self, is_in_use: impl Fn(&str) -> bool) -> Self {
        let mut kept: Vec<Pool> = Vec::new();
        for new in &self.pools {
            let Some(old) = older.pool(&new.name) else {
                continue;
            };
            // Nobody can change what the cloud assigns by mistake, and what it took away must not be handed out. Pods
            // have the routes and gateways of their own records.
            if old.derived_of().is_some() || new.derived_of().is_some() {
                continue;
            }
            if let Err(invalid) = admit::update(old, new)
                && is_in_use(&old.name)
            {
                self.problems.push(problem(invalid, Consequence::LeftOut));
                kept.push(old.clone());
            }
        }
        if kept.is_empty() {
            return self;
        }
        let declared = std::mem::take(&mut self.pools);
        for mut pool in declared {
            if kept.iter().any(|old| old.name == pool.name) {
                continue;
            }
            if pool.derived_of().is_some() {
                for old in &kept {
                    pool.leave_to(old);
                }
                self.pools.push(pool);
                continue;
            }
            match admit::pool(&pool, &kept) {
                Ok(()) => self.pools.push(pool),
                Err(invalid) => self.problems.push(problem(invalid, Consequence::LeftOut)),
            }
        }
        self.pools.extend(kept);
        self.pools.sort_by_key(|pool| {
            let place = older.pools.iter().position(|old| old.name == pool.name);
            place.unwrap_or(usize::MAX)
        });
        self
    }
}

fn problem(invalid: Invalid, consequence: Consequence) -> Problem {
    Problem {
        file: PathBuf::from(SOURCE),
        document: None,
        message: invalid.message(),
        object: Some(invalid.object),
        field: Some(invalid.field),
        consequence,
    }
}
