//! The protocol between the CNI plugin and the agent, and the parts of the CNI specification that both need.
//!
//! The plugin is executed once or twice for every pod, so it does as little as possible: it sends its environment
//! and standard input to the agent over a Unix socket and prints the answer. The agent makes all decisions.

pub mod cni;
pub mod object;
pub mod trace_context;
pub mod wire;

/// The default path of the agent's socket; the network configuration's `agentSocket` overrides it.
pub const DEFAULT_SOCKET: &str = "/run/ebbtide/cni.sock";

/// The plugin's name: the `type` in network configurations.
pub const NAME: &str = "ebbtide";
