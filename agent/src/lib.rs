//! Ebbtide's node agent: pods on the node's own NICs, replies by the interface they came in on.
//!
//! The modules are listed in the order of one ADD's way through the house; imports point down
//! this list only (see `ARCHITECTURE.md`).

pub mod catalog;
pub mod pool;
