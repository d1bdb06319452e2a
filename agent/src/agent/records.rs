//! What is written down of an interface, and given back with it.

use std::sync::Arc;

use ebbtide_ipam::pool::{Owner, Record};
use ebbtide_kernel::podnet::PodNet;

use super::{Agent, DetachError};
use crate::cni::delegate;

impl Agent {
    /// Writes the plan of an interface down, where its addresses are: in the pools' store, or among
    /// the chained interfaces.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn write_down(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        if net.is_chained() {
            let (chained, owner, net) = (Arc::clone(&self.chained), owner.clone(), net.clone());
            let written = tokio::task::spawn_blocking(move || chained.write(&owner, &net));
            return written
                .await
                .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
                .map_err(DetachError::Record);
        }
        let record = Record::of(net).map_err(|e| DetachError::Record(e.into()))?;
        self.pools.update_record(owner, record).await?;
        Ok(())
    }

    /// Gives the addresses of a chained interface back to whoever gave them, and forgets it.
    ///
    /// # Errors
    /// When that plugin refuses, or the record cannot be removed: then it is kept, to try again.
    pub(super) async fn dismiss(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        if let Some(ipam) = &net.delegate {
            delegate::call(ipam, "DEL")
                .await
                .map_err(|failure| DetachError::Delegate(failure.message))?;
        }
        self.chained.remove(owner).map_err(DetachError::Record)
    }
}
