//! `hostPort` of pods that nobody serves: said, where it is not done.

use ebbtide_plugin::wire::Invocation;
use tracing::warn;

use super::{NetConf, wanted};
use crate::agent::Agent;

/// Says in the log and by an Event on the pod which of its `hostPort`s nobody serves. A runtime tells
/// them to the plugin that has the capability `portMappings`; that is ours where there is no other.
pub(super) fn tell(agent: &Agent, invocation: &Invocation, conf: &NetConf) {
    let ports: Vec<String> = conf.host_ports().iter().map(u16::to_string).collect();
    if ports.is_empty() {
        return;
    }
    let ports = ports.join(", ");
    warn!(%ports, "hostPort is not served: portmap is not behind ebbtide in the CNI configuration");
    wanted::note_on_pod(
        agent,
        invocation,
        "HostPortIgnored",
        format!(
            "hostPort {ports} is not served on this node: the CNI plugin portmap is not behind ebbtide; \
             put it into the node's CNI directory and restart the agent, or use a NodePort Service"
        ),
    );
}
