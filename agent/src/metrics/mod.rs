//! What the agent and the controller tell of themselves: `/metrics`, `/healthz`, `/readyz`.
//!
//! What happens is counted where it happens ([`Events`]). What the agent knows anyway is read when somebody asks: `collect`
//! makes a [`Snapshot`], which is plain data, and [`exposition`] makes text of it. So a scrape costs nothing until it
//! comes, and no lock is held for longer than one look.
//!
//! Names follow Prometheus' conventions. No label grows with pods: programs' counters of pods are summed up ([`PodTotals`]).

mod collect;
mod events;
mod exposition;
mod leading;
mod process;
mod repairs;
mod serve;
mod snapshot;
#[cfg(test)]
mod tests;
mod totals;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use ebbtide_kube::ApiCalls;
use prometheus_client::registry::Registry;

use crate::http::ListenStatus;

pub use events::{Events, Place};
pub use exposition::Format;
pub use leading::Leading;
pub use process::Process;
pub use repairs::{RepairCount, RepairLine, Repairs};
pub(crate) use serve::of_agent;
pub use serve::serve_controller;
pub use snapshot::{
    CloudBlocks, CloudState, FlowTable, InPods, InterfaceKind, NodeState, OnNic, PoolState,
    Problems, QueueState, Snapshot,
};
pub use totals::PodTotals;

/// Everything that is counted, and what a scrape needs besides the agent. All clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// What happened.
    pub events: Events,
    /// What the API server was asked.
    pub api_calls: ApiCalls,
    /// What the programs counted for pods.
    pub pods: PodTotals,
    /// Whether the metrics can be reached.
    pub listening: ListenStatus,
    /// Whether requests of the plugin are answered.
    is_ready: Arc<AtomicBool>,
    recent: Arc<tokio::sync::Mutex<Recent>>,
}

/// What was read a moment ago.
#[derive(Debug, Default)]
struct Recent {
    snapshot: Option<(Instant, Arc<Snapshot>)>,
    flows: Option<(Instant, FlowTable)>,
}

impl Metrics {
    /// Notes whether requests of the plugin are answered from now on.
    pub fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Relaxed);
    }

    /// Whether requests of the plugin are answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Returns the text of a snapshot, and of what was counted.
    ///
    /// # Errors
    /// Never; writing text can fail by its signature.
    pub fn text(
        &self,
        snapshot: &Arc<Snapshot>,
        format: Format,
    ) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(snapshot)));
        if snapshot.node.is_some() {
            self.events.register(&mut registry);
        }
        format.encode(&registry)
    }
}
