//! What the tasks share with the tests.

pub mod need;
pub mod oci;
pub mod skip;
