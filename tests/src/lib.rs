//! Helpers of the integration tests, on top of the strict VPC ([`ebbtide_vpc`]):
//!
//! - [`browser`]: a real browser, which draws pages;
//! - [`prometheus`], [`alert_rules`]: a real Prometheus, and the alerts that it is shipped with;
//! - [`chain`], [`chained`]: the plugin after other people's plugins, and a pod whose interface another plugin made;
//! - [`crowd`]: a node with everything on it that other people have on theirs, and all of its traffic as a matrix;
//! - [`guest_agent`]: the real google-guest-agent on a node;
//! - [`moto`]: the real moto, which acts as EC2;
//! - [`two_ways`]: a pod that is reached straight and through its node, and by which way it answers;
//! - [`removal`]: a node before its first agent, and after the removal of the last one;
//! - [`steady`]: clients that ask without a pause while something happens to the agent;
//! - [`fuzz`]: what comes from outside, damaged at random: read by what reads it, and sent to a running agent;
//! - [`victim`]: a process to kill while it takes addresses.

pub mod alert_rules;
pub mod browser;
pub mod chain;
pub mod chained;
pub mod crowd;
pub mod fuzz;
pub mod guest_agent;
pub mod moto;
pub mod prometheus;
pub mod removal;
pub mod slow_ipam;
pub mod steady;
pub mod two_ways;
pub mod victim;
