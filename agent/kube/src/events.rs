//! Kubernetes Events, which a person sees with `kubectl describe`.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    core::DynamicObject,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::debug;

use super::object::{Kind, resource};

/// Writes Events in the name of this agent.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// The API server's limit for a note (k8s.io/api/events/v1).
const NOTE: usize = 1024;

impl Events {
    /// Returns the writer for this node's agent.
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

    /// Records a warning about an object. A repeated one increases a counter instead of piling up.
    /// A failed write is ignored: the log has the warning, too.
    pub async fn warn(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.write(EventType::Warning, about, reason, action, note)
            .await;
    }

    /// As [`Events::warn`], of what was done and is as it should be.
    pub async fn tell(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.write(EventType::Normal, about, reason, action, note)
            .await;
    }

    async fn write(
        &self,
        type_: EventType,
        about: &ObjectReference,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_,
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

/// Returns the reference to an object that an Event needs.
#[must_use]
pub fn reference(kind: Kind, object: &DynamicObject) -> ObjectReference {
    let meta = &object.metadata;
    ObjectReference {
        api_version: Some(resource(kind).api_version),
        kind: Some(kind.name().into()),
        name: meta.name.clone(),
        // For kinds that are not its own, the API server does not know that they have no namespace,
        // and wants the Event's here. `kubectl describe` searches by UID.
        namespace: meta.namespace.clone().or_else(|| Some("default".into())),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    }
}
