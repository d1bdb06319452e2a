//! What the cloud tells a machine about its NICs.
//!
//! A [`View`] is what a metadata service said at one moment, read whole. [`detect`] says which cloud this is, without a
//! packet.

mod client;
mod dmi;
mod endpoint;
mod provider;
mod request_error;
mod view;

#[cfg(test)]
mod testing;

pub use client::Client;
pub use dmi::{Detected, Dmi, detect};
pub use endpoint::{Endpoint, NoEndpoint};
pub use provider::{Choice, NoChoice, NoProvider, Provider, Unable};
pub use request_error::{Problem, RequestError};
pub use view::{CloudNic, Kind, View};
