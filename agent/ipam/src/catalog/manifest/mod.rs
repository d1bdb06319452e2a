//! The documents as people write them: Spiderpool's kinds in `spiderpool.spidernet.io/v2beta1`.
//!
//! The same types read files and the API server's objects, and the CRDs are made from them
//! (`cargo xtask crds`). What the agent does not use is here too, so that the API server keeps
//! it. A missing field and an explicit `null` are the same, as in the Kubernetes API.

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

/// The group of all kinds here.
pub const GROUP: &str = "spiderpool.spidernet.io";

/// The group and version of all kinds here.
pub const API_VERSION: &str = "spiderpool.spidernet.io/v2beta1";
