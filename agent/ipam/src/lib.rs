//! Which address a pod gets: what is declared ([`catalog`]), and who has what ([`pool`]), durable.
//!
//! Nothing here knows a link or the API server.

pub mod catalog;
pub mod pool;
