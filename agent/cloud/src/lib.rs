//! What the cloud tells a machine about its NICs.
//!
//! A [`View`] is what a metadata service said at one moment, read whole. A [`ledger::Ledger`] follows views safely, and
//! [`saved`] keeps it across restarts.

pub mod ledger;
pub mod saved;
mod view;

pub use view::{CloudNic, Kind, View};
