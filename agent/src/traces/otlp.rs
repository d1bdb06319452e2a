//! The body of an export: `ExportTraceServiceRequest` of OTLP 1, in its JSON encoding.
//!
//! That differs from protobuf's own: IDs are hexadecimal, enumerations numbers, and 64-bit numbers texts.

use std::time::Duration;

use ebbtide_types::timing::Step;
use serde_json::{Value, json};

use super::Ended;

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u32 = 1;

/// `SPAN_KIND_SERVER`.
const SERVER: u32 = 2;

/// `STATUS_CODE_ERROR`.
const ERROR: u32 = 2;

/// The flag of W3C Trace Context.
const SAMPLED: u32 = 1;

/// That it is known whether the parent is another process', and that it is.
const REMOTE: u32 = 0x300;

/// That it is known whether the parent is another process'.
const LOCAL: u32 = 0x100;

/// Returns the body for these requests; `resource` is what they have in common.
pub(super) fn body(resource: &[(String, String)], requests: &[Ended]) -> Value {
    let spans: Vec<Value> = requests.iter().flat_map(spans).collect();
    let resource = resource.iter().map(|(key, value)| attribute(key, value));
    json!({"resourceSpans": [{
        "resource": {"attributes": resource.collect::<Vec<_>>()},
        "scopeSpans": [{
            "scope": {"name": "ebbtide-agent", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans,
        }],
    }]})
}

fn spans(request: &Ended) -> impl Iterator<Item = Value> + '_ {
    let steps = request.steps.iter();
    [whole(request)]
        .into_iter()
        .chain(steps.map(|(id, step)| part(request, *id, step)))
}

fn whole(request: &Ended) -> Value {
    let mut attributes: Vec<Value> = request
        .attributes
        .iter()
        .map(|(key, value)| attribute(key, value))
        .collect();
    attributes.push(attribute("cni.command", &request.command));
    let mut span = span(request, &format!("CNI {}", request.command), SERVER);
    span["spanId"] = json!(format!("{:016x}", request.own.span_id));
    span["flags"] = json!(SAMPLED | REMOTE);
    times(&mut span, request.begin, request.took);
    if let Some(parent) = request.parent {
        span["parentSpanId"] = json!(format!("{:016x}", parent.span_id));
    }
    if let Some((code, message)) = &request.failure {
        attributes.push(attribute("error.type", &code.to_string()));
        span["status"] = json!({"code": ERROR, "message": message});
    }
    span["attributes"] = attributes.into();
    span
}

fn part(request: &Ended, id: u64, step: &Step) -> Value {
    let mut span = span(request, step.name, INTERNAL);
    span["spanId"] = json!(format!("{id:016x}"));
    span["parentSpanId"] = json!(format!("{:016x}", request.own.span_id));
    span["flags"] = json!(SAMPLED | LOCAL);
    times(&mut span, request.begin + step.start, step.took);
    span
}

fn span(request: &Ended, name: &str, kind: u32) -> Value {
    let mut span = json!({
        "traceId": format!("{:032x}", request.own.trace_id),
        "name": name,
        "kind": kind,
    });
    if !request.state.is_empty() {
        span["traceState"] = json!(request.state);
    }
    span
}

fn times(span: &mut Value, begin: Duration, took: Duration) {
    span["startTimeUnixNano"] = json!(begin.as_nanos().to_string());
    span["endTimeUnixNano"] = json!((begin + took).as_nanos().to_string());
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}
