//! Helpers of the integration tests, on top of the strict VPC ([`ebbtide_vpc`]):
//!
//! - [`chain`], [`chained`]: the plugin after other plugins in a chain, and a pod whose interface another plugin made;
//! - [`crowd`]: a node with everything that other software may have on it, and all of its traffic as a matrix;
//! - [`two_ways`]: a pod that is reached by its own NIC and through its node, and the paths of its replies;
//! - [`fuzz`]: damaged input from outside, for each reader and for a running agent;
//! - [`slow_ipam`]: an IPAM plugin that answers when a test lets it;
//! - [`victim`]: a process that is killed while it takes addresses;
//! - [`random`]: repeatable random numbers.

pub mod chain;
pub mod chained;
pub mod crowd;
pub mod fuzz;
pub mod random;
pub mod slow_ipam;
pub mod two_ways;
pub mod victim;
