//! The protocol between the CNI plugin and the agent, and what of the CNI specification both need.
//!
//! The plugin is executed once or twice for every pod, so it does as little as can be: it hands
//! its environment and standard input to the agent over a Unix socket and prints the answer.
//! Everything that can be right or wrong is decided in the agent.

pub mod cni;
pub mod object;
pub mod wire;

/// Where the agent listens unless the network configuration's `agentSocket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/ebbtide/cni.sock";

/// The plugin's name: the `type` that network configurations call it by.
pub const NAME: &str = "ebbtide";
