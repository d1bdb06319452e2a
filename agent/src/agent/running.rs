//! Pods that ran before this agent did.
//!
//! Before the agent is ready it knows all that is written down, and has released what belongs to pods that ended
//! meanwhile. Afterwards each container gets this agent's programs and whatever is missing. Who asks for something
//! about one of them waits for its turn; new pods do not wait, however many run.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt as _, stream};
use tracing::{error, info, warn};

use super::{Agent, Changing, locked};
use crate::{netlink::netns::Evidence, node::NodeFacts, podnet::PodNet, pool::Owner};

/// Containers that are looked at together: enough for all processors to have work while some wait for the
/// kernel.
const AT_ONCE: usize = 16;

/// What ran before, and has not been looked at. Nobody looks at its interfaces or changes them until
/// [`Agent::take_over`] has.
#[derive(Debug, Default)]
#[must_use = "requests for these containers wait until they are taken over"]
pub struct Running(Vec<Container>);

#[derive(Debug)]
struct Container {
    _turn: Changing,
    /// One that shares a pair comes after the one that brought it.
    interfaces: Vec<(Owner, Arc<PodNet>)>,
    facts: Arc<NodeFacts>,
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
        *locked(&self.renewed) = Some(Arc::clone(&facts));
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
        let living: Vec<_> = living.collect().await;
        let interfaces = living.iter().map(|container| container.interfaces.len());
        self.not_taken_over.send_replace(interfaces.sum());
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
        let guests = self.guests.list().into_iter();
        nets.extend(guests.map(|(owner, net)| (owner, Arc::new(net))));
        for (owner, net) in &nets {
            self.note(owner.clone(), Arc::clone(net));
        }
        nets
    }

    /// The interfaces of a container that are there. What cannot be looked at stays as it is.
    async fn living(
        &self,
        container: String,
        mut interfaces: Vec<(Owner, Arc<PodNet>)>,
        facts: Arc<NodeFacts>,
    ) -> Container {
        let turn = self.turns.to_change(&container).await;
        interfaces.sort_by_key(|(_, net)| net.shared_veth.is_some());
        let mut living = Vec::new();
        for (owner, net) in interfaces {
            match net.namespace() {
                Ok(Evidence::Gone) => self.release_gone(&owner, &net).await,
                Ok(Evidence::Present(_)) => living.push((owner, net)),
                Err(e) => warn!(pod = %net.pod, %owner, "left as it is: {e}"),
            }
        }
        Container {
            _turn: turn,
            interfaces: living,
            facts,
        }
    }

    /// Gives what runs this agent's programs and whatever is missing.
    pub async fn take_over(&self, running: Running) {
        let take_over = |container: Container| async move {
            for (owner, net) in &container.interfaces {
                if let Err(e) = self.put_right(owner, net, &container.facts).await {
                    error!(pod = %net.pod, %owner, "could not be put right: {e}");
                }
                self.not_taken_over.send_modify(|count| *count -= 1);
            }
            container.interfaces.len()
        };
        let taken_over = stream::iter(running.0)
            .map(take_over)
            .buffer_unordered(AT_ONCE);
        let interfaces = taken_over
            .fold(0, |sum, some| async move { sum + some })
            .await;
        // Whatever runs has this agent's programs now.
        match self.datapath.forget_older_layouts() {
            Ok(removed) => removed.iter().for_each(|dir| {
                info!("removed what an older agent had pinned: {}", dir.display());
            }),
            Err(e) => warn!("what an older agent had pinned stays: {e}"),
        }
        info!(interfaces, "running pods taken over");
    }

    /// Interfaces that were there before the agent, and that it has not looked at yet.
    #[must_use]
    pub fn not_taken_over(&self) -> usize {
        *self.not_taken_over.borrow()
    }

    /// Waits until there are none.
    pub async fn all_taken_over(&self) {
        // The sender is our own.
        let _ = self
            .not_taken_over
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }
}
