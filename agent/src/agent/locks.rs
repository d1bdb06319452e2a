//! Per-container locks: any number of tasks may read a container's interfaces, or one may change them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::locked;

/// Exclusive access to a container's interfaces: nobody else reads or changes them until this is dropped.
pub type WriteGuard = OwnedRwLockWriteGuard<()>;

/// Shared access to a container's interfaces: nobody changes them until this is dropped.
pub(super) type ReadGuard = OwnedRwLockReadGuard<()>;

/// One fair lock for each container: first come, first served.
#[derive(Debug, Default)]
pub struct ContainerLocks(Mutex<HashMap<String, Arc<RwLock<()>>>>);

impl ContainerLocks {
    /// Waits for exclusive access to the container's interfaces.
    pub async fn write(&self, container_id: &str) -> WriteGuard {
        let lock = self.of(container_id);
        lock.write_owned().await
    }

    /// Returns exclusive access to the container's interfaces, if nobody holds the lock or waits for it.
    #[must_use]
    pub fn try_write(&self, container_id: &str) -> Option<WriteGuard> {
        self.of(container_id).try_write_owned().ok()
    }

    /// Waits for shared access to the container's interfaces.
    pub async fn read(&self, container_id: &str) -> ReadGuard {
        let lock = self.of(container_id);
        lock.read_owned().await
    }

    /// Returns shared access to the container's interfaces, if nobody changes them or waits to.
    #[must_use]
    pub fn try_read(&self, container_id: &str) -> Option<ReadGuard> {
        self.of(container_id).try_read_owned().ok()
    }

    fn of(&self, container_id: &str) -> Arc<RwLock<()>> {
        let mut locks = locked(&self.0);
        if let Some(lock) = locks.get(container_id) {
            return Arc::clone(lock);
        }
        // A lock that only this table holds is in nobody's use.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(container_id.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_number_look_and_one_changes() {
        let locks = ContainerLocks::default();
        let first = locks.read("a").await;
        let second = locks.try_read("a");
        assert!(second.is_some());
        assert!(locks.try_write("a").is_none());
        drop((first, second));
        drop(locks.try_write("a").unwrap());
        let changing = locks.write("a").await;
        assert!(locks.try_write("a").is_none());
        assert!(locks.try_read("a").is_none());
        assert!(locks.try_read("b").is_some());
        drop(changing);
        assert!(locks.try_read("a").is_some());
    }

    #[tokio::test]
    async fn locks_that_nobody_holds_are_forgotten() {
        let locks = ContainerLocks::default();
        let held = locks.read("held").await;
        for container in 0..100 {
            drop(locks.write(&container.to_string()).await);
        }
        assert_eq!(locked(&locks.0).len(), 2);
        assert!(locks.try_read("held").is_some());
        drop(held);
    }
}
