//! The container of a command, in its turn.

use std::path::PathBuf;

use ebbtide_plugin::{cni::code, wire::Invocation};

use super::{Attachment, Failure, NetConf, PodIdentity, invocation};
use crate::{
    agent::{Agent, Changing},
    netlink::netns::{Evidence, Netns},
    podnet::Sandbox,
    pool::Owner,
};

/// A container that an ADD is about. Until this is dropped no other command changes its interfaces.
pub(super) struct Container {
    /// The interface that the runtime asks for.
    pub(super) attachment: Attachment,
    /// Whose container it is.
    pub(super) identity: PodIdentity,
    /// Its namespace.
    pub(super) netns: Netns,
    path: PathBuf,
    _turn: Changing,
}

impl Container {
    /// Waits for the container's turn, and only then looks for its namespace: it may have ended.
    pub(super) async fn wait(agent: &Agent, invocation: &Invocation) -> Result<Self, Failure> {
        let attachment = Attachment::parse(invocation)?;
        let path = invocation::netns(invocation)?;
        let turn = agent.turns.to_change(&attachment.container_id).await;
        let Evidence::Present(netns) = Netns::look(&path, None)? else {
            return Err(Failure::new(
                code::UNKNOWN_CONTAINER,
                format!("CNI_NETNS={} is no network namespace", path.display()),
                if path.starts_with("/proc") {
                    "did the container end meanwhile? Or does the agent run in a container that does not see the \
                     node's processes (hostPID of its DaemonSet)?"
                } else {
                    "did the container end meanwhile? The runtime must make the namespace before ADD"
                },
            ));
        };
        if netns.is_own() {
            return Err(Failure::new(
                code::INVALID_ENVIRONMENT,
                format!(
                    "CNI_NETNS={} is the node's own network namespace",
                    path.display()
                ),
                "nothing was changed: the runtime must make a namespace for the container before ADD, and a pod with \
                 the host's network gets none",
            ));
        }
        Ok(Self {
            identity: PodIdentity::parse(&invocation.args),
            attachment,
            netns,
            path,
            _turn: turn,
        })
    }

    /// Where `interface` of it is to be.
    pub(super) fn sandbox(&self, interface: &str) -> Sandbox {
        let container_id = &self.attachment.container_id;
        Sandbox {
            pod: self.identity.or_container(container_id),
            container_id: container_id.clone(),
            interface: interface.to_owned(),
            netns: self.path.clone(),
            netns_inode: self.netns.inode(),
            pid_namespace: Netns::pid_namespace_of(&self.path),
        }
    }
}

/// Who owns what is made for an attachment.
pub(super) fn owner(conf: &NetConf, attachment: &Attachment) -> Owner {
    Owner {
        network: conf.name.clone(),
        container_id: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
    }
}
