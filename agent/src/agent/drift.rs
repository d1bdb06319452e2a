//! Drift of running pods' interfaces: what an interface should be now that the node has changed, and whether it is
//! that.

use std::sync::Arc;

use ebbtide_ipam::{catalog::Catalog, pool::Owner};
use ebbtide_kernel::{
    node::NodeFacts,
    podnet::{self, Links, PodNet},
};
use ebbtide_types::Mac;

use super::{Agent, DetachError, locked, view::gateway_now};

/// How an interface differs from its desired state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Its plan has changed: an address, a gateway or an MTU was added, changed or removed.
    Plan,
    /// The NIC that it was a child of was removed and is back, or has another link-layer address, which the spoof
    /// guard must use.
    Nic,
    /// It is not recorded which NIC it was made on: the agent that made it ended before.
    Unknown,
}

/// The NIC that an interface was attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uplink {
    ifindex: Option<u32>,
    /// Its link-layer address, if the pod's frames carry it.
    mac: Option<Mac>,
}

impl Uplink {
    fn of(net: &PodNet, facts: &NodeFacts) -> Self {
        let nic = net.master().and_then(|master| facts.nic(master));
        Self {
            ifindex: nic.map(|nic| nic.ifindex),
            mac: nic.filter(|_| net.sends_frames()).and_then(|nic| nic.mac),
        }
    }
}

/// Returns `net` with the destinations beyond the node that its network declares now: they may be the cluster's pods,
/// and more of them may be declared. If the network no longer exists, `net` is unchanged.
fn as_declared(net: &PodNet, catalog: &Catalog) -> PodNet {
    let mut net = net.clone();
    if let Some(spec) = &mut net.spec {
        let mut networks = catalog.networks().iter();
        if let Some(network) = networks.find(|network| network.name.to_string() == spec.name) {
            spec.via_host.clone_from(&network.via_host);
        }
    }
    net
}

impl Agent {
    /// Returns how `net` differs from what these facts and the manifests require. `None` for an interface without its
    /// NIC: nothing can be repaired.
    #[must_use]
    pub fn drift(&self, owner: &Owner, net: &PodNet, facts: &NodeFacts) -> Option<Drift> {
        if self.is_without_nic(net, facts) {
            return None;
        }
        let uplink = locked(&self.uplinks).get(owner).copied();
        match uplink {
            None => Some(Drift::Unknown),
            Some(uplink) if uplink != Uplink::of(net, facts) => Some(Drift::Nic),
            Some(_) if self.replanned(net, facts) != *net => Some(Drift::Plan),
            Some(_) => None,
        }
    }

    /// Whether the NIC that the interface is a child of does not exist.
    #[must_use]
    pub fn is_without_nic(&self, net: &PodNet, facts: &NodeFacts) -> bool {
        net.master()
            .is_some_and(|master| facts.nic(master).is_none())
    }

    /// Records the NIC for which the interface is in the kernel; or that it has none, if its NIC is not among the
    /// facts.
    pub fn record_uplink(&self, owner: &Owner, net: &PodNet, facts: &NodeFacts) {
        let uplink = Uplink::of(net, facts);
        locked(&self.uplinks).insert(owner.clone(), uplink);
    }

    /// Whether the Services' networks are known. Until then no plan may change: the pods' routes to them must stay.
    #[must_use]
    pub fn knows_services(&self) -> bool {
        let cluster = self.cluster.as_ref();
        cluster.is_none_or(|cluster| cluster.is_known())
    }

    /// Returns the current plan of `net`; `net` itself if the node cannot carry it any more.
    #[must_use]
    pub fn replanned(&self, net: &PodNet, facts: &NodeFacts) -> PodNet {
        if !self.knows_services() {
            return net.clone();
        }
        let catalog = self.catalog();
        let gateway = |own: &podnet::PodAddress| gateway_now(net, own, &catalog);
        let mut declared = as_declared(net, &catalog);
        if let Some(spec) = &mut declared.spec
            && self.has_no_default(net)
        {
            spec.reply_rule = Some(true);
        }
        let facts = &*self.without_pods(facts);
        podnet::replan(&declared, facts, gateway, &self.settings_in(&catalog))
            .unwrap_or_else(|_| net.clone())
    }

    /// Whether the pod's interface with the main table has no default route in it, so that packets from its addresses
    /// would not be routed, while the replies belong to `net`.
    fn has_no_default(&self, net: &PodNet) -> bool {
        let mut found = false;
        // Without a table of its own, its own gateways decide.
        if net.table.is_some() && !net.reply_families().is_empty() {
            self.each_interface(|owner, other| {
                let is_sibling = owner.container_id == net.container_id && other.table.is_none();
                found |= is_sibling && other.addresses.iter().any(|own| own.gateway.is_none());
            });
        }
        found
    }

    /// Applies the plan `new` to an interface that was made by the plan `net`.
    ///
    /// # Errors
    /// If the kernel or the store refuses.
    pub async fn apply_plan(
        &self,
        owner: &Owner,
        net: &PodNet,
        new: PodNet,
        facts: &Arc<NodeFacts>,
    ) -> Result<(), DetachError> {
        let all = new.clone();
        self.apply_part(owner, net, &all, new, facts).await
    }

    /// As [`Agent::apply_plan`], for what differs in the pod alone: nothing else there can be refused.
    ///
    /// # Errors
    /// If the kernel or the store refuses.
    pub async fn apply_difference(
        &self,
        owner: &Owner,
        net: &PodNet,
        new: PodNet,
        facts: &Arc<NodeFacts>,
    ) -> Result<(), DetachError> {
        let part = podnet::difference(net, &new);
        self.apply_part(owner, net, &part, new, facts).await
    }

    async fn apply_part(
        &self,
        owner: &Owner,
        net: &PodNet,
        part: &PodNet,
        new: PodNet,
        facts: &Arc<NodeFacts>,
    ) -> Result<(), DetachError> {
        let nic = self.missing_nic_plan(facts, &new);
        podnet::apply(part, &nic, &self.host, &self.datapath, Links::Ensure).await?;
        if new != *net {
            podnet::prune(net, &new, &self.host).await?;
            self.write_record(owner, &new).await?;
            self.insert_interface(owner.clone(), Arc::new(new.clone()));
        }
        // Recorded last, so that a failed attempt is repeated.
        self.record_uplink(owner, &new, facts);
        Ok(())
    }
}
