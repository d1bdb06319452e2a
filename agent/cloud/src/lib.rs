//! What the cloud tells a machine about its NICs.
//!
//! A [`View`] is what a metadata service said at one moment, read whole.

mod view;

pub use view::{CloudNic, Kind, View};
