//! Events: what a person sees with `kubectl describe`.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    core::DynamicObject,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::debug;

use super::object::{Kind, resource};

/// Writes Events in this agent's name.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// The API server takes no more of a note (k8s.io/api/events/v1).
const NOTE: usize = 1024;

impl Events {
    /// Of this node's agent.
    #[must_use]
    pub fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter {
            controller: "ebbtide".into(),
            instance: Some(node.to_owned()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// A warning about an object. The same one again counts up instead of piling up. One that
    /// cannot be written is not worth a failure: the log has it, too.
    pub async fn warn(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(
                note.get(..note.floor_char_boundary(NOTE))
                    .unwrap_or(note)
                    .into(),
            ),
            action: action.into(),
            secondary: None,
        };
        if let Err(e) = self.recorder.publish(&event, about).await {
            debug!("an Event could not be written: {e}");
        }
    }
}

/// How an Event names an object.
#[must_use]
pub fn reference(kind: Kind, object: &DynamicObject) -> ObjectReference {
    let meta = &object.metadata;
    ObjectReference {
        api_version: Some(resource(kind).api_version),
        kind: Some(kind.name().into()),
        name: meta.name.clone(),
        // The API server does not know of other kinds than its own that they have no namespace, and
        // wants the Event's here. `kubectl describe` looks by UID.
        namespace: meta.namespace.clone().or_else(|| Some("default".into())),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    }
}
