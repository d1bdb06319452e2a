//! Pods in which somebody marks packets for purposes of their own: transparent proxies, above all.
//!
//! The kernel gives an accepted socket the *whole* mark of its SYN (`tcp_fwmark_accept`), also the part that
//! a proxy has set and routes by (`TPROXY --tproxy-mark`). The proxy's replies would follow its own rule back
//! into the pod. So where somebody makes a rule by mark, sockets take no marks any more, and the programs
//! follow the pod's connections.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{Agent, locked};
use crate::{
    netlink::marked::ForeignMarks,
    podnet::{self, PodNet},
    pool::Owner,
};

/// Pods that are looked into together.
const AT_ONCE: usize = 16;

/// Between two looks, however often somebody makes rules.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two looks where nobody tells.
const LOOK: Duration = Duration::from_secs(30);

/// Looks after such pods until the process ends.
pub async fn watch(agent: Arc<Agent>) {
    agent.all_taken_over().await;
    loop {
        let told = ForeignMarks::listen();
        agent.follow_where_marked().await;
        match told {
            Ok(mut told) => {
                while told.next().await.is_some() {
                    agent.follow_where_marked().await;
                    sleep(PAUSE).await;
                }
            }
            Err(e) => {
                warn!(
                    "rules by mark in pods (transparent proxies) are looked for every {} s only: cannot \
                     listen to other network namespaces: {e}; give the agent the capability \
                     NET_BROADCAST",
                    LOOK.as_secs()
                );
                loop {
                    sleep(LOOK).await;
                    agent.follow_where_marked().await;
                }
            }
        }
    }
}

impl Agent {
    async fn follow_where_marked(&self) {
        let mut interfaces = self.interfaces();
        interfaces.retain(|(_, net)| net.spec.is_some() && net.accepts_marks());
        let each = |(owner, net): (Owner, Arc<PodNet>)| async move {
            match podnet::marks_in(&net).await {
                Ok(true) => self.follow(&owner).await,
                Ok(false) | Err(podnet::Error::NamespaceGone(_)) => {}
                Err(e) => warn!(pod = %net.pod, "cannot look for rules by mark: {e}"),
            }
        };
        stream::iter(interfaces)
            .for_each_concurrent(AT_ONCE, each)
            .await;
    }

    /// Lets the programs follow the connections of an interface.
    async fn follow(&self, owner: &Owner) {
        let _turn = self.turns.to_change(&owner.container_id).await;
        // Removed, or added again, meanwhile.
        let Some(net) = self.interface(owner).filter(|net| net.accepts_marks()) else {
            return;
        };
        let Some(facts) = locked(&self.renewed).clone() else {
            return;
        };
        let mut following = PodNet::clone(&net);
        if let Some(spec) = &mut following.spec {
            spec.accept_marks = false;
        }
        let new = self.renewed(&following, &facts);
        let pod = &net.pod;
        match self.put(owner, &net, new, &facts).await {
            Ok(()) => info!(
                %pod,
                interface = owner.interface,
                "somebody in the pod routes by marks of their own: its sockets take no marks any \
                 more, its connections are followed"
            ),
            Err(e) => error!(%pod, %owner, "cannot follow its connections: {e}"),
        }
    }
}
