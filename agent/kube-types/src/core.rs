//! The kinds that the agent reads, and those few that it writes.

#![expect(
    missing_docs,
    reason = "the fields are Kubernetes': its API reference says what each is"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    meta::{MicroTime, ObjectMeta, Time},
    named::EventSource,
    object::{reads, resource, wire, writes},
};

// Read and written back whole, or sent as they were made of JSON: they keep everything.

resource!(ConfigMap: "v1", "configmaps", NamespaceResourceScope);
resource!(Lease: "coordination.k8s.io" / "v1", "leases", NamespaceResourceScope);
resource!(Service: "v1", "services", NamespaceResourceScope);
reads!(ConfigMap, Lease, Service);
writes!(ConfigMap, Lease, Service);

wire! {
    /// Texts by name. The agent replaces those with leases: `binaryData` and `immutable` are in the rest.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self")]
    pub struct ConfigMap {
        data: Option<BTreeMap<String, String>>,
        metadata: ObjectMeta,
        rest: Rest,
    }

    /// Who is elected. The agent replaces it.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self")]
    pub struct Lease {
        metadata: ObjectMeta,
        spec: Option<LeaseSpec>,
        rest: Rest,
    }

    /// Who is elected, since when and for how long.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct LeaseSpec {
        acquire_time: Option<MicroTime>,
        holder_identity: Option<String>,
        lease_duration_seconds: Option<i32>,
        lease_transitions: Option<i32>,
        renew_time: Option<MicroTime>,
        rest: Rest,
    }

    /// A Service: one is asked for that cannot be, and of others kube looks whether they are provided.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self")]
    pub struct Service {
        metadata: ObjectMeta,
        spec: Option<ServiceSpec>,
        status: Option<ServiceStatus>,
        rest: Rest,
    }

    /// What a Service is to be.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ServiceSpec {
        #[serde(rename = "type")]
        type_: Option<String>,
        rest: Rest,
    }

    /// What a Service is.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ServiceStatus {
        load_balancer: Option<LoadBalancerStatus>,
        rest: Rest,
    }

    /// What a cloud's load balancer has for a Service.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct LoadBalancerStatus {
        ingress: Option<Vec<LoadBalancerIngress>>,
        rest: Rest,
    }

    /// Where a load balancer is reached.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct LoadBalancerIngress {
        hostname: Option<String>,
        ip: Option<String>,
        rest: Rest,
    }
}

// Made here, and sent: nothing of them is ever read to be written.

resource!(Event: "events.k8s.io" / "v1", "events", NamespaceResourceScope);
reads!(Event);
writes!(Event);

wire! {
    /// What happened to an object: as kube's recorder makes it, and merges it into its like.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self")]
    pub struct Event {
        action: Option<String>,
        deprecated_count: Option<i32>,
        deprecated_first_timestamp: Option<Time>,
        deprecated_last_timestamp: Option<Time>,
        deprecated_source: Option<EventSource>,
        event_time: Option<MicroTime>,
        metadata: ObjectMeta,
        note: Option<String>,
        reason: Option<String>,
        regarding: Option<ObjectReference>,
        related: Option<ObjectReference>,
        reporting_controller: Option<String>,
        reporting_instance: Option<String>,
        series: Option<EventSeries>,
        #[serde(rename = "type")]
        type_: Option<String>,
    }

    /// An object by its names.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ObjectReference {
        api_version: Option<String>,
        field_path: Option<String>,
        kind: Option<String>,
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        uid: Option<String>,
    }

    /// An object of the same namespace by its name.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct LocalObjectReference {
        name: String,
    }
}

/// How often the same happened, and when last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventSeries {
    pub count: i32,
    pub last_observed_time: MicroTime,
}

// Only read: they cannot be written, so that nothing of theirs is lost.

resource!(Namespace: "v1", "namespaces", ClusterResourceScope);
resource!(Node: "v1", "nodes", ClusterResourceScope);
resource!(Pod: "v1", "pods", NamespaceResourceScope);
resource!(StatefulSet: "apps" / "v1", "statefulsets", NamespaceResourceScope);
reads!(Namespace, Node, Pod, StatefulSet);

wire! {
    /// A namespace: its metadata is all that is looked at.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    #[serde(remote = "Self")]
    pub struct Namespace {
        metadata: ObjectMeta,
    }

    /// A node: its metadata, and which machine of the cloud it is.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    #[serde(remote = "Self")]
    pub struct Node {
        metadata: ObjectMeta,
        spec: Option<NodeSpec>,
    }

    /// What a node is to be.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct NodeSpec {
        #[serde(rename = "providerID")]
        provider_id: Option<String>,
    }

    /// A pod: where it is, how far it is, and what the control plane's were started with.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    #[serde(remote = "Self")]
    pub struct Pod {
        metadata: ObjectMeta,
        spec: Option<PodSpec>,
        status: Option<PodStatus>,
    }

    /// What a pod is to be.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct PodSpec {
        containers: Vec<Container>,
        node_name: Option<String>,
    }

    /// What is started in a pod.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct Container {
        args: Option<Vec<String>>,
        command: Option<Vec<String>>,
    }

    /// What a pod is.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct PodStatus {
        phase: Option<String>,
    }

    /// Pods with numbers: how many there are to be.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    #[serde(remote = "Self")]
    pub struct StatefulSet {
        metadata: ObjectMeta,
        spec: StatefulSetSpec,
    }

    /// What a set of pods is to be.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct StatefulSetSpec {
        ordinals: Option<StatefulSetOrdinals>,
        replicas: Option<i32>,
    }

    /// Where the numbers of a set's pods begin.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct StatefulSetOrdinals {
        start: Option<i32>,
    }
}
