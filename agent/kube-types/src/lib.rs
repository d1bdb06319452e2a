//! The Kubernetes API types that the agent and kube use, under the name of the crate that has them all.
//!
//! kube is bound to the crate `k8s-openapi`, which is generated from all of Kubernetes' API: 770 types in 137,000
//! lines, of which a dozen types are used here. It cost 85 to 110 CPU seconds each time it was built (to check,
//! to test, to release), whatever the optimization, for all of it is read before any is thrown away. This
//! crate is put in its place (`[patch.crates-io]` in the root `Cargo.toml`), and costs 2 to 4. What the two
//! have in common is paths, names and how objects look on the wire.
//!
//! # What is here
//!
//! A type has the fields that somebody reads or sets. Fields that it does not have are ignored in what the
//! API server says. That is harmless for what is only read; but **an object that is read, changed and
//! written back whole (`Api::replace`) loses what its type does not know.** Therefore:
//!
//! - What is only read cannot be written: `Pod`, `Node` or `StatefulSet` are no [`serde::Serialize`], so
//!   that the compiler refuses `Api::replace` and `Api::create`. Patches take any JSON and touch
//!   nothing that they do not name.
//! - What is written keeps everything: `Lease` and `ConfigMap`, which the agent replaces, and `Service`, and
//!   every type within them, have a field `rest` with all that has no field of its own ([`Rest`]).
//! - What is made here and never read to be written has what is set: Events, and
//!   CustomResourceDefinitions, whose schemas refuse a keyword that they do not know.
//!
//! The test `what_is_written_back_is_what_was_read` holds every type of the second kind to it.
//!
//! # To add a field or a type
//!
//! A field: in the `wire!` declaration of its type, `Option` where the API's reference says optional. Check its
//! name: camel case is made of snake case, so `podIP` or `clusterIPs` need a `#[serde(rename)]`.
//! A type: beside its like, and named in the tree of modules below; with `resource!` and `reads!` if it is a
//! whole object, with `writes!` only if it and all in it have a `rest`, and then in the test.
//! A newer kube that wants a type which is missing says so when it is compiled.

mod core;
mod crd;
mod meta;
mod named;
mod object;

pub use jiff;

pub use object::{
    ClusterResourceScope, Metadata, NamespaceResourceScope, Resource, ResourceScope,
    SubResourceScope,
};

/// All that an object says and its type has no field for, by name.
pub type Rest = std::collections::BTreeMap<String, serde_json::Value>;

/// What is only for types of Kubernetes 1.37 and newer: here, as these types are.
#[macro_export]
macro_rules! k8s_if_ge_1_37 {
    ($($tokens:tt)*) => { $($tokens)* };
}

/// What is only for types of Kubernetes 1.36 and older: nowhere.
#[macro_export]
macro_rules! k8s_if_le_1_36 {
    ($($tokens:tt)*) => {};
}

/// The API groups that are part of Kubernetes itself.
pub mod api {
    /// `apps`.
    pub mod apps {
        /// Version 1.
        pub mod v1 {
            pub use crate::core::{StatefulSet, StatefulSetOrdinals, StatefulSetSpec};
            pub use crate::named::{
                DaemonSet, Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet,
            };
        }
    }

    /// `authentication.k8s.io`.
    pub mod authentication {
        /// Version 1.
        pub mod v1 {
            pub use crate::named::TokenRequest;
        }
    }

    /// `autoscaling`.
    pub mod autoscaling {
        /// Version 1.
        pub mod v1 {
            pub use crate::named::{Scale, ScaleSpec, ScaleStatus};
        }
    }

    /// `batch`.
    pub mod batch {
        /// Version 1.
        pub mod v1 {
            pub use crate::named::{Job, JobCondition, JobStatus};
        }
    }

    /// `certificates.k8s.io`.
    pub mod certificates {
        /// Version 1.
        pub mod v1 {
            pub use crate::named::CertificateSigningRequest;
        }
    }

    /// `coordination.k8s.io`.
    pub mod coordination {
        /// Version 1.
        pub mod v1 {
            pub use crate::core::{Lease, LeaseSpec};
        }
    }

    /// The group without a name.
    pub mod core {
        /// Version 1.
        pub mod v1 {
            pub use crate::core::{
                ConfigMap, Container, LoadBalancerIngress, LoadBalancerStatus,
                LocalObjectReference, Namespace, Node, NodeSpec, ObjectReference, Pod, PodSpec,
                PodStatus, Service, ServiceSpec, ServiceStatus,
            };
            pub use crate::named::{EventSource, ServiceAccount};
        }
    }

    /// `events.k8s.io`.
    pub mod events {
        /// Version 1.
        pub mod v1 {
            pub use crate::core::{Event, EventSeries};
        }
    }

    /// `networking.k8s.io`.
    pub mod networking {
        /// Version 1.
        pub mod v1 {
            pub use crate::named::{
                Ingress, IngressLoadBalancerIngress, IngressLoadBalancerStatus, IngressStatus,
            };
        }
    }
}

/// What all objects have in common.
pub mod apimachinery {
    /// As Go's packages are called.
    pub mod pkg {
        /// As Go's packages are called.
        pub mod apis {
            /// `meta.k8s.io`.
            pub mod meta {
                /// Version 1.
                pub mod v1 {
                    pub use crate::meta::{
                        APIGroup, APIGroupList, APIResource, APIResourceList, APIVersions,
                        GroupVersionForDiscovery, LabelSelector, LabelSelectorRequirement,
                        ListMeta, ManagedFieldsEntry, MicroTime, ObjectMeta, OwnerReference,
                        Status, Time,
                    };
                }
            }
        }

        /// The API server's own version.
        pub mod version {
            pub use crate::named::Info;
        }
    }
}

/// CustomResourceDefinitions.
pub mod apiextensions_apiserver {
    /// As Go's packages are called.
    pub mod pkg {
        /// As Go's packages are called.
        pub mod apis {
            /// `apiextensions.k8s.io`.
            pub mod apiextensions {
                /// Version 1.
                pub mod v1 {
                    pub use crate::crd::{
                        CustomResourceColumnDefinition, CustomResourceDefinition,
                        CustomResourceDefinitionCondition, CustomResourceDefinitionNames,
                        CustomResourceDefinitionSpec, CustomResourceDefinitionStatus,
                        CustomResourceDefinitionVersion, CustomResourceSubresourceScale,
                        CustomResourceSubresourceStatus, CustomResourceSubresources,
                        CustomResourceValidation, JSONSchemaProps, SelectableField,
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
