//! Repairs pods that take foreign addresses, or that change the mode of their NIC.
//!
//! A pod with CAP_NET_ADMIN may do that to its own interface without being stopped by the kernel, which sends a
//! notification, though. The spoof guard drops what such a pod sends; this keeps it from receiving foreign packets.
//! Nothing is done where `spoofGuard` is off.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ebbtide_kernel::{
    netlink::{Error, Netlink},
    node::NodeFacts,
    podnet::{self, PodNet, Reverted},
};
use tracing::warn;

use super::locked;
use crate::metrics::Events;

/// How long one list of addresses serves for the pods that one event names.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The node's and the routers' addresses, which no pod may have.
#[derive(Debug, Default)]
pub(super) struct UnassignableAddresses {
    listed: tokio::sync::Mutex<Option<(Instant, Arc<[IpAddr]>)>>,
    /// When the list became outdated: an older one must not be used any more.
    old: Mutex<Option<Instant>>,
    /// Where repairs are counted.
    events: Events,
}

impl UnassignableAddresses {
    /// Makes an empty list; repairs are counted in `events`.
    pub(super) fn new(events: Events) -> Self {
        Self {
            events,
            ..Self::default()
        }
    }

    /// Marks the list as outdated: the next pod is compared with the node's current addresses.
    pub(super) fn invalidate(&self) {
        *locked(&self.old) = Some(Instant::now());
    }

    async fn get(&self, host: &Netlink, facts: &NodeFacts) -> Result<Arc<[IpAddr]>, Error> {
        let mut listed = self.listed.lock().await;
        let old = *locked(&self.old);
        let is_fresh = |then: Instant| then.elapsed() < MAX_AGE && old.is_none_or(|old| then > old);
        if let Some((then, addresses)) = &*listed
            && is_fresh(*then)
        {
            return Ok(Arc::clone(addresses));
        }
        let now = Instant::now();
        let found = host.addresses().await?;
        let own = found.iter().map(|found| found.address.addr());
        let routers = facts.defaults.iter().filter_map(|route| route.via);
        let addresses: Arc<[IpAddr]> = own
            .filter(|address| !address.is_loopback())
            .chain(routers)
            .collect();
        *listed = Some((now, Arc::clone(&addresses)));
        Ok(addresses)
    }

    /// Undoes what the pod has changed on its interface, and returns whether that was anything.
    pub(super) async fn revert_changes(
        &self,
        net: &PodNet,
        host: &Netlink,
        facts: &NodeFacts,
    ) -> Result<bool, podnet::Error> {
        let taken = self.get(host, facts).await?;
        let reverted = podnet::revert(net, taken.to_vec()).await?;
        log_reverted(net, &reverted);
        self.events.reverted(&net.pod, &reverted);
        Ok(reverted != Reverted::default())
    }
}

fn log_reverted(net: &PodNet, reverted: &Reverted) {
    for (address, link) in &reverted.addresses {
        warn!(
            pod = %net.pod,
            "removed {address} from {link} in the pod: it is not assigned to the pod, which \
             would have received its packets; a pod that is to have addresses of its own needs \
             `spoofGuard: false` in the agent's configuration"
        );
    }
    if let Some(mode) = reverted.mode {
        warn!(
            pod = %net.pod,
            "the pod had set its ipvlan interface, and with it all interfaces on its NIC, to \
             mode {mode}: repaired"
        );
    }
}
