//! Grants: addresses taken in memory, not yet on disk.

use std::{fmt, sync::Arc};

use super::{Pools, line};
use crate::pool::{
    Allocation, Assigned, Owner, PodRef, PoolError, Record,
    state::Bundle,
    writer::{Operation, lock},
};

/// Addresses taken in memory, not yet on disk.
///
/// Dropping it returns them at once, without a cooldown: they were never used.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::pool::{Options, Owner, Pools, Request, Reserved};
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
/// let request = Request::new(&owner, "node1", &catalog);
/// for _ in 0..2 {
///     let Reserved::New(grant) = pools.reserve(&request)? else {
///         unreachable!("nothing was committed")
///     };
///     assert_eq!(grant.assigned()[0].address.to_string(), "10.0.0.5");
///     // Dropped without a commit, as when the plan of the interface fails.
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a grant gives its addresses back"]
pub struct Grant {
    pools: Pools,
    owner: Arc<Owner>,
    pod: Option<PodRef>,
    sticky: bool,
    assigned: Vec<Assigned>,
    /// Taken out by the commit.
    bundle: Option<Bundle>,
}

impl Grant {
    pub(super) fn new(
        pools: Pools,
        owner: Arc<Owner>,
        pod: Option<PodRef>,
        sticky: bool,
        mut bundle: Bundle,
    ) -> Self {
        Self {
            pools,
            owner,
            pod,
            sticky,
            assigned: std::mem::take(&mut bundle.assigned),
            bundle: Some(bundle),
        }
    }

    /// Returns the addresses: one of each family that the pod is to have, IPv4 first.
    #[must_use]
    pub fn assigned(&self) -> &[Assigned] {
        &self.assigned
    }

    /// Returns the future owner.
    #[cfg(test)]
    pub(in crate::pool) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Writes the addresses and `record` to disk; returns once they are durable.
    ///
    /// The write begins with the first poll and is not undone if the future is dropped after that:
    /// the owner then has the addresses until they are released.
    ///
    /// # Errors
    /// If the disk fails ([`PoolError::Store`]); the addresses are returned.
    pub async fn commit(mut self, record: impl Into<Record>) -> Result<Allocation, PoolError> {
        let allocation = Arc::new(Allocation {
            owner: Owner::clone(&self.owner),
            pod: self.pod.take(),
            assigned: std::mem::take(&mut self.assigned),
            record: record.into(),
            since: self.pools.inner.clock.unix_millis() / 1000,
            sticky: self.sticky,
        });
        // On failure the grant is dropped here, which returns the addresses.
        let line = line(&allocation)?;
        // Only this takes it out, and this consumes the grant.
        let Some(bundle) = self.bundle.take() else {
            return Err(PoolError::WriterDied);
        };
        let what = Operation::Add {
            allocation: Arc::clone(&allocation),
            taken: bundle.taken,
            reservation: bundle.reservation,
            line,
        };
        self.pools.write(what).await?;
        Ok(Arc::unwrap_or_clone(allocation))
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(bundle) = self.bundle.take() {
            let mut state = lock(&self.pools.inner.state);
            state.undo_reserve(&self.owner, &bundle.taken, bundle.reservation.as_ref());
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("owner", &self.owner)
            .field("assigned", &self.assigned)
            .finish_non_exhaustive()
    }
}
