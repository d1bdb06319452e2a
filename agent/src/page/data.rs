//! What the page shows: answers to `ebbtidectl`'s queries, and what was repaired, as one JSON object.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ebbtide_plugin::wire::Query;
use hyper::body::Bytes;
use tokio::{runtime::Handle, sync::Mutex, task::spawn_blocking};

use crate::{agent::Agent, query};

/// How old an answer may be: several pages that are open cost no more than one.
const FRESH: Duration = Duration::from_secs(1);

/// An answer that took some time serves this many times as long: on a node with many flows, too, a page that is open
/// takes a small part of a CPU.
const PART: u32 = 20;

/// The flows that are shown, the youngest first.
const FLOWS: usize = 500;

/// A part's name, and the query that is answered with it.
type Part = (&'static str, fn() -> Query);

/// What is shown.
const PARTS: [Part; 6] = [
    ("status", || Query::Status),
    ("nics", || Query::Nics),
    ("pods", || Query::Pods),
    ("pools", || Query::Pools),
    ("datapath", || Query::Datapath),
    ("flows", || Query::Flows {
        pod: None,
        limit: FLOWS,
    }),
];

/// The data, and who has it.
#[derive(Debug)]
pub(super) struct Data {
    agent: Arc<Agent>,
    recent: Mutex<Option<Recent>>,
}

/// What was answered a moment ago.
#[derive(Debug)]
struct Recent {
    bytes: Bytes,
    until: Instant,
}

impl Data {
    /// Shows this agent.
    pub(super) fn of(agent: &Arc<Agent>) -> Self {
        Self {
            agent: Arc::clone(agent),
            recent: Mutex::default(),
        }
    }

    /// Returns the data as it is now, or was a moment ago.
    ///
    /// # Errors
    /// If a part of it cannot be had; the error says why.
    pub(super) async fn get(&self) -> Result<Bytes, String> {
        // Whoever comes meanwhile waits, and gets the same.
        let mut recent = self.recent.lock().await;
        if let Some(recent) = recent.as_ref().filter(|each| Instant::now() < each.until) {
            return Ok(recent.bytes.clone());
        }
        let begin = Instant::now();
        let (agent, runtime) = (Arc::clone(&self.agent), Handle::current());
        // Maps are read by system calls, thousands on a full node: not on a thread that serves pods.
        let shown = spawn_blocking(move || runtime.block_on(shown(&agent)));
        let text = shown.await.map_err(|e| e.to_string())??;
        let bytes = Bytes::from(text);
        *recent = Some(Recent {
            bytes: bytes.clone(),
            until: Instant::now() + fresh(begin.elapsed()),
        });
        Ok(bytes)
    }
}

/// Returns how long an answer serves that took `took`.
fn fresh(took: Duration) -> Duration {
    FRESH.max(took * PART)
}

/// Returns what the page shows.
async fn shown(agent: &Agent) -> Result<String, String> {
    let mut parts = Vec::new();
    for (name, query) in PARTS {
        let answer = query::answer(agent, &query()).await;
        if answer.exit != 0 {
            return Err(format!("{name}: {}", answer.output));
        }
        parts.push(format!("\"{name}\":{}", answer.output));
    }
    let repairs = serde_json::to_string(&agent.metrics.events.repairs());
    parts.push(format!(
        "\"repairs\":{}",
        repairs.map_err(|e| e.to_string())?
    ));
    Ok(format!("{{{}}}", parts.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_read_less_often() {
        assert_eq!(fresh(Duration::from_millis(3)), FRESH);
        assert_eq!(fresh(Duration::from_millis(200)), Duration::from_secs(4));
    }
}
