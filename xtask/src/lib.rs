//! What the tasks share with the tests.

pub mod oci;
