//! What is read, and what is written of it.

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Rest,
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Service},
        events::v1::{Event, EventSeries},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, JSONSchemaProps,
    },
    apimachinery::pkg::apis::meta::v1::{APIResourceList, MicroTime, ObjectMeta, Time},
};

type RoundTrip = fn(&Value) -> Value;

fn round<T: Serialize + DeserializeOwned>(value: &Value) -> Value {
    let object: T = serde_json::from_value(value.clone()).unwrap();
    serde_json::to_value(object).unwrap()
}

/// The object, with a field more in it and in each object below.
fn with_more(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(with_more);
            fields.insert("more".into(), json!({"of": [1, 1.5, "a", true, {}]}));
        }
        Value::Array(items) => items.iter_mut().for_each(with_more),
        _ => {}
    }
}

/// An object that the agent replaces loses nothing: neither what has a field, nor what Kubernetes has
/// and this crate does not, nor what nobody knows yet.
#[test]
fn what_is_written_back_is_what_was_read() {
    let metadata = json!({
        "name": "n", "namespace": "ns", "generateName": "n-", "uid": "u", "resourceVersion": "7", "generation": 3,
        "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": "2026-01-02T03:04:06Z",
        "deletionGracePeriodSeconds": 30, "selfLink": "/x",
        "labels": {"l": "1"}, "annotations": {"a": "2"}, "finalizers": ["f/g"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "q", "controller": true,
            "blockOwnerDeletion": false}],
        "managedFields": [{"manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-02T03:04:05Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {".": {}}}, "subresource": "status"}],
    });
    let kinds: [(RoundTrip, Value); 3] = [
        (
            round::<ConfigMap>,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "binaryData": {"b": "AAEC"}, "immutable": false}),
        ),
        (
            round::<Lease>,
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {
                "holderIdentity": "h", "leaseDurationSeconds": 12, "leaseTransitions": 2,
                "acquireTime": "2026-01-02T03:04:05.000006Z", "renewTime": "2026-01-02T03:04:06.100000Z",
                "strategy": "OldestEmulationVersion", "preferredHolder": "x",
            }}),
        ),
        (
            round::<Service>,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                    "externalIPs": ["192.0.2.1"], "ports": [{"port": 1, "targetPort": "http"}]},
                "status": {"conditions": [{"type": "Ready"}],
                    "loadBalancer": {"ingress": [{"ip": "192.0.2.1", "hostname": "x", "ipMode": "VIP"}]}}}),
        ),
    ];
    for (round, mut object) in kinds {
        assert_eq!(round(&object), object);
        // Names of a map's keys are not the API's, and their values are texts.
        let texts = ["labels", "annotations"].map(|field| object["metadata"][field].take());
        with_more(&mut object);
        for (field, map) in ["labels", "annotations"].into_iter().zip(texts) {
            object["metadata"][field] = map;
        }
        assert_eq!(round(&object), object);
    }
    let leases = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"node-1": "10.0.0.1"}});
    assert_eq!(round::<ConfigMap>(&leases), leases);
}

#[test]
fn what_is_made_here_says_what_it_is_and_nothing_that_is_not_set() {
    let time = MicroTime(Timestamp::from_microsecond(1_700_000_000_000_001).unwrap());
    let event = Event {
        metadata: ObjectMeta {
            name: Some("e".into()),
            ..ObjectMeta::default()
        },
        series: Some(EventSeries {
            count: 2,
            last_observed_time: time.clone(),
        }),
        event_time: Some(time),
        type_: Some("Warning".into()),
        ..Event::default()
    };
    assert_eq!(
        serde_json::to_value(event).unwrap(),
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Warning",
            "eventTime": "2023-11-14T22:13:20.000001Z",
            "series": {"count": 2, "lastObservedTime": "2023-11-14T22:13:20.000001Z"},
        })
    );
    let definition = serde_json::to_value(CustomResourceDefinition::default()).unwrap();
    assert_eq!(definition["apiVersion"], "apiextensions.k8s.io/v1");
    assert_eq!(definition["kind"], "CustomResourceDefinition");
    assert!(definition.get("status").is_none());
}

#[test]
fn times_are_written_as_the_api_server_reads_them() {
    for (read, seconds, micros) in [
        (
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.000000Z",
        ),
        (
            "2026-01-02T03:04:05.999999999Z",
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.999999Z",
        ),
        (
            "2026-01-02T03:04:05.1+01:00",
            "2026-01-02T02:04:05Z",
            "2026-01-02T02:04:05.100000Z",
        ),
    ] {
        assert_eq!(round::<Time>(&json!(read)), seconds);
        assert_eq!(round::<MicroTime>(&json!(read)), micros);
    }
    for bad in [json!("yesterday"), json!(17)] {
        assert!(serde_json::from_value::<Time>(bad.clone()).is_err());
        assert!(serde_json::from_value::<MicroTime>(bad).is_err());
    }
}

/// Go writes an empty list or time as `null`, and leaves out what is empty.
#[test]
fn null_and_nothing_are_the_same() {
    for pod in [
        json!({"metadata": null, "spec": {"containers": null, "nodeName": null}, "status": null}),
        json!({"spec": {}}),
        json!({"apiVersion": null, "kind": null, "metadata": {"creationTimestamp": null, "labels": null}, "spec": {}}),
    ] {
        let read: Pod = serde_json::from_value(pod).unwrap();
        let expected = Pod {
            spec: Some(Default::default()),
            ..Pod::default()
        };
        assert_eq!(read, expected);
    }
    let list = json!({"groupVersion": "v1", "resources": null});
    let list: APIResourceList = serde_json::from_value(list).unwrap();
    assert_eq!(list.resources, []);
}

#[test]
fn an_object_of_another_kind_is_refused() {
    for (object, said) in [
        (
            json!({"kind": "Status", "apiVersion": "v1", "code": 404}),
            "Status",
        ),
        (json!({"kind": "Pod", "apiVersion": "v2"}), "v2"),
        (json!({"kind": 1}), "integer"),
    ] {
        let error = serde_json::from_value::<Pod>(object).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

/// Or it would be missing in the definition, and no API server would check what it says.
#[test]
fn a_schemas_keyword_that_is_not_known_is_refused() {
    let schema = json!({"properties": {"a": {"type": "string", "pattern": "^a", "multipleOf": 2}}});
    let error = serde_json::from_value::<JSONSchemaProps>(schema).unwrap_err();
    assert!(error.to_string().contains("multipleOf"), "{error}");
}

/// What a type without fields says has a place: kube's own calls lose nothing either.
#[test]
fn types_that_kube_alone_names_keep_everything() {
    let scale = json!({"kind": "Scale", "spec": {"replicas": 3}});
    assert_eq!(round::<crate::api::autoscaling::v1::Scale>(&scale), scale);
    let rest: Rest = serde_json::from_value(scale).unwrap();
    assert_eq!(rest.len(), 2);
}
