//! Pods that take what is others': addresses that are not theirs, another mode for the NIC.
//!
//! A pod with CAP_NET_ADMIN may do that to its own interface, and the kernel asks nobody. It tells it, though, and what the
//! guard would drop on the way out is taken away on the way in. Nobody is guarded where `spoofGuard` is off.

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

/// How long all pods that one event names may be compared with one list of addresses.
const FRESH: Duration = Duration::from_secs(1);

/// The node's addresses and the routers', which no pod may have.
#[derive(Debug, Default)]
pub(super) struct Taken {
    listed: tokio::sync::Mutex<Option<(Instant, Arc<[IpAddr]>)>>,
    /// What was listed before is not to be used any more.
    old: Mutex<Option<Instant>>,
}

impl Taken {
    /// The next pod is compared with what the node has now.
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

    /// Takes back what the pod has made of its interface; whether that was anything.
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
