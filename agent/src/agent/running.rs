//! Pods that ran before this agent did.
//!
//! Before the agent is ready it knows all that is written down, and has released what belongs to pods that ended
//! meanwhile. Afterwards the reconciler takes each container over: it gets this agent's programs and whatever is missing.
//! Who asks for something about one of them waits for that; new pods do not wait, however many run.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::{netlink::netns::Evidence, node::NodeFacts, podnet::PodNet};
use futures::{StreamExt as _, stream};
use tracing::{error, warn};

use super::{Agent, WriteGuard};

/// Containers that are looked at together: enough for all processors to have work while some wait for the
/// kernel.
const AT_ONCE: usize = 16;

/// What ran before, and has not been looked at. Nobody looks at its interfaces or changes them until
/// it is taken over.
#[derive(Debug, Default)]
#[must_use = "requests for these containers wait until they are taken over"]
pub struct Running(Vec<RunningContainer>);

/// One of these containers.
#[derive(Debug)]
pub struct RunningContainer {
    /// Its ID.
    pub id: String,
    /// Held until it is taken over.
    pub lock: WriteGuard,
    /// How many interfaces it has.
    pub interfaces: usize,
    /// What the node was prepared for.
    pub facts: Arc<NodeFacts>,
}

impl IntoIterator for Running {
    type Item = RunningContainer;
    type IntoIter = std::vec::IntoIter<RunningContainer>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Agent {
    /// Puts the NICs right, and gives all containers that run. Those whose namespace is
    /// gone are released.
    pub async fn remember(&self) -> Running {
        let interfaces = self.written_down();
        let facts = match self.facts.get(&self.host).await {
            Ok(facts) => facts,
            Err(e) => {
                error!("running pods could not be looked at: {e}");
                return Running::default();
            }
        };
        self.withhold(&facts, &self.catalog());
        self.prepare_nics(&facts, None).await;
        let mut by_container: HashMap<String, Vec<_>> = HashMap::new();
        for (owner, net) in interfaces {
            let container = owner.container_id.clone();
            by_container
                .entry(container)
                .or_default()
                .push((owner, net));
        }
        let living = stream::iter(by_container)
            .map(|(container, interfaces)| self.living(container, interfaces, Arc::clone(&facts)))
            .buffer_unordered(AT_ONCE);
        let mut living: Vec<_> = living.collect().await;
        living.retain(|container| container.interfaces > 0);
        let interfaces = living.iter().map(|container| container.interfaces).sum();
        self.not_reconciled.store(interfaces, Ordering::Relaxed);
        Running(living)
    }

    /// Notes all interfaces that are written down.
    pub(super) fn written_down(&self) -> Vec<(Owner, Arc<PodNet>)> {
        let mut nets = Vec::new();
        for allocation in self.pools.list() {
            match allocation.record.parse::<PodNet>() {
                Ok(net) => nets.push((allocation.owner, Arc::new(net))),
                Err(e) => error!(
                    owner = %allocation.owner,
                    "its record cannot be read, so its addresses stay taken until \
                     `ebbtidectl release` or DEL: {e}"
                ),
            }
        }
        let chained = self.chained.list().into_iter();
        nets.extend(chained.map(|(owner, net)| (owner, Arc::new(net))));
        for (owner, net) in &nets {
            self.note(owner.clone(), Arc::clone(net));
        }
        nets
    }

    /// The interfaces of a container that are there. What cannot be looked at stays as it is.
    async fn living(
        &self,
        container: String,
        interfaces: Vec<(Owner, Arc<PodNet>)>,
        facts: Arc<NodeFacts>,
    ) -> RunningContainer {
        let lock = self.locks.write(&container).await;
        let mut living = 0;
        for (owner, net) in interfaces {
            match net.namespace() {
                Ok(Evidence::Gone) => {
                    if let Err(e) = self.release_gone(&owner, &net).await {
                        warn!(pod = %net.pod, %owner, "could not be released: {e}");
                    }
                }
                Ok(Evidence::Present(_)) => living += 1,
                Err(e) => warn!(pod = %net.pod, %owner, "left as it is: {e}"),
            }
        }
        RunningContainer {
            id: container,
            lock,
            interfaces: living,
            facts,
        }
    }

    /// Interfaces that were there before the agent, and that it has not looked at yet.
    #[must_use]
    pub fn not_reconciled(&self) -> usize {
        self.not_reconciled.load(Ordering::Relaxed)
    }

    /// Notes that so many interfaces have been looked at.
    pub fn took_over(&self, interfaces: usize) {
        self.not_reconciled.fetch_sub(interfaces, Ordering::Relaxed);
    }
}
