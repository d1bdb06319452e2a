//! The reconciler: one loop that makes the kernel what the plans say.
//!
//! Desired are the plans of all interfaces and of the node; actual is what the kernel has. Events only *name* what is to
//! be looked at ([`events`]), a queue says what comes next ([`Queue`]), and each item is compared and repaired as a whole
//! (`node`, `container`), whatever it was named for. What fails is tried again with backoff, and `ebbtidectl status`
//! says so ([`Status`]). As a controller of kube-rs, over a store of our own.

mod container;
pub mod events;
mod guard;
mod key;
mod listen;
mod node;
mod queue;
mod status;
mod takeover;
mod work;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::FutureExt as _;

pub use key::{Key, Scope};
pub use queue::{Action, Outcome, Queue};
pub use status::{Failing, Failure, Interface, Status};
pub use work::{Item, RESYNC, Work};

use ebbtide_kernel::node::Attention;

use crate::agent::{Agent, Running};

/// What reconciling needs besides the agent.
#[derive(Debug)]
struct Reconciler {
    agent: Arc<Agent>,
    /// Containers that ran before the agent and are not taken over yet.
    running: takeover::Held,
    /// What the host's netlink events are looked at for, while they are heard.
    attention: Mutex<Option<Arc<Attention>>>,
    /// What the node was last compared with.
    node: Mutex<node::Seen>,
    /// Addresses that no pod may have.
    taken: guard::Taken,
}

/// Takes over what runs, then keeps the node and its pods as they should be until the process ends.
pub async fn run(agent: Arc<Agent>, running: Running) {
    let reconciler = Arc::new(Reconciler {
        running: takeover::Held::new(running),
        agent,
        attention: Mutex::default(),
        node: Mutex::default(),
        taken: guard::Taken::default(),
    });
    reconciler.begin_take_over();
    tokio::join!(
        listen::to_host(&reconciler),
        listen::to_manifests(&reconciler.agent),
        listen::to_guarded_pods(&reconciler),
        listen::to_marks(&reconciler),
        hand_out(&reconciler),
    );
}

/// Has everything done that is due, each item by a task of its own: none waits for another one's end.
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
                // What failed is tried again: the queue knows the error policy, which is exponential backoff.
                reconciler.agent.work.done(&key, outcome);
            });
        }
        work.wait().await;
    }
}

/// Compares an item with its plan, and repairs what is not as it should be.
async fn reconcile(reconciler: &Reconciler, key: &Key, scope: Scope) -> Result<Outcome, Failure> {
    match key {
        Key::Node => node::reconcile(reconciler).await,
        Key::Container(id) => container::reconcile(reconciler, key, id, scope).await,
    }
}

/// What was being changed when a thread panicked is a value: it is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
