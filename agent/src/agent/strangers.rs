//! Pods that take what is others': addresses that are not theirs, another mode for the NIC, programs taken off.
//!
//! A pod with CAP_NET_ADMIN may do that to its own interface, and the kernel asks nobody. It tells it, though, and what
//! the guard would drop on the way out is taken away on the way in. Nobody is guarded where `spoofGuard` is off.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use tokio::time::{sleep, timeout};
use tracing::{error, warn};

use super::{Agent, locked};
use crate::{
    netlink::{
        elsewhere::{Change, Changes},
        link::IpvlanMode,
    },
    node::is_link_local,
    podnet::{self, PodNet, Undone},
    pool::Owner,
};

/// Pods that are looked into together.
const AT_ONCE: usize = 16;

/// A burst of changes is one look, however often somebody makes them. It is short: until then the others wait.
const SETTLE: Duration = Duration::from_millis(100);

/// After a look that found nothing: other plugins' pods come and go as well.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two looks where nobody tells.
const LOOK: Duration = Duration::from_secs(30);

/// Looks after such pods until the process ends.
pub async fn watch(agent: Arc<Agent>) {
    agent.all_taken_over().await;
    let told = Changes::listen();
    // What was changed while no agent listened.
    agent.take_back().await;
    match told {
        Ok(mut told) => while agent.take_back_when_told(&mut told).await.is_some() {},
        Err(e) => warn!(
            "what pods with CAP_NET_ADMIN make of their interfaces is looked for every {} s only: cannot listen to \
             other network namespaces: {e}; give the agent the capability NET_BROADCAST",
            LOOK.as_secs()
        ),
    }
    loop {
        sleep(LOOK).await;
        agent.take_back().await;
    }
}

/// Whether the guard is on for what the interface sends.
fn is_guarded(net: &PodNet) -> bool {
    let mut filters = net.in_pod.filters.iter();
    net.ipvlan.is_some()
        && filters.any(|filter| filter.link == net.interface && filter.only_from.is_some())
}

impl Agent {
    /// Waits for changes that are none of ours, and looks; `None` when the socket was closed.
    async fn take_back_when_told(&self, told: &mut Changes) -> Option<()> {
        let mut heard = vec![told.next().await?];
        while let Ok(change) = timeout(SETTLE, told.next()).await {
            heard.push(change?);
            if heard.len() > 1000 {
                break;
            }
        }
        if self.is_strange(&heard) && !self.take_back().await {
            sleep(PAUSE).await;
        }
        Some(())
    }

    /// Whether what was heard may be somebody else's doing. What is being made now is no record's yet: then a look costs
    /// a little, and finds nothing.
    fn is_strange(&self, heard: &[Change]) -> bool {
        let interfaces = self.interfaces();
        let nets = || interfaces.iter().map(|(_, net)| net);
        let own: HashSet<IpAddr> = nets().flat_map(|net| net.ips()).collect();
        let modes: HashSet<IpvlanMode> = nets()
            .filter_map(|net| net.ipvlan.as_ref().map(|ipvlan| ipvlan.mode))
            .collect();
        heard.iter().any(|change| match change {
            // Another pod's is one that the kernel refuses on the same NIC, and not on another.
            Change::Address(address) => {
                !address.is_loopback() && (is_link_local(address) || !own.contains(address))
            }
            Change::Mode(mode) => modes.len() > 1 || !modes.contains(mode),
            Change::HookGone | Change::Overrun => true,
        })
    }

    /// Looks into all guarded pods; whether something was taken back.
    async fn take_back(&self) -> bool {
        let mut interfaces = self.interfaces();
        interfaces.retain(|(_, net)| is_guarded(net));
        if interfaces.is_empty() {
            return false;
        }
        let taken = match self.host.addresses().await {
            Ok(found) => found.into_iter().map(|found| found.address.addr()),
            Err(e) => {
                warn!("cannot look for addresses that pods took: {e}");
                return false;
            }
        };
        let facts = locked(&self.renewed).clone();
        let routers = facts.iter().flat_map(|facts| &facts.defaults);
        let taken: Vec<IpAddr> = taken
            .filter(|address| !address.is_loopback())
            .chain(routers.filter_map(|route| route.via))
            .collect();
        let taken = &taken;
        let found = &AtomicBool::new(false);
        let each = |(owner, net): (Owner, Arc<PodNet>)| async move {
            match podnet::undo(&net, taken.clone()).await {
                Ok(undone) => {
                    found.fetch_or(undone != Undone::default(), Ordering::Relaxed);
                    tell(&net, &undone);
                }
                Err(podnet::Error::NamespaceGone(_)) => {}
                Err(e) => error!(pod = %net.pod, "cannot take back what the pod took: {e}"),
            }
            let again = self.attach_again(&owner, &net).await;
            found.fetch_or(again, Ordering::Relaxed);
        };
        stream::iter(interfaces)
            .for_each_concurrent(AT_ONCE, each)
            .await;
        found.load(Ordering::Relaxed)
    }

    /// Puts programs back that somebody took off the pod's interfaces; whether some were.
    async fn attach_again(&self, owner: &Owner, net: &PodNet) -> bool {
        match podnet::is_attached(net).await {
            Ok(false) => {}
            Ok(true) | Err(podnet::Error::NamespaceGone(_)) => return false,
            Err(e) => {
                error!(pod = %net.pod, "cannot look for our programs: {e}");
                return false;
            }
        }
        let _turn = self.turns.to_change(&owner.container_id).await;
        // Removed, or added again, meanwhile.
        let (Some(net), Some(facts)) = (self.interface(owner), locked(&self.renewed).clone())
        else {
            return false;
        };
        match self.put_right(owner, &net, &facts).await {
            Ok(()) => warn!(
                pod = %net.pod,
                interface = owner.interface,
                "our programs were taken off the pod's interface, the guard with them: put back; only a pod with \
                 CAP_NET_ADMIN can do that"
            ),
            Err(e) => error!(pod = %net.pod, %owner, "cannot put our programs back: {e}"),
        }
        true
    }
}

fn tell(net: &PodNet, undone: &Undone) {
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
            "the pod's interface, and with it all on its NIC, had been given the mode {mode}: put back"
        );
    }
}
