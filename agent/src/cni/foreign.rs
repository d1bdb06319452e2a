//! Decides whether a pod may have an address on this node that another plugin assigned to it.
//!
//! From then on, packets of this node to that address go to the pod: the pods' table is looked up before the main one.
//! Whoever may write a NetworkAttachmentDefinition chooses the address (IPAM `static`). So it is refused if it has
//! another owner, or if there is no evidence that it can be a pod's here.

mod evidence;

use std::{net::IpAddr, sync::Arc};

use ebbtide_ipam::{catalog::Catalog, pool::Owner};
use ebbtide_kernel::{
    netlink::{self, by_gateway::ByGateway, fib::FibResult, link::Link, netns::Evidence},
    node::{self, Known, NodeFacts, Role},
    podnet::{PodAddress, PodNet, Sandbox},
};
use ebbtide_plugin::cni::code;
use ipnet::IpNet;

use super::Failure;
use crate::agent::{Agent, Pending};

use evidence::{CheckInput, InterfaceKind, OPEN, Switch};

/// The origin of addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// The plugin that assigned them.
    pub(super) by: &'a str,
    /// The interface that is to have them.
    pub(super) on: Target<'a>,
}

/// The interface that is to have them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// One that Ebbtide makes on this NIC.
    Nic(&'a str),
    /// One that another plugin made, as the pod's kernel describes it.
    Existing(&'a Link),
}

const GIVE_ANOTHER: &str = "nothing was made: give the pod another address in the configuration of the plugin that gives it";

/// Why the pod may not have an address, and a hint.
type Why = (String, String);

/// The inputs of the decision.
struct AddressCheck<'a> {
    agent: &'a Agent,
    owner: &'a Owner,
    origin: Origin<'a>,
    facts: &'a NodeFacts,
    catalog: &'a Catalog,
}

/// Checks the owners of the addresses, and reserves them until the result is dropped.
///
/// # Errors
/// If the pod may not have one of them.
pub(super) async fn admit<'a>(
    agent: &'a Agent,
    owner: &Owner,
    sandbox: &Sandbox,
    addresses: &[PodAddress],
    origin: Origin<'_>,
    facts: &NodeFacts,
) -> Result<Pending<'a>, Failure> {
    let refusal = |address: IpAddr, (why, hint): Why| {
        Failure::new(
            code::INVALID_NETWORK_CONFIG,
            format!(
                "{address}, which {} assigns to {} of pod {}, is refused: {why}",
                origin.by, owner.interface, sandbox.pod
            ),
            hint,
        )
    };
    let all = addresses.iter().map(|own| own.address.addr());
    let reservation = agent.pending.reserve(all).map_err(|address| {
        refusal(
            address,
            give_another("another request assigns it to a pod at this moment"),
        )
    })?;
    let check = AddressCheck {
        agent,
        owner,
        origin,
        facts,
        catalog: &agent.catalog(),
    };
    let place = check.interface_kind().await?;
    // A node may have very many routes: they are dumped once, and only where they decide.
    let routers = match place {
        InterfaceKind::Child(_) | InterfaceKind::Hardware => {
            agent.host.routes_by_gateways().await?
        }
        InterfaceKind::Veth { .. } | InterfaceKind::Unconnected => Vec::new(),
    };
    for own in addresses {
        if let Some(why) = check.check_address(own, &place, &routers).await? {
            return Err(refusal(own.address.addr(), why));
        }
    }
    Ok(reservation)
}

fn give_another(why: impl Into<String>) -> Why {
    (why.into(), GIVE_ANOTHER.to_owned())
}

