//! Running pods on a node that changes: what an interface is to be now, and whether it is that.

use std::sync::Arc;

use ebbtide_ipam::{catalog::Catalog, pool::Owner};
use ebbtide_kernel::{
    node::NodeFacts,
    podnet::{self, Links, PodNet},
};
use ebbtide_types::Mac;

use super::{Agent, DetachError, locked, view::gateway_now};

/// How an interface differs from what it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Its plan is different now: an address, a gateway or an MTU came, changed or went.
    Plan,
    /// It went with the NIC it was a child of, which is back; or that has another link-layer address, which the guard is
    /// to know.
    Nic,
    /// Nobody knows what it was made on: whoever made it did not live to note it.
    Unknown,
}

/// The NIC that an interface was put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uplink {
    ifindex: Option<u32>,
    /// If the pod's frames have it.
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

/// With what its network says now of destinations beyond the node: they may be the cluster's pods, and
/// such a network may come. A network that is gone stays as it was.
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
    /// How `net` differs from what these facts and the manifests ask for. An interface without its NIC does not: there is
    /// nothing to be done.
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

    /// Whether the NIC that the interface is a child of is not there.
    #[must_use]
    pub fn is_without_nic(&self, net: &PodNet, facts: &NodeFacts) -> bool {
        net.master()
            .is_some_and(|master| facts.nic(master).is_none())
    }

    /// Notes that the interface is in the kernel, made for these facts; or, if its NIC is not among them, that it is not.
    pub fn note_uplink(&self, owner: &Owner, net: &PodNet, facts: &NodeFacts) {
        let uplink = Uplink::of(net, facts);
        locked(&self.uplinks).insert(owner.clone(), uplink);
    }

    /// Whether the Services' networks are known, without which no plan is to be changed: the pods' routes to them are to
    /// stay.
    #[must_use]
    pub fn knows_services(&self) -> bool {
        let cluster = self.cluster.as_ref();
        cluster.is_none_or(|cluster| cluster.is_known())
    }

    /// `net` as it is to be now; as it is if the node cannot carry it any more.
    #[must_use]
    pub fn replanned(&self, net: &PodNet, facts: &NodeFacts) -> PodNet {
        if !self.knows_services() {
            return net.clone();
        }
        let catalog = self.catalog();
        let gateway = |own: &podnet::PodAddress| gateway_now(net, own, &catalog);
        let declared = as_declared(net, &catalog);
        podnet::replan(&declared, facts, gateway, &self.settings_in(&catalog))
            .unwrap_or_else(|_| net.clone())
    }

    /// Makes one interface, which is as `net`, as `new`.
    ///
    /// # Errors
    /// When the kernel or the store refuses.
    pub async fn put(
        &self,
        owner: &Owner,
        net: &PodNet,
        new: PodNet,
        facts: &Arc<NodeFacts>,
    ) -> Result<(), DetachError> {
        let nic = self.missing_nic_plan(facts, &new);
        podnet::apply(&new, &nic, &self.host, &self.datapath, Links::Ensure).await?;
        if new != *net {
            podnet::prune(net, &new, &self.host).await?;
            self.write_down(owner, &new).await?;
            self.note(owner.clone(), Arc::new(new.clone()));
        }
        // Only now: what was not done is tried again.
        self.note_uplink(owner, &new, facts);
        Ok(())
    }
}
