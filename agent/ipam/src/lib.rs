//! Pod address management: what is declared ([`catalog`]), and who has which address ([`pool`]), durable.
//!
//! This crate has no notion of links or the API server.

pub mod catalog;
pub mod pool;
