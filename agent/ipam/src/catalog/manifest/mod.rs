//! The manifests as users write them: Spiderpool's kinds in `spiderpool.spidernet.io/v2beta1`.
//!
//! The same types parse files and the API server's objects, and the CRDs are generated from them
//! (`cargo xtask crds`). Fields that the agent does not use are included, so that the API server
//! keeps them. A missing field and an explicit `null` are the same, as in the Kubernetes API.

mod coordinator;
#[expect(unreachable_pub, reason = "of what KubeSchema makes inside a function")]
mod network;
#[expect(unreachable_pub, reason = "of what KubeSchema makes inside a function")]
#[expect(
    clippy::duplicated_attributes,
    reason = "every printer column has a type_ and a priority"
)]
mod pool;
#[expect(unreachable_pub, reason = "of what KubeSchema makes inside a function")]
mod reserved;
mod selector;
mod text;

pub use coordinator::{CoordinatorSpec, CoordinatorStatus, PolicyRoute, SpiderCoordinator};
pub use network::{
    AnyBlock, IpvlanSpec, MultusConfigSpec, OldPoolNames, PoolNames, SpiderMultusConfig,
};
pub use pool::{IpPoolSpec, IpPoolStatus, RouteSpec, SpiderIpPool};
pub use reserved::{ReservedIpSpec, SpiderReservedIp};
pub use selector::{LabelExpression, LabelOperator, LabelSelector};

/// The API group of all kinds in this module.
pub const GROUP: &str = "spiderpool.spidernet.io";

/// The API group and version of all kinds in this module.
pub const API_VERSION: &str = "spiderpool.spidernet.io/v2beta1";
