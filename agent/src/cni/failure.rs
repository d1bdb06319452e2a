//! Errors of CNI commands, with the specification's codes.

use ebbtide_ipam::{catalog, pool};
use ebbtide_kernel::{netlink, podnet};
use ebbtide_plugin::cni::{CniError, code};
use ebbtide_types::printable::printable;

/// Why a command failed: the plugin prints this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error code, see [`code`].
    pub code: u32,
    /// What was wrong, naming the object.
    pub message: String,
    /// What can be done about it.
    pub hint: String,
}

impl Failure {
    /// Makes a failure.
    pub fn new(code: u32, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// Returns the JSON that the specification defines, for a configuration of `version`.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        let error = CniError {
            cni_version: version.to_owned(),
            code: self.code,
            msg: printable(&self.message).into_owned(),
            details: printable(&self.hint).into_owned(),
        };
        serde_json::to_string(&error).unwrap_or_else(|e| format!("{{\"msg\":\"{e}\"}}"))
    }
}

impl From<podnet::PlanError> for Failure {
    fn from(error: podnet::PlanError) -> Self {
        let hint = match &error {
            podnet::PlanError::OtherLimit { .. } => {
                "nothing was changed: ask for the limit once, by the pod's annotations"
            }
            _ => "correct the network's `master` or the node's NICs; `ip link` shows what is there",
        };
        Self::new(code::INVALID_NETWORK_CONFIG, error.to_string(), hint)
    }
}

impl From<podnet::Error> for Failure {
    fn from(error: podnet::Error) -> Self {
        let mut cause = &error;
        while let podnet::Error::NothingMade(inner) = cause {
            cause = inner;
        }
        let (code, hint) = match cause {
            podnet::Error::MasterTaken { hint, .. } => (code::KERNEL, hint.as_str()),
            podnet::Error::NoIpvlan(_) => (
                code::KERNEL,
                "load it with `modprobe ipvlan`; where there is no such module, it is in another package of the \
                 distribution's (as linux-modules-extra); `ebbtidectl doctor` names what else this kernel lacks",
            ),
            podnet::Error::NoFairQueue(_) => (
                code::KERNEL,
                "nothing was left behind: load it with `modprobe sch_fq` (where there is no such module, it is in another \
                 package of the distribution's, as linux-modules-extra), or remove the pod's annotation \
                 kubernetes.io/egress-bandwidth",
            ),
            podnet::Error::LinkTaken { .. } => (
                code::KERNEL,
                "nothing was changed: give this interface another name, or let who made the other one remove it first \
                 (a DEL of its own network)",
            ),
            podnet::Error::ModeConflict { .. } => (
                code::INVALID_NETWORK_CONFIG,
                "a NIC has one ipvlan mode, and theirs would change while they run: use their mode in the networks of \
                 this master, or let them end first (restart their pods with ebbtide's network); it is tried again",
            ),
            _ => (
                code::KERNEL,
                "nothing was left behind; the agent's log has the details",
            ),
        };
        Self::new(code, error.to_string(), hint)
    }
}

impl From<netlink::Error> for Failure {
    fn from(error: netlink::Error) -> Self {
        podnet::Error::from(error).into()
    }
}

impl From<catalog::NetworkError> for Failure {
    fn from(error: catalog::NetworkError) -> Self {
        Self::new(
            code::INVALID_NETWORK_CONFIG,
            error.to_string(),
            "add a SpiderMultusConfig of that name to the manifests, or correct `network`",
        )
    }
}

impl From<pool::PoolError> for Failure {
    fn from(error: pool::PoolError) -> Self {
        let (code, hint) = match &error {
            pool::PoolError::NoAddress(_) | pool::PoolError::Full(_) => (
                code::NO_ADDRESS,
                "`ebbtidectl pools` shows the pools and how full they are",
            ),
            pool::PoolError::Unavailable(_) => (
                code::NO_ADDRESS,
                "`ebbtidectl ip ADDRESS` tells whose it is; ask for another (`ips`), or for none",
            ),
            pool::PoolError::Annotation(_) => (
                code::INVALID_NETWORK_CONFIG,
                "correct the annotation; nothing was given out",
            ),
            pool::PoolError::Busy { .. } => (
                code::TRY_AGAIN_LATER,
                "another request for the same interface is being served",
            ),
            _ => (
                code::IO_FAILURE,
                "nothing was given out; look at the agent's log and its state directory",
            ),
        };
        Self::new(code, error.to_string(), hint)
    }
}
