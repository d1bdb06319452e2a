//! Refuses interfaces that conflict with existing ones.

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::{
    netlink::netns::Evidence,
    podnet::{NetworkSpec, PodNet, Sandbox},
};
use ebbtide_plugin::cni::code;
use ebbtide_types::IpvlanMode;

use super::Failure;
use crate::agent::{Agent, NicMode};

/// Refuses a network whose mode differs from its NIC's, as an existing interface or the administrator has decided it.
pub(super) fn refuse_conflicts(
    agent: &Agent,
    owner: &Owner,
    spec: &NetworkSpec,
) -> Result<(), Failure> {
    refuse(agent, owner, &spec.name, (&spec.master, spec.mode))?;
    // An existing interface keeps its mode.
    let said = agent.mode_of(&spec.master, &agent.catalog());
    let said = said.filter(|said| said.mode != spec.mode && agent.interface(owner).is_none());
    said.map_or(Ok(()), |said| {
        Err(Failure::new(
            code::INVALID_NETWORK_CONFIG,
            format!(
                "network {} wants mode {} on {}, which is in mode {}: {}",
                spec.name, spec.mode, spec.master, said.mode, said.says
            ),
            NicMode::HINT,
        ))
    })
}

/// Refuses a network whose mode differs from that of another interface on its master.
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

/// Whether no interface of Ebbtide's but `owner`'s is on this NIC.
pub(super) fn is_first(agent: &Agent, owner: &Owner, master: &str) -> bool {
    let mut is_first = true;
    agent.each_interface(|other, net| {
        is_first &= other == owner || net.master() != Some(master);
    });
    is_first
}

/// Refuses an ADD for an existing interface, unless it repeats the same ADD: one for another namespace while the first
/// one still exists, or for another network.
pub(super) fn refuse_another(
    agent: &Agent,
    owner: &Owner,
    sandbox: &Sandbox,
    spec: &NetworkSpec,
) -> Result<(), Failure> {
    refuse_second_network(agent, owner, sandbox)?;
    let Some(known) = agent.interface(owner) else {
        return Ok(());
    };
    let name = &owner.interface;
    if known.netns_inode != sandbox.netns_inode {
        match known.namespace() {
            Ok(Evidence::Gone) => {}
            Ok(Evidence::Present(there)) => {
                return Err(Failure::new(
                    code::INVALID_ENVIRONMENT,
                    format!(
                        "CNI_NETNS={} is not the namespace of container {}: its {name} is in {}, which is still there",
                        sandbox.netns.display(),
                        owner.container_id,
                        there.path().display()
                    ),
                    "nothing was changed: DEL the container first, or give this one another CNI_CONTAINERID",
                ));
            }
            Err(e) => {
                return Err(Failure::new(
                    code::TRY_AGAIN_LATER,
                    format!(
                        "container {} has {name} in another namespace, and whether that is still there is not known: \
                         {e}",
                        owner.container_id
                    ),
                    "nothing was changed: DEL the container first",
                ));
            }
        }
    }
    let Some(other) = other_than(&known, spec) else {
        return Ok(());
    };
    Err(Failure::new(
        code::INVALID_NETWORK_CONFIG,
        format!(
            "{name} of container {} is there already, and this ADD is for another: {other}",
            owner.container_id
        ),
        "nothing was changed: DEL it first, with the configuration that it was made by",
    ))
}

/// Refuses to add an interface that another network configuration added. They are one interface of one pod, so a DEL
/// of one network would remove it from the other, too.
fn refuse_second_network(agent: &Agent, owner: &Owner, sandbox: &Sandbox) -> Result<(), Failure> {
    let mut first = None;
    agent.each_interface(|other, net| {
        let is_it = other.container_id == owner.container_id && other.interface == owner.interface;
        if is_it && other.network != owner.network && net.netns_inode == sandbox.netns_inode {
            first = Some(other.network.clone());
        }
    });
    let Some(first) = first else { return Ok(()) };
    Err(Failure::new(
        code::INVALID_NETWORK_CONFIG,
        format!(
            "{} of container {} is in network {first} already, and this ADD is of network {}",
            owner.interface, owner.container_id, owner.network
        ),
        "nothing was changed: give this network another interface (CNI_IFNAME), or DEL the first one",
    ))
}

/// Returns how an interface differs from one of `spec`, in what cannot be changed.
fn other_than(known: &PodNet, spec: &NetworkSpec) -> Option<String> {
    let differs = |what: &str, there: &str, wanted: &str| {
        (there != wanted).then(|| format!("it has {what} {there}, not {wanted}"))
    };
    let maker = |is_ours: bool| if is_ours { "ebbtide" } else { "another plugin" };
    let (is_ours, to_be_ours) = (known.ipvlan.is_some(), spec.made_before.is_none());
    if is_ours != to_be_ours {
        let (there, wanted) = (maker(is_ours), maker(to_be_ours));
        return Some(format!("{there} made it, not {wanted}"));
    }
    let network = differs("the network", &known.network, &spec.name);
    let ipvlan = known.ipvlan.as_ref();
    let master = ipvlan.and_then(|there| differs("the master", &there.master, &spec.master));
    let mode =
        ipvlan.and_then(|there| differs("the mode", there.mode.as_str(), spec.mode.as_str()));
    network.or(master).or(mode)
}
