//! CNI versions and errors (the specification's sections "Version considerations" and "Error").

use serde::{Deserialize, Serialize};

/// The supported versions of the specification, oldest first.
pub const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// The version of a configuration without one, as in libcni (`ConfigDecoder`).
pub const UNNAMED: &str = "0.1.0";

/// The newest of [`VERSIONS`].
pub const NEWEST: &str = "1.1.0";

/// Error codes in use; those below 100 are the specification's.
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration; the message names key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Invalid necessary environment variables.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO_FAILURE: u32 = 5;
    /// Failed to decode content.
    pub const DECODING_FAILURE: u32 = 6;
    /// Invalid network configuration.
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    /// Try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin is not available, ADD would fail.
    pub const NOT_AVAILABLE: u32 = 50;
    /// CHECK: the interface is not in the desired state. (Codes from 100 are the plugin's own.)
    pub const CHECK_FAILED: u32 = 100;
    /// ADD: no pool has an address for the pod.
    pub const NO_ADDRESS: u32 = 101;
    /// ADD: the kernel refused a part of the pod's network.
    pub const KERNEL: u32 = 102;
}

/// The error that the plugin prints to standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// The version of the configuration that it answers.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// See [`code`].
    pub code: u32,
    /// What was wrong, in one line.
    pub msg: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// The fields of a network configuration that the plugin itself reads.
#[derive(Debug, Default, Deserialize)]
pub struct Head {
    /// Version of the configuration.
    #[serde(rename = "cniVersion", default)]
    pub cni_version: Option<String>,
    /// Socket of the agent.
    #[serde(rename = "agentSocket", default)]
    pub agent_socket: Option<String>,
}

/// The answer to VERSION.
#[derive(Debug, Serialize)]
pub struct VersionResult<'a> {
    /// The version of the request.
    #[serde(rename = "cniVersion")]
    pub cni_version: &'a str,
    /// [`VERSIONS`].
    #[serde(rename = "supportedVersions")]
    pub supported_versions: [&'static str; 7],
}
