//! What the cloud tells a machine about its NICs.
//!
//! A [`View`] is what a metadata service said at one moment, read whole. [`detect`] says which cloud this is, without a
//! packet; [`Service`] asks its metadata service in one of five dialects. A [`ledger::Ledger`] follows views safely, and
//! [`saved`] keeps it across restarts.

mod client;
mod dmi;
mod draft;
mod endpoint;
pub mod ledger;
mod provider;
mod reading;
mod request_error;
pub mod saved;
mod service;
mod session;
mod text;
mod tree;
mod view;

#[cfg(test)]
mod dialect_tests;
#[cfg(test)]
mod testing;

pub mod alibaba;
pub mod aws;
pub mod azure;
pub mod gcp;
pub mod tencent;

pub use client::Client;
pub use dmi::{Detected, Dmi, detect};
pub use endpoint::{Endpoint, NoEndpoint};
pub use provider::{NoProvider, Provider, Unable};
pub use reading::{LeftOut, ReadError, Reading, Unreadable};
pub use request_error::{Problem, RequestError};
pub use service::Service;
pub use tree::Tree;
pub use view::{CloudNic, Kind, View};
