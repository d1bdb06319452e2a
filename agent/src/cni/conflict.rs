//! What cannot be made beside what is there already, or in its place.

use ebbtide_plugin::cni::code;

use super::Failure;
use crate::{
    agent::Agent,
    netlink::link::IpvlanMode,
    podnet::NetworkSpec,
    pool::Owner,
};

/// Refuses a network whose mode is another than that of an interface of ours on its NIC.
pub(super) fn refuse_conflicts(
    agent: &Agent,
    owner: &Owner,
    spec: &NetworkSpec,
) -> Result<(), Failure> {
    refuse(agent, owner, &spec.name, (&spec.master, spec.mode))
}

/// As [`refuse_conflicts`], by name, master and mode alone.
pub(super) fn refuse(
    agent: &Agent,
    owner: &Owner,
    network: &str,
    (master, wanted): (&str, IpvlanMode),
) -> Result<(), Failure> {
    let mut conflict = None;
    agent.each_interface(|other, net| {
        if let Some(there) = net.ipvlan.as_ref().filter(|_| other != owner)
            && there.master == master
            && there.mode != wanted
        {
            conflict = Some((other.interface.clone(), net.pod.clone(), there.mode));
        }
    });
    let Some((interface, pod, mode)) = conflict else {
        return Ok(());
    };
    Err(Failure::new(
        code::INVALID_NETWORK_CONFIG,
        format!(
            "network {network} wants mode {wanted} on {master}, but {interface} of pod {pod} is there in mode \
             {mode}"
        ),
        "a NIC has one ipvlan mode, adding another would change all its children: use the \
         same mode in all networks of one master",
    ))
}

/// Whether no interface of ours but `owner`'s is on this NIC.
pub(super) fn is_first(agent: &Agent, owner: &Owner, master: &str) -> bool {
    let mut is_first = true;
    agent.each_interface(|other, net| {
        is_first &= other == owner || net.master() != Some(master);
    });
    is_first
}
