//! The paths by which metrics and health are asked.

use std::sync::Arc;

use ebbtide_types::settings::ListenAddress;
use hyper::StatusCode;

use super::{Format, Leading, Metrics, Snapshot, collect};
use crate::{
    agent::Agent,
    http::{self, Answer, Asked, Router},
};

/// Returns the paths by which an agent's metrics and health are asked.
#[must_use]
pub(crate) fn of_agent(agent: &Arc<Agent>) -> Router {
    let metrics = agent.metrics.clone();
    let (counted, asked) = (metrics.clone(), Arc::clone(agent));
    let scrape = move |request: Asked| {
        let (metrics, agent) = (counted.clone(), Arc::clone(&asked));
        async move { told(&metrics, &collect::snapshot(&agent).await, &request) }
    };
    health(move || metrics.is_ready()).at("/metrics", scrape)
}

/// Answers for a controller at `address`, until the runtime ends.
pub fn serve_controller(metrics: &Metrics, leading: &Leading, address: ListenAddress) {
    let Some(socket) = address.socket() else {
        return;
    };
    let (counted, leading) = (metrics.clone(), leading.clone());
    let scrape = move |request: Asked| {
        let snapshot = Arc::new(Snapshot {
            leads: Some(leading.is()),
            api_calls: counted.api_calls.counted(),
            ..collect::of_process()
        });
        let answer = told(&counted, &snapshot, &request);
        async move { answer }
    };
    // One that waits to be elected is as ready as the elected one.
    let router = health(|| true).at("/metrics", scrape);
    tokio::spawn(http::serve(socket, router, metrics.listening.clone()));
}

/// Returns a router for the probes.
fn health(is_ready: impl Fn() -> bool + Send + Sync + 'static) -> Router {
    Router::default()
        .at("/healthz", |_| async { Answer::line(StatusCode::OK, "ok") })
        .at("/readyz", move |_| {
            let is_ready = is_ready();
            async move {
                match is_ready {
                    true => Answer::line(StatusCode::OK, "ok"),
                    false => Answer::line(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the CNI plugin is not answered yet",
                    ),
                }
            }
        })
}

fn told(metrics: &Metrics, snapshot: &Arc<Snapshot>, request: &Asked) -> Answer {
    let format = Format::accepted(&request.accept);
    match metrics.text(snapshot, format) {
        Ok(text) => Answer::of(format.media_type(), text),
        Err(e) => Answer::line(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}
