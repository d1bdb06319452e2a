//! The events that wake the reconciler: netlink notifications of the host and of the pods, and changed manifests.

use std::{sync::Arc, time::Duration};

use ebbtide_kernel::{
    netlink::{
        new_rules::NewRules,
        notification::{Notification, Notifications},
        other_netns::{Change, Changes},
    },
    node::Subscription,
    podnet::PodNet,
};
use futures::FutureExt as _;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{
    Reconciler, Scope,
    events::{are_foreign, concern_guarded_pods, is_held, is_open_to_foreign},
    locked,
    work::RESYNC,
};
use crate::agent::Agent;

/// The pause before a socket that was closed, or could not be opened, is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// The length of a burst of changes in pods, which one comparison serves. It is short, as the comparison waits for its
/// end.
const BURST: Duration = Duration::from_millis(100);

/// The number of events that are kept of one burst.
const MAX_EVENTS: usize = 1000;

/// Receives the host's netlink notifications, all of them immediately, even during a repair: an interface that is made
/// meanwhile must not be based on outdated facts.
pub(super) async fn to_host(reconciler: &Reconciler) {
    let agent = &reconciler.agent;
    let mut has_warned = false;
    loop {
        match Notifications::listen() {
            Ok(mut events) => {
                has_warned = false;
                agent.facts.set_listening(true);
                let subscription = Arc::new(Subscription::to_all(events.routes()));
                *locked(&reconciler.subscription) = Some(Arc::clone(&subscription));
                // Notifications that were missed before.
                agent.work.enqueue_node();
                while let Some(event) = events.next().await {
                    let changes_facts = agent.facts.observe(&event);
                    if changes_facts && is_hardware(&event) {
                        agent.cloud.links_changed();
                    }
                    if changes_facts || subscription.matches(&event) {
                        agent.work.enqueue_node();
                    }
                }
                agent.facts.set_listening(false);
                *locked(&reconciler.subscription) = None;
            }
            Err(e) if !has_warned => {
                warn!(
                    "receive netlink notifications of the host: {e}; its changes are noticed \
                     every 30 s only"
                );
                has_warned = true;
            }
            Err(_) => {}
        }
        sleep(PAUSE).await;
        // Without notifications, changes are found by comparing.
        agent.work.enqueue_node();
    }
}

/// Whether an event is of a link that no software made, such as a NIC that a cloud attaches.
const fn is_hardware(event: &Notification) -> bool {
    matches!(event, Notification::Link(link) | Notification::LinkGone(link) if link.kind.is_none())
}

/// Names the node when the manifests change, as its plan may change with them.
pub(super) async fn to_manifests(agent: &Agent) {
    let mut catalogs = agent.catalogs();
    while catalogs.changed().await.is_ok() {
        agent.work.enqueue_node();
    }
}

/// Receives changes that pods make to guarded interfaces, and foreign links.
pub(super) async fn to_pods(reconciler: &Reconciler) {
    let mut has_warned = false;
    loop {
        match Changes::listen() {
            Ok(mut events) => {
                has_warned = false;
                while let Some(burst) = next_burst(&mut events).await {
                    if are_foreign(&burst) {
                        reconciler.foreign_link.notify_one();
                    }
                    let interfaces = reconciler.agent.interfaces();
                    let nets = interfaces.iter().map(|(_, net)| net);
                    // A take-over replaces programs itself, and ends with a look into all of them.
                    if !reconciler.is_taking_over() && concern_guarded_pods(&burst, nets) {
                        reconciler.inspect_guarded_pods();
                    }
                }
            }
            Err(e) if !has_warned => {
                has_warned = true;
                warn!(
                    "receive netlink notifications of the pods' namespaces: {e}; changes that \
                     pods with CAP_NET_ADMIN make to their interfaces are looked for every {} s \
                     only; give the agent the capability NET_BROADCAST",
                    RESYNC.as_secs()
                );
            }
            Err(_) => {}
        }
        sleep(RESYNC).await;
        reconciler.inspect_guarded_pods();
        reconciler.inspect_foreign();
    }
}

/// Looks into the pods when a foreign link was set up in any namespace: the kernel does not say in which one. On a node
/// where others start pods all the time, that must not be at each of them.
pub(super) async fn look_for_foreign_links(reconciler: &Reconciler) {
    loop {
        reconciler.foreign_link.notified().await;
        let pods = reconciler.inspect_foreign();
        sleep(pause_after(pods)).await;
    }
}

/// Returns how long not to look for foreign links again after having looked into so many pods. A look takes about a
/// quarter of a millisecond, so that at most a fortieth of a processor is spent.
fn pause_after(pods: usize) -> Duration {
    const PER_POD: Duration = Duration::from_millis(10);
    PAUSE.max(PER_POD * u32::try_from(pods).unwrap_or(u32::MAX))
}

/// Receives new foreign rules in pods.
pub(super) async fn to_rules(reconciler: &Reconciler) {
    let mut has_warned = false;
    loop {
        match NewRules::listen() {
            Ok(mut events) => {
                has_warned = false;
                while events.next().await.is_some() {
                    sleep(BURST).await;
                    while events.next().now_or_never().flatten().is_some() {}
                    reconciler.inspect_foreign();
                }
            }
            Err(e) if !has_warned => {
                has_warned = true;
                warn!(
                    "foreign routing rules in pods (transparent proxies) are looked for every {} s only: cannot listen to \
                     other network namespaces: {e}; give the agent the capability NET_BROADCAST",
                    RESYNC.as_secs()
                );
            }
            Err(_) => {}
        }
        sleep(RESYNC).await;
        reconciler.inspect_foreign();
    }
}

async fn next_burst(events: &mut Changes) -> Option<Vec<Change>> {
    let mut heard = vec![events.next().await?];
    while let Ok(event) = timeout(BURST, events.next()).await {
        heard.push(event?);
        if heard.len() > MAX_EVENTS {
            break;
        }
    }
    Some(heard)
}

impl Reconciler {
    /// Names all guarded pods, and those with a limit: the kernel does not say which one an event came from.
    pub(super) fn inspect_guarded_pods(&self) {
        self.taken.invalidate();
        self.enqueue_where(is_held, Scope::GUARD);
    }

    /// Names all pods whose plan something foreign would change, and returns their number.
    pub(super) fn inspect_foreign(&self) -> usize {
        self.enqueue_where(is_open_to_foreign, Scope::FOREIGN)
    }

    fn enqueue_where(&self, is_meant: impl Fn(&PodNet) -> bool, scope: Scope) -> usize {
        let mut containers = Vec::new();
        self.agent.each_interface(|owner, net| {
            if is_meant(net) {
                containers.push(owner.container_id.clone());
            }
        });
        for container in &containers {
            self.agent.work.enqueue_container(container, scope);
        }
        containers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_many_pods_is_not_searched_through_for_each_link_of_others() {
        for (pods, seconds) in [(0, 1), (100, 1), (250, 2), (1000, 10)] {
            assert_eq!(pause_after(pods).as_secs(), seconds, "{pods}");
        }
    }
}
