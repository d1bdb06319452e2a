//! The reconciler: one loop that makes the kernel's state match the plans.
//!
//! The desired state is the plans of all interfaces and of the node; the actual state is what the kernel has. Events
//! only *name* the items to compare ([`events`]), a queue decides which is next ([`Queue`]), and each item is compared
//! and repaired as a whole (`node`, `container`), whatever it was named for. A failed item is tried again with
//! backoff, and `ebbtidectl status` reports it ([`Status`]). It is like a controller of kube-rs, over a store of
//! Ebbtide's own.

mod container;
pub mod events;
mod guard;
mod key;
mod listen;
mod node;
mod queue;
mod status;
mod takeover;
pub mod told;
mod work;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::FutureExt as _;
use tokio::sync::Notify;

pub use key::{Key, Scope};
pub use queue::{Action, Outcome, Queue};
pub use status::{Failing, Failure, Interface, Status};
pub use work::{Item, RESYNC, Work};

use ebbtide_kernel::node::Subscription;

use crate::agent::{Agent, Running};

/// The reconciler's state besides the agent.
#[derive(Debug)]
struct Reconciler {
    agent: Arc<Agent>,
    /// Containers that ran before the agent and are not taken over yet.
    running: takeover::Held,
    /// The filter of the host's netlink notifications, while they are received.
    subscription: Mutex<Option<Arc<Subscription>>>,
    /// The state that the node was last compared with.
    node: Mutex<node::Seen>,
    /// The addresses that no pod may have.
    taken: guard::UnassignableAddresses,
    /// Told when a link was set up that may be a foreign one in a pod.
    foreign_link: Notify,
}

/// Takes over running containers, then keeps the node and its pods in the desired state until the process ends.
pub async fn run(agent: Arc<Agent>, running: Running) {
    let taken = guard::UnassignableAddresses::new(agent.metrics.events.clone());
    let reconciler = Arc::new(Reconciler {
        running: takeover::Held::new(running),
        agent,
        subscription: Mutex::default(),
        node: Mutex::default(),
        taken,
        foreign_link: Notify::new(),
    });
    reconciler.begin_take_over();
    tokio::join!(
        listen::to_host(&reconciler),
        listen::to_manifests(&reconciler.agent),
        listen::to_pods(&reconciler),
        listen::to_rules(&reconciler),
        listen::look_for_foreign_links(&reconciler),
        hand_out(&reconciler),
    );
}

/// Runs every item that is due, each in a task of its own: none waits for another one.
async fn hand_out(reconciler: &Arc<Reconciler>) {
    let work = &reconciler.agent.work;
    loop {
        while let Some((key, scope)) = work.next() {
            let reconciler = Arc::clone(reconciler);
            tokio::spawn(async move {
                let ended = AssertUnwindSafe(reconcile(&reconciler, &key, scope)).catch_unwind();
                let outcome = ended.await.unwrap_or_else(|_panic| {
                    Err(Failure::new(
                        "this agent has a bug: see the panic in its log",
                    ))
                });
                reconciler.end_take_over_of(&key);
                // A failed item is tried again: the queue has the error policy, which is exponential backoff.
                reconciler.agent.work.done(&key, outcome);
            });
        }
        work.wait().await;
    }
}

/// Compares an item with its plan, and repairs differences.
async fn reconcile(reconciler: &Reconciler, key: &Key, scope: Scope) -> Result<Outcome, Failure> {
    match key {
        Key::Node => node::reconcile(reconciler).await,
        Key::Container(id) => container::reconcile(reconciler, key, id, scope).await,
    }
}

/// Locks `mutex`, even if it is poisoned: the guarded values are never left half changed by a panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