impl AddressCheck<'_> {
    /// Returns why the pod may not have the address, if it may not.
    async fn check_address(
        &self,
        own: &PodAddress,
        place: &InterfaceKind,
        routers: &[ByGateway],
    ) -> Result<Option<Why>, netlink::Error> {
        let address = own.address.addr();
        if let Some(why) = evidence::special_purpose(address) {
            return Ok(Some(give_another(why)));
        }
        if self.is_given_by_pool(address) {
            return Ok(None);
        }
        let host = &self.agent.host;
        let way = host.fib_lookup(address).await?;
        if let Some(why) = self.other_owner(address, way) {
            return Ok(Some(why));
        }
        let out = match way {
            FibResult::Via { ifindex, .. } => host.link_at(ifindex).await?,
            _ => None,
        };
        if let Some(pair) = out.as_ref().filter(|out| self.is_another_pods(out)) {
            return Ok(Some(give_another(format!(
                "another pod has it, behind {}",
                pair.name
            ))));
        }
        Ok(self.evidence(own, way, out.as_ref(), place, routers))
    }

    /// Whether the pod has it from one of Ebbtide's pools already.
    fn is_given_by_pool(&self, address: IpAddr) -> bool {
        let holder = self.agent.pools.lookup(address).holder;
        holder.is_some_and(|holder| holder.container_id == self.owner.container_id)
    }

    /// Returns why the address is refused, if it has another owner.
    fn other_owner(&self, address: IpAddr, way: FibResult) -> Option<Why> {
        if let Some(why) = self
            .agent
            .why_unassignable(self.facts, self.catalog, address)
        {
            return Some(give_another(why));
        }
        match way {
            FibResult::Local => return Some(give_another("it is a local address of the node")),
            FibResult::Broadcast => {
                return Some(give_another(
                    "it is a network's broadcast or anycast address",
                ));
            }
            FibResult::Via { .. } | FibResult::Unreachable => {}
        }
        let services = self.agent.settings_in(self.catalog).service_cidrs;
        if let Some(net) = services.iter().find(|net| net.contains(&address)) {
            return Some(give_another(format!(
                "{net} is the network of the cluster's Services"
            )));
        }
        if let Some(other) = self.pod_with(address) {
            return Some(give_another(format!("pod {other} has it")));
        }
        let mut pools = self.catalog.pools().iter();
        let pool = pools.find(|pool| pool.declared.contains(address))?;
        let standing = self.agent.pools.lookup(address);
        let is_free = standing.holder.is_none() && standing.reservation.is_none();
        let mut listed = self.agent.settings.foreign_subnets.iter();
        if is_free && listed.any(|net| net.contains(&address)) {
            return None;
        }
        Some((
            format!(
                "it is of pool {}, which has not given it to this pod",
                pool.name
            ),
            format!(
                "nothing was made: keep the addresses of other plugins out of pool {} (excludeIPs, or a \
                 SpiderReservedIP), or leave `ipam` to ebbtide",
                pool.name
            ),
        ))
    }

    /// Returns another pod of this node that has it. A pod whose namespace is gone does not count, even before its
    /// DEL.
    fn pod_with(&self, address: IpAddr) -> Option<String> {
        let mut with = Vec::new();
        self.agent.each_interface(|other, net| {
            if other.container_id != self.owner.container_id && net.ips().contains(&address) {
                with.push(Arc::clone(net));
            }
        });
        let mut with = with.into_iter();
        with.find(|net| !is_gone(net)).map(|net| net.pod.clone())
    }

    /// Whether a link is the host's end of another pod, recorded here or not.
    fn is_another_pods(&self, link: &Link) -> bool {
        if !node::is_pod_veth(link) {
            return false;
        }
        let mut other_owner = None;
        self.agent.each_interface(|other, net| {
            let veth = net.veth.as_ref();
            if veth.is_some_and(|veth| veth.host_name == link.name) {
                other_owner = Some((other.container_id.clone(), Arc::clone(net)));
            }
        });
        other_owner
            .is_none_or(|(container, net)| container != self.owner.container_id && !is_gone(&net))
    }

    /// Returns the kind of the pod's interface, seen from the node.
    async fn interface_kind(&self) -> Result<InterfaceKind, netlink::Error> {
        let host = &self.agent.host;
        let link = match self.origin.on {
            Target::Existing(link) => link,
            Target::Nic(name) => {
                let nic = host.link(name).await?;
                // Without the NIC, the plan reports the error.
                return Ok(nic.map_or(InterfaceKind::Unconnected, |nic| {
                    InterfaceKind::Child(nic.ifindex)
                }));
            }
        };
        let (true, Some(peer)) = (evidence::is_veth_like(link), link.iflink) else {
            return Ok(evidence::kind_of(link));
        };
        // Interface indexes of two namespaces may coincide: both ends must refer to each other.
        let end = host.link_at(peer).await?;
        let end = end.filter(|end| evidence::is_veth_like(end) && end.iflink == Some(link.ifindex));
        let Some(end) = end.filter(|end| end.iflink_in_other_netns && link.iflink_in_other_netns)
        else {
            return Ok(InterfaceKind::Unconnected);
        };
        let switch = match end.port_of {
            Some(ifindex) => {
                let switch = host.link_at(ifindex).await?;
                let is_open = switch.is_some_and(|link| link.kind.as_deref() == Some(OPEN));
                Some(Switch { ifindex, is_open })
            }
            None => None,
        };
        Ok(InterfaceKind::Veth { peer, switch })
    }

    /// Returns which evidence is missing that the address can be a pod's there.
    fn evidence(
        &self,
        own: &PodAddress,
        way: FibResult,
        out: Option<&Link>,
        place: &InterfaceKind,
        routers: &[ByGateway],
    ) -> Option<Why> {
        let pools = self.catalog.pools().iter().filter(|pool| {
            let nodes = &pool.node_names;
            nodes.is_empty() || nodes.contains(&self.agent.node_name)
        });
        let pools: Vec<IpNet> = pools.map(|pool| pool.subnet).collect();
        // The masters that networks name are no evidence: anybody may write a network.
        let known = Known {
            subnets: pools.clone(),
            ..Known::default()
        };
        let settings = &self.agent.settings;
        let taken = node::classify_all(self.facts, &known, &settings.nics).into_iter();
        let nics = taken.filter(|(_, taken)| taken.role == Role::Nic);
        let nics: Vec<u32> = nics.map(|(nic, _)| nic.ifindex).collect();
        let ground = CheckInput {
            place,
            links: &self.facts.nics,
            nics: &nics,
            pools: &pools,
            listed: &settings.foreign_subnets,
            routers,
            whole: matches!(self.origin.on, Target::Nic(_)),
        };
        let why = evidence::check(&own.address, way, out, ground).err()?;
        let hint = format!(
            "nothing was made: give the pod an address of a network of its NIC, or let the node's administrator list \
             {} in the agent's `foreignSubnets`",
            own.address.trunc()
        );
        Some((why, hint))
    }
}

fn is_gone(net: &PodNet) -> bool {
    matches!(net.namespace(), Ok(Evidence::Gone))
}
