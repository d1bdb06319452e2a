//! Plain types, the settings, and small helpers that all crates of the agent share.
//!
//! Nothing here depends on the kernel, an address pool or the API server.

mod family;
mod ipvlan_mode;
mod mac;
mod name;
mod namespaces;

pub mod bandwidth;
pub mod digest;
pub mod format;
pub mod glob;
pub mod link_name;
pub mod printable;
pub mod private;
pub mod replace;
pub mod settings;
pub mod timing;
pub mod yaml;

pub use family::Family;
pub use ipvlan_mode::IpvlanMode;
pub use mac::Mac;
pub use name::{DEFAULT_NAMESPACE, NameError, NetworkRef, ObjectName, is_name};
pub use namespaces::Namespaces;
