//! Types that kube names in code which nobody here calls: as much of them as it touches.

#![expect(
    missing_docs,
    reason = "the fields are Kubernetes': its API reference says what each is"
)]

use serde::{Deserialize, Serialize};

use crate::object::wire;

wire! {
    /// What does the signing of certificates is asked for.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct CertificateSigningRequest {
        rest: Rest,
    }

    /// Pods on every node.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct DaemonSet {
        rest: Rest,
    }

    /// Where an Event of former times came from.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct EventSource {
        rest: Rest,
    }

    /// The API server's own version.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct Info {
        rest: Rest,
    }

    /// Pods that are alike.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ReplicaSet {
        rest: Rest,
    }

    /// How many of something there are.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct Scale {
        rest: Rest,
    }

    /// How many of something there are to be.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ScaleSpec {
        rest: Rest,
    }

    /// How many of something there are, as counted.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ScaleStatus {
        rest: Rest,
    }

    /// Who a pod is.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct ServiceAccount {
        rest: Rest,
    }

    /// What proves who a pod is.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    pub struct TokenRequest {
        rest: Rest,
    }

    /// Pods that are alike, and their successors.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct Deployment {
        status: Option<DeploymentStatus>,
    }

    /// How far a Deployment is.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct DeploymentStatus {
        conditions: Option<Vec<DeploymentCondition>>,
    }

    /// What is the case with a Deployment.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct DeploymentCondition {
        reason: Option<String>,
        status: Option<String>,
        #[serde(rename = "type")]
        type_: Option<String>,
    }

    /// Pods that come to an end.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct Job {
        status: Option<JobStatus>,
    }

    /// How far a Job is.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct JobStatus {
        conditions: Option<Vec<JobCondition>>,
    }

    /// What is the case with a Job.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct JobCondition {
        status: String,
        #[serde(rename = "type")]
        type_: String,
    }

    /// A way into the cluster.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct Ingress {
        status: Option<IngressStatus>,
    }

    /// How far an Ingress is.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct IngressStatus {
        load_balancer: Option<IngressLoadBalancerStatus>,
    }

    /// What a cloud's load balancer has for an Ingress.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct IngressLoadBalancerStatus {
        ingress: Option<Vec<IngressLoadBalancerIngress>>,
    }

    /// Where a load balancer is reached.
    #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
    pub struct IngressLoadBalancerIngress {
        hostname: Option<String>,
        ip: Option<String>,
    }
}
