//! One answer for all pages that are open: the API server is asked no more often than it bears, and only by who looks.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use serde::Serialize;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::ask::{Fault, Known};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(5);

/// An answer that took some time serves this many times as long: a large cluster is asked less often.
const PART: u32 = 8;

/// But no longer than this: an API server that hung is asked again.
const LONGEST: Duration = Duration::from_secs(60);

/// How long who asks waits for news, before what is known has to do.
const WAIT: Duration = Duration::from_secs(5);

/// What the page says of the cluster.
#[derive(Debug, Serialize)]
pub(super) struct About {
    /// kubectl's context.
    pub(super) cluster: Option<String>,
    /// The start of a command for the same cluster.
    pub(super) command: String,
}

/// What is known, and who asks.
#[derive(Debug)]
pub(super) struct Shared {
    about: About,
    known: Mutex<Known>,
    state: Mutex<State>,
    /// Told when an asking ends.
    ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    asking: Option<JoinHandle<()>>,
    /// The view, as JSON, and how old it is.
    view: Option<(String, Instant)>,
    faults: Vec<Fault>,
    due: Option<Instant>,
}

/// What is around the view.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Around<'a> {
    about: &'a About,
    /// Seconds since the view was asked for.
    age: Option<f64>,
    asking: bool,
    faults: Vec<FaultLine<'a>>,
}

#[derive(Serialize)]
struct FaultLine<'a> {
    what: &'a str,
    why: &'a str,
    /// Seconds since it was answered last.
    age: Option<f64>,
}

impl Shared {
    pub(super) fn of(known: Known, about: About) -> Self {
        Self {
            about,
            known: Mutex::new(known),
            state: Mutex::default(),
            ended: watch::Sender::default(),
        }
    }

    /// Returns what the page shows, as JSON.
    pub(super) async fn get(self: Arc<Self>) -> Result<Bytes, String> {
        let mut ended = self.ended.subscribe();
        if self.begin() {
            // Whether it ended or takes longer: what is known is told.
            let _ = timeout(WAIT, ended.changed()).await;
        }
        self.answer().map_err(|e| e.to_string())
    }

    /// Asks, if it is time to. Returns whether somebody asks now.
    fn begin(self: &Arc<Self>) -> bool {
        let mut state = locked(&self.state);
        if state.is_asking() {
            return true;
        }
        if state.due.is_some_and(|due| Instant::now() < due) {
            return false;
        }
        let this = Arc::clone(self);
        state.asking = Some(spawn_blocking(move || this.ask()));
        true
    }

    fn ask(&self) {
        let begin = Instant::now();
        let mut known = locked(&self.known);
        known.ask();
        let view = known.is_something().then(|| known.view());
        let faults = known.faults();
        drop(known);
        let mut state = locked(&self.state);
        if let Some(Ok(view)) = view.map(|view| serde_json::to_string(&view)) {
            // As old as the oldest of it.
            let since = faults.iter().filter_map(|fault| fault.since).min();
            state.view = Some((view, since.unwrap_or(begin)));
        }
        state.faults = faults;
        state.due = Some(Instant::now() + fresh(begin.elapsed()));
        state.asking = None;
        drop(state);
        self.ended.send_replace(());
    }

    fn answer(&self) -> serde_json::Result<Bytes> {
        let state = locked(&self.state);
        let age = |since: Instant| since.elapsed().as_secs_f64();
        let faults = state.faults.iter().map(|fault| FaultLine {
            what: fault.what,
            why: &fault.why,
            age: fault.since.map(age),
        });
        let around = serde_json::to_string(&Around {
            about: &self.about,
            age: state.view.as_ref().map(|(_, at)| age(*at)),
            asking: state.is_asking(),
            faults: faults.collect(),
        })?;
        let view = state.view.as_ref().map_or("null", |(view, _)| view);
        let around = around.strip_suffix('}').unwrap_or(&around);
        Ok(format!("{around},\"view\":{view}}}").into())
    }
}

impl State {
    fn is_asking(&self) -> bool {
        self.asking.as_ref().is_some_and(|it| !it.is_finished())
    }
}

/// Returns how long an answer serves that took `took`.
fn fresh(took: Duration) -> Duration {
    FRESH.max(took * PART).min(LONGEST)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_cluster_is_asked_less_often() {
        assert_eq!(fresh(Duration::from_millis(300)), FRESH);
        assert_eq!(fresh(Duration::from_secs(4)), Duration::from_secs(32));
        assert_eq!(fresh(Duration::from_secs(90)), LONGEST);
    }
}
