//! Taking over pods that ran before this agent did.
//!
//! Before the agent is ready, it has read all records and released what belongs to pods that ended meanwhile.
//! Afterwards the reconciler takes each container over: it gets this agent's programs and whatever is missing.
//! Requests about one of these containers wait for that; new pods do not wait, however many run.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::{netlink::netns::Evidence, node::NodeFacts, podnet::PodNet};
use futures::{StreamExt as _, stream};
use tracing::{error, warn};

use super::{Agent, WriteGuard};

/// The number of containers that are inspected concurrently: enough for all processors to have work while some wait
/// for the kernel.
const MAX_CONCURRENT: usize = 16;

/// The containers that ran before the agent and are not reconciled yet. Nobody reads or changes their interfaces until
/// they are taken over.
#[derive(Debug, Default)]
#[must_use = "requests for these containers wait until they are taken over"]
pub struct Running(Vec<RunningContainer>);

/// A container that is to be taken over.
#[derive(Debug)]
pub struct RunningContainer {
    /// Its ID.
    pub id: String,
    /// Its lock, held until it is taken over.
    pub lock: WriteGuard,
    /// The number of its interfaces.
    pub interfaces: usize,
    /// The facts that the NICs were prepared for.
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
    /// Prepares the NICs, and returns all containers that run. Releases those whose namespace no longer exists.
    pub async fn running_containers(&self) -> Running {
        let interfaces = self.load_records();
        let facts = match self.facts.get(&self.host).await {
            Ok(facts) => facts,
            Err(e) => {
                error!("read the node's links and addresses, to reconcile running pods: {e}");
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
            .map(|(container, interfaces)| {
                self.inspect_container(container, interfaces, Arc::clone(&facts))
            })
            .buffer_unordered(MAX_CONCURRENT);
        let mut living: Vec<_> = living.collect().await;
        living.retain(|container| container.interfaces > 0);
        let interfaces = living.iter().map(|container| container.interfaces).sum();
        self.not_reconciled.store(interfaces, Ordering::Relaxed);
        Running(living)
    }

    /// Reads all records, and enters their interfaces into memory.
    pub(super) fn load_records(&self) -> Vec<(Owner, Arc<PodNet>)> {
        let mut nets = Vec::new();
        for allocation in self.pools.list() {
            match allocation.record.parse::<PodNet>() {
                Ok(net) => nets.push((allocation.owner, Arc::new(net))),
                Err(e) => error!(
                    owner = %allocation.owner,
                    "its record cannot be read, so its addresses stay in use until `ebbtidectl \
                     release` or DEL: {e}"
                ),
            }
        }
        let chained = self.chained.list().into_iter();
        nets.extend(chained.map(|(owner, net)| (owner, Arc::new(net))));
        for (owner, net) in &nets {
            self.insert_interface(owner.clone(), Arc::clone(net));
        }
        nets
    }

    /// Locks a container, releases its interfaces whose namespace no longer exists, and counts the others. One that
    /// cannot be inspected stays.
    async fn inspect_container(
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
                Err(e) => {
                    warn!(
                        pod = %net.pod,
                        %owner,
                        "whether its network namespace exists is not known, so it stays: {e}"
                    )
                }
            }
        }
        RunningContainer {
            id: container,
            lock,
            interfaces: living,
            facts,
        }
    }

    /// Returns the number of interfaces that existed before the agent and are not reconciled yet.
    #[must_use]
    pub fn not_reconciled(&self) -> usize {
        self.not_reconciled.load(Ordering::Relaxed)
    }

    /// Records that this many interfaces have been reconciled.
    pub fn mark_reconciled(&self, interfaces: usize) {
        self.not_reconciled.fetch_sub(interfaces, Ordering::Relaxed);
    }
}
