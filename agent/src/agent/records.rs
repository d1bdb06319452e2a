//! Durable records of interfaces: written with the plan, removed with the addresses.

use std::sync::Arc;

use ebbtide_ipam::pool::{Owner, Record};
use ebbtide_kernel::podnet::PodNet;

use super::{Agent, DetachError};
use crate::cni::delegate;

impl Agent {
    /// Writes the plan of an interface to where its addresses are recorded: the pools' store, or the records of
    /// chained interfaces.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn write_record(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
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

    /// Releases the addresses of a chained interface at the plugin that assigned them, and removes its record.
    ///
    /// # Errors
    /// If that plugin refuses, or the record cannot be removed. The record is kept then, to try again.
    pub(super) async fn remove_record(
        &self,
        owner: &Owner,
        net: &PodNet,
    ) -> Result<(), DetachError> {
        if let Some(ipam) = &net.delegate {
            delegate::call(ipam, "DEL")
                .await
                .map_err(|failure| DetachError::Delegate(failure.message))?;
        }
        self.chained.remove(owner).map_err(DetachError::Record)
    }
}
