//! The container of a command, and the network namespace that the runtime names for it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::{
    netlink::{
        self,
        netns::{Evidence, Netns},
    },
    podnet::Sandbox,
};
use ebbtide_plugin::{cni::code, wire::Invocation};
use nix::errno::Errno;
use tokio::{task::spawn_blocking, time::timeout};

use super::{Attachment, Failure, NetConf, PodIdentity, invocation};
use crate::agent::{Agent, WriteGuard};

/// How long the file system of a namespace's path may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The container of an ADD, locked: until this is dropped no other command changes its interfaces.
pub(super) struct Container {
    /// The interface that the runtime requests.
    pub(super) attachment: Attachment,
    /// The pod that the container belongs to.
    pub(super) identity: PodIdentity,
    /// Its namespace.
    pub(super) netns: Netns,
    path: PathBuf,
    _lock: WriteGuard,
}

impl Container {
    /// Waits for the container's lock, and only then opens its namespace, which may have ended meanwhile.
    pub(super) async fn wait(agent: &Agent, invocation: &Invocation) -> Result<Self, Failure> {
        let attachment = Attachment::parse(invocation)?;
        let path = invocation::netns(invocation)?;
        let lock = agent.locks.write(&attachment.container_id).await;
        let netns = open(&path).await?;
        if netns.is_own()? {
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
            _lock: lock,
        })
    }

    /// Returns the sandbox of its interface `interface`.
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

/// Opens the namespace at `CNI_NETNS`.
async fn open(path: &Path) -> Result<Netns, Failure> {
    let invalid = |why: &str| {
        Failure::new(
            code::INVALID_ENVIRONMENT,
            format!("CNI_NETNS={path:?} {why}"),
            "nothing was changed: the runtime must give the path of the container's network namespace",
        )
    };
    if !path.is_absolute() {
        return Err(invalid(
            "is a relative path: the agent's working directory is not the runtime's",
        ));
    }
    let wanted = path.to_owned();
    let looked = spawn_blocking(move || Netns::inspect(&wanted, None));
    let looked = timeout(TIMEOUT, looked).await.map_err(|_| {
        invalid("is on a file system that does not answer (a lost server, or a stopped process)")
    })?;
    let looked = looked.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    match looked {
        Ok(Evidence::Present(netns)) => Ok(netns),
        Ok(Evidence::Gone) => Err(Failure::new(
            code::UNKNOWN_CONTAINER,
            format!("CNI_NETNS={path:?} is no network namespace"),
            if path.starts_with("/proc") {
                "did the container end meanwhile? Or does the agent run in a container that does not see the \
                 node's processes (hostPID of its DaemonSet)?"
            } else {
                "did the container end meanwhile? The runtime must make the namespace before ADD"
            },
        )),
        Err(e) if is_of_the_path(&e) => Err(invalid(&format!("cannot be opened: {e}"))),
        Err(e) => Err(e.into()),
    }
}

/// Whether the path itself is at fault; any other error may be temporary.
fn is_of_the_path(error: &netlink::Error) -> bool {
    use Errno::{EACCES, ELOOP, ENAMETOOLONG, ENOTDIR, EPERM};
    // The library itself refuses a path that contains a zero byte.
    error.errno().is_none_or(|errno| {
        [EACCES, ELOOP, ENAMETOOLONG, ENOTDIR, EPERM].contains(&Errno::from_raw(errno))
    })
}

/// Returns the owner of what is made for an attachment.
pub(super) fn owner(conf: &NetConf, attachment: &Attachment) -> Owner {
    Owner {
        network: conf.name.clone(),
        container_id: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
    }
}
