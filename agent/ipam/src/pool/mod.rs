//! Address management: selects pools, assigns addresses, and stores their owners on disk.
//!
//! The protocol: [`Pools::reserve`] chooses addresses in memory, and the caller computes what it will do with them.
//! [`Grant::commit`] writes both down with one fsync, and only then does anything touch the kernel. [`Pools::release`]
//! is durable before it returns, too. So at any crash, what is on disk is never less than what is in the kernel.
//!
//! This module has no notion of links or pods: an allocation carries an opaque `record` for its owner.
//!
//! Inside: `select` is pure; `state` is the state in memory behind one lock that is never held while
//! waiting; `writer` is one thread that gathers all waiting changes into one batch of the journal (`store`).

mod annotations;
mod clock;
mod error;
mod history;
mod own_cooldown;
mod picker;
mod pools;
mod record;
mod reservation;
mod select;
mod state;
mod store;
mod subject;
mod types;
mod usage;
mod withheld;
mod writer;

pub use error::{
    BadAnnotation, Conflict, Full, FullPool, InUse, NoAddress, NoMetadata, OpenError, PassedOver,
    PoolError, StoreError, Unavailable,
};
pub use history::Past;
pub use pools::{Adopt, Assignment, Grant, Options, Pools, Reserved, Snapshot};
pub use record::Record;
pub use reservation::{
    PodRef, Reason, Replicas, Reservation, ReservationKey, is_expected, ordinal,
};
pub use subject::{Controller, Object, Subject};
pub use types::{AddressStatus, Allocation, Assigned, Families, Owner, Request, Source};
pub use usage::{PoolUsage, Standing};
pub use withheld::Withheld;

#[cfg(test)]
mod tests;
