//! Whose turn it is at the interfaces of a container: one changes them, or any number look.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::locked;

/// Nobody else looks at or changes the container's interfaces until this is dropped.
pub type Changing = OwnedRwLockWriteGuard<()>;

/// Nobody changes the container's interfaces until this is dropped.
pub(super) type Looking = OwnedRwLockReadGuard<()>;

/// A turn for each container, first come, first served.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, Arc<RwLock<()>>>>);

impl Turns {
    /// Waits for the turn to change what the container has.
    pub async fn to_change(&self, container_id: &str) -> Changing {
        let turn = self.of(container_id);
        turn.write_owned().await
    }

    /// The turn to change what the container has, if nobody else has one or waits for it.
    #[must_use]
    pub fn try_to_change(&self, container_id: &str) -> Option<Changing> {
        self.of(container_id).try_write_owned().ok()
    }

    /// Waits for the turn to look at what the container has.
    pub async fn to_look(&self, container_id: &str) -> Looking {
        let turn = self.of(container_id);
        turn.read_owned().await
    }

    /// The turn to look, if nobody changes the container's interfaces or waits to.
    #[must_use]
    pub fn to_look_now(&self, container_id: &str) -> Option<Looking> {
        self.of(container_id).try_read_owned().ok()
    }

    fn of(&self, container_id: &str) -> Arc<RwLock<()>> {
        let mut turns = locked(&self.0);
        if let Some(turn) = turns.get(container_id) {
            return Arc::clone(turn);
        }
        // Nobody waits for a turn that only the table holds.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(container_id.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_number_look_and_one_changes() {
        let turns = Turns::default();
        let first = turns.to_look("a").await;
        let second = turns.to_look_now("a");
        assert!(second.is_some());
        assert!(turns.try_to_change("a").is_none());
        drop((first, second));
        drop(turns.try_to_change("a").unwrap());
        let changing = turns.to_change("a").await;
        assert!(turns.try_to_change("a").is_none());
        assert!(turns.to_look_now("a").is_none());
        assert!(turns.to_look_now("b").is_some());
        drop(changing);
        assert!(turns.to_look_now("a").is_some());
    }

    #[tokio::test]
    async fn turns_that_nobody_holds_are_forgotten() {
        let turns = Turns::default();
        let held = turns.to_look("held").await;
        for container in 0..100 {
            drop(turns.to_change(&container.to_string()).await);
        }
        assert_eq!(locked(&turns.0).len(), 2);
        assert!(turns.to_look_now("held").is_some());
        drop(held);
    }
}
