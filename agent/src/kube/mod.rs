//! The agent's side of Kubernetes: API types, what is read from the API server and what is written.

pub mod attachment;
pub mod crds;
#[expect(
    clippy::duplicated_attributes,
    reason = "every printer column has a type_"
)]
pub mod endpoint;
