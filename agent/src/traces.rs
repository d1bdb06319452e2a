//! Traces: of which trace a request of the runtime's is a part, and the export of its spans.
//!
//! The runtime tells the plugin (W3C Trace Context in its environment), the plugin the agent. The log has the trace's
//! ID, other plugins that the agent runs are told on. If a collector is named, the request and its steps go there as
//! spans: OTLP over HTTP, in its JSON encoding, which takes no library that the agent does not have. A request never
//! waits for any of it.

mod export;
mod options;
mod otlp;
#[cfg(test)]
mod tests;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ebbtide_plugin::{
    trace_context::{TRACEPARENT, TRACESTATE, TraceParent, is_trace_state},
    wire::Invocation,
};
use ebbtide_types::timing::Step;
pub use options::Options;

use crate::cni::{Failure, PodIdentity};
use export::Exporter;

tokio::task_local! {
    /// What the current request tells the programs that it runs.
    static TOLD: Arc<[(&'static str, String)]>;
}

/// Makes the spans of requests, and exports them if a collector is named.
#[derive(Debug, Default)]
pub struct Traces {
    exporter: Option<Exporter>,
}

/// A request, as a part of a trace.
#[derive(Debug)]
pub(crate) struct Traced<'t> {
    /// The runtime's span.
    parent: Option<TraceParent>,
    /// The span that is exported, if it is.
    own: Option<(TraceParent, &'t Exporter)>,
    state: String,
    begin: SystemTime,
}

/// A request that has ended, for the export.
#[derive(Debug)]
struct Ended {
    parent: Option<TraceParent>,
    own: TraceParent,
    state: String,
    command: String,
    /// The other facts of it, under the names of OpenTelemetry's conventions.
    attributes: Vec<(&'static str, String)>,
    failure: Option<(u32, String)>,
    /// After 1970.
    begin: Duration,
    took: Duration,
    /// Each with the ID of its span.
    steps: Vec<(u64, Step)>,
}

impl Traces {
    /// Exports to the collector that the environment names, if it names one; logs what of that has no effect. Must be
    /// called in a tokio runtime, with which the export ends.
    #[must_use]
    pub fn from_environment(node: &str, in_cluster: bool) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let (options, troubles) = Options::read(node, in_cluster, variable);
        for trouble in troubles {
            tracing::warn!("{trouble}");
        }
        Self {
            exporter: options.map(Exporter::start),
        }
    }

    /// Exports what has not been exported yet, but does not wait long: a collector may not be there.
    pub async fn flush(&self) {
        if let Some(exporter) = &self.exporter {
            exporter.flush().await;
        }
    }

    /// Begins a request.
    pub(crate) fn begin(&self, invocation: &Invocation) -> Traced<'_> {
        let parent = TraceParent::parse(&invocation.traceparent);
        let own = self
            .exporter
            .as_ref()
            .filter(|exporter| exporter.samples(parent, &invocation.command));
        let own = own.map(|exporter| {
            let own = TraceParent {
                trace_id: parent.map_or_else(new_trace, |parent| parent.trace_id),
                span_id: new_span(),
                is_sampled: true,
            };
            (own, exporter)
        });
        let state = match parent.is_some() && is_trace_state(&invocation.tracestate) {
            true => invocation.tracestate.clone(),
            false => String::new(),
        };
        Traced {
            parent,
            own,
            state,
            begin: SystemTime::now(),
        }
    }
}

impl Traced<'_> {
    /// The trace's ID, for the log.
    pub(crate) fn trace_id(&self) -> Option<String> {
        let of = self.own.map(|(own, _)| own).or(self.parent)?;
        Some(format!("{:032x}", of.trace_id))
    }

    /// The ID of the runtime's span, for the log.
    pub(crate) fn parent_id(&self) -> Option<String> {
        Some(format!("{:016x}", self.parent?.span_id))
    }

    /// The ID of the span that is exported, for the log.
    pub(crate) fn span_id(&self) -> Option<String> {
        Some(format!("{:016x}", self.own?.0.span_id))
    }

    /// Does the work of the request: programs that it runs are told of the trace.
    pub(crate) async fn scope<T>(
        &self,
        invocation: &Invocation,
        work: impl Future<Output = T>,
    ) -> T {
        let span = match (&self.own, &self.parent) {
            (Some((own, _)), _) => Some(own.to_string()),
            // As the runtime wrote it, also if it is of a newer version.
            (None, Some(_)) => Some(invocation.traceparent.clone()),
            (None, None) => None,
        };
        let state = Some(self.state.clone()).filter(|state| !state.is_empty());
        let told = [(TRACEPARENT, span), (TRACESTATE, state)];
        let told = told
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        TOLD.scope(told.collect(), work).await
    }

    /// Ends the request. `steps` has the request itself last.
    pub(crate) fn end(self, invocation: &Invocation, failure: Option<&Failure>, steps: &[Step]) {
        let Some((own, exporter)) = self.own else {
            return;
        };
        let Some((whole, steps)) = steps.split_last() else {
            return;
        };
        let pod = PodIdentity::parse(&invocation.args);
        let mut attributes = vec![
            ("container.id", invocation.container_id.clone()),
            ("network.interface.name", invocation.if_name.clone()),
            ("k8s.namespace.name", pod.namespace),
            ("k8s.pod.name", pod.name),
            ("k8s.pod.uid", pod.uid),
        ];
        attributes.retain(|(_, value)| !value.is_empty());
        exporter.send(Ended {
            parent: self.parent,
            own,
            state: self.state,
            command: invocation.command.clone(),
            attributes,
            failure: failure.map(|failure| (failure.code, failure.message.clone())),
            begin: self.begin.duration_since(UNIX_EPOCH).unwrap_or_default(),
            took: whole.took,
            steps: steps.iter().map(|step| (new_span(), *step)).collect(),
        });
    }
}

/// Returns the environment variables by which a program that is run for the current request learns of its trace.
pub(crate) fn told() -> Arc<[(&'static str, String)]> {
    TOLD.try_with(Arc::clone).unwrap_or_default()
}

/// Returns the ID of a new span.
fn new_span() -> u64 {
    // The standard library's source of randomness: its keys are the kernel's.
    RandomState::new().build_hasher().finish().max(1)
}

/// Returns the ID of a new trace.
fn new_trace() -> u128 {
    u128::from(new_span()) << 64 | u128::from(new_span())
}
