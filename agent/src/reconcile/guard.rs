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
    podnet::{self, PodNet, Undone},
};
use tracing::warn;

use super::locked;

/// How long one list of addresses serves for the pods that one event names.
const FRESH: Duration = Duration::from_secs(1);

/// The node's and the routers' addresses, which no pod may have.
#[derive(Debug, Default)]
pub(super) struct Taken {
    listed: tokio::sync::Mutex<Option<(Instant, Arc<[IpAddr]>)>>,
    /// When the list became outdated: an older one must not be used any more.
    old: Mutex<Option<Instant>>,
}

impl Taken {
    /// Marks the list as outdated: the next pod is compared with the node's current addresses.
    pub(super) fn are_old(&self) {
        *locked(&self.old) = Some(Instant::now());
    }

    async fn get(&self, host: &Netlink, facts: &NodeFacts) -> Result<Arc<[IpAddr]>, Error> {
        let mut listed = self.listed.lock().await;
        let old = *locked(&self.old);
        let is_fresh = |then: Instant| then.elapsed() < FRESH && old.is_none_or(|old| then > old);
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
    pub(super) async fn take_back(
        &self,
        net: &PodNet,
        host: &Netlink,
        facts: &NodeFacts,
    ) -> Result<bool, podnet::Error> {
        let taken = self.get(host, facts).await?;
        let undone = podnet::undo(net, taken.to_vec()).await?;
        say(net, &undone);
        Ok(undone != Undone::default())
    }
}

fn say(net: &PodNet, undone: &Undone) {
    for (address, link) in &undone.addresses {
        warn!(
            pod = %net.pod,
            "{address} was taken off {link} in the pod: it is not the pod's, and what is for it would have gone there; \
             a pod that is to have addresses of its own needs `spoofGuard: false` in the agent's configuration"
        );
    }
    if let Some(mode) = undone.mode {
        warn!(
            pod = %net.pod,
            "the pod's interface, and with it all on its NIC, had been given the mode {mode}: repaired"
        );
    }
}
