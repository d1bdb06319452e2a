//! Take-over of containers that ran before this agent: each is an item like any other, whose lock is held until it is
//! reconciled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use ebbtide_kernel::node::NodeFacts;
use tracing::{info, warn};

use super::{Key, RESYNC, Reconciler, Scope, locked};
use crate::agent::{Running, RunningContainer, WriteGuard};

/// The containers that are not taken over yet.
#[derive(Debug)]
pub(super) struct Held {
    waiting: Mutex<HashMap<Key, Container>>,
    /// The number of interfaces of all of them.
    interfaces: usize,
}

#[derive(Debug)]
struct Container {
    /// `None` while it is being reconciled, which holds them then.
    held: Option<(WriteGuard, Arc<NodeFacts>)>,
    interfaces: usize,
}

impl Held {
    pub(super) fn new(running: Running) -> Self {
        let container = |running: RunningContainer| {
            let container = Container {
                held: Some((running.lock, running.facts)),
                interfaces: running.interfaces,
            };
            (Key::container(&running.id), container)
        };
        let waiting: HashMap<_, _> = running.into_iter().map(container).collect();
        Self {
            interfaces: waiting.values().map(|waits| waits.interfaces).sum(),
            waiting: Mutex::new(waiting),
        }
    }

    /// Returns the lock of a container that is to be reconciled, and the facts that the NICs were prepared for.
    pub(super) fn take(&self, key: &Key) -> Option<(WriteGuard, Arc<NodeFacts>)> {
        locked(&self.waiting).get_mut(key)?.held.take()
    }
}

impl Reconciler {
    /// Names all containers that are to be taken over.
    pub(super) fn begin_take_over(&self) {
        let work = &self.agent.work;
        // What is applied now causes notifications, which would have the node compared again and again.
        work.hold_node(RESYNC);
        let keys: Vec<Key> = locked(&self.running.waiting).keys().cloned().collect();
        for key in &keys {
            work.enqueue_now(key, Scope::APPLY);
        }
        if keys.is_empty() {
            self.end_take_over();
        }
    }

    /// Records that a container was reconciled once, whatever the result: a failure is tried again, and nobody waits
    /// for that.
    pub(super) fn end_take_over_of(&self, key: &Key) {
        let mut waiting = locked(&self.running.waiting);
        let Some(container) = waiting.remove(key) else {
            return;
        };
        let is_last = waiting.is_empty();
        drop(waiting);
        self.agent.mark_reconciled(container.interfaces);
        if is_last {
            self.end_take_over();
        }
    }

    /// Whether containers that ran before the agent are not reconciled yet.
    pub(super) fn is_taking_over(&self) -> bool {
        !locked(&self.running.waiting).is_empty()
    }

    fn end_take_over(&self) {
        // Everything that runs has this agent's programs now.
        match self.agent.datapath.forget_older_layouts() {
            Ok(removed) => removed.iter().for_each(|dir| {
                info!("removed what an older agent had pinned: {}", dir.display());
            }),
            Err(e) => warn!("remove the pinned maps of an older agent: {e}; they stay"),
        }
        info!(
            interfaces = self.running.interfaces,
            "running pods reconciled"
        );
        self.agent.work.release_node();
        // Changes made in the pods while no agent received notifications.
        self.inspect_guarded_pods();
        self.inspect_foreign();
    }
}
