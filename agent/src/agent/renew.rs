//! Running pods on a node that changes: a NIC, an address, a gateway or an MTU came, changed or went.

use std::sync::Arc;

use tracing::{error, info};

use super::{Agent, DetachError, locked, view::gateway_now};
use crate::{
    catalog::Catalog,
    node::NodeFacts,
    podnet::{self, Links, PodNet},
    pool::Owner,
};

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
    /// Puts every running pod's network right that is not as these facts want it.
    pub async fn renew_pods(&self, facts: &Arc<NodeFacts>) {
        let last = locked(&self.renewed).replace(Arc::clone(facts));
        let index =
            |facts: &NodeFacts, net: &PodNet| facts.nic(net.master()?).map(|nic| nic.ifindex);
        let mac = |facts: &NodeFacts, net: &PodNet| facts.nic(net.master()?).map(|nic| nic.mac);
        // Its interface went with the NIC it was a child of; or that has another link-layer address, which the guard
        // is to know.
        let is_on_another = |net: &PodNet| {
            last.as_ref().is_some_and(|last| {
                index(last, net) != index(facts, net)
                    || (net.sends_frames() && mac(last, net) != mac(facts, net))
            })
        };
        for (owner, net) in self.interfaces() {
            let new = self.renewed(&net, facts);
            let is_gone = net
                .master()
                .is_some_and(|master| facts.nic(master).is_none());
            if is_gone || (new == *net && !is_on_another(&net)) {
                continue;
            }
            let _turn = self.turns.to_change(&owner.container_id).await;
            // Removed, or added again, meanwhile.
            let Some(net) = self.interface(&owner) else {
                continue;
            };
            match self.put_right(&owner, &net, facts).await {
                Ok(()) => info!(pod = %net.pod, interface = owner.interface, "follows the node"),
                Err(e) => error!(pod = %net.pod, %owner, "cannot follow the node: {e}"),
            }
        }
    }

    /// `net` as it is to be now; as it is if the node cannot carry it any more.
    pub(super) fn renewed(&self, net: &PodNet, facts: &NodeFacts) -> PodNet {
        // The Services' networks are not known yet, and the pod's routes to them are to stay.
        if self
            .cluster
            .as_ref()
            .is_some_and(|cluster| !cluster.is_known())
        {
            return net.clone();
        }
        let catalog = self.catalog();
        let gateway = |own: &podnet::PodAddress| gateway_now(net, own, &catalog);
        let declared = as_declared(net, &catalog);
        podnet::renew(&declared, facts, gateway, &self.settings_in(&catalog))
            .unwrap_or_else(|_| net.clone())
    }

    /// Puts one interface right, for the node as it is now.
    pub(super) async fn put_right(
        &self,
        owner: &Owner,
        net: &PodNet,
        facts: &Arc<NodeFacts>,
    ) -> Result<(), DetachError> {
        self.put(owner, net, self.renewed(net, facts), facts).await
    }

    /// Makes one interface, which is as `net`, as `new`.
    pub(super) async fn put(
        &self,
        owner: &Owner,
        net: &PodNet,
        new: PodNet,
        facts: &Arc<NodeFacts>,
    ) -> Result<(), DetachError> {
        let nic = self.missing_nic_plan(facts, &new);
        podnet::apply(&new, &nic, &self.host, &self.datapath, Links::Ensure).await?;
        if new == *net {
            return Ok(());
        }
        podnet::prune(net, &new, &self.host).await?;
        self.write_down(owner, &new).await?;
        self.note(owner.clone(), Arc::new(new));
        Ok(())
    }
}
