//! The parts of xtask that the tests use.

pub mod need;
pub mod oci;
pub mod skip;
