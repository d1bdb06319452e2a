//! Reservations: addresses that no sandbox has, held for one pod.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Assigned;

/// A pod, independent of its sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty if unknown. A later pod of the same name has a different one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            // A container of podman, which gives its name alone.
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The key of a reservation: an interface of a pod, by the pod's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReservationKey {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The interface in the pod.
    pub interface: String,
}

impl ReservationKey {
    pub(super) fn new(pod: &PodRef, interface: &str) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            interface: interface.to_owned(),
        }
    }
}

/// The reason for a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A running pod got them from another agent; its sandbox is unknown here.
    Adopted,
    /// They belong to a StatefulSet's pod, by its name, until its next sandbox.
    Sticky,
}

/// Addresses reserved for a pod, as stored on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The pod.
    pub pod: PodRef,
    /// The pod's interface.
    pub interface: String,
    /// The reason.
    pub reason: Reason,
    /// The time of the reservation: seconds since 1970 by the wall clock.
    pub since: u64,
    /// At most one of each family, IPv4 first.
    pub assigned: Vec<Assigned>,
}

impl Reservation {
    /// Returns the key of the reservation.
    #[must_use]
    pub fn key(&self) -> ReservationKey {
        ReservationKey::new(&self.pod, &self.interface)
    }

    /// Whether a sandbox of this pod gets the addresses. An adopted reservation is for that very
    /// pod (its uid), a sticky one for any pod of the name.
    pub(super) fn is_for(&self, pod: &PodRef) -> bool {
        let known = |uid: &str| !uid.is_empty();
        let another = known(&self.pod.uid) && known(&pod.uid) && self.pod.uid != pod.uid;
        self.reason == Reason::Sticky || !another
    }
}

/// The ordinals of a StatefulSet's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// `spec.ordinals.start`, 0 if it is not set.
    pub start: u64,
    /// `spec.replicas`.
    pub count: u64,
}

/// Splits the name of a StatefulSet's pod into the set's name and the ordinal: `web-2` is `("web", 2)`.
#[must_use]
pub fn ordinal(pod: &str) -> Option<(&str, u64)> {
    let (set, number) = pod.rsplit_once('-')?;
    let plain = !set.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = number == "0" || !number.starts_with('0');
    (plain && canonical).then(|| Some((set, number.parse().ok()?)))?
}

/// Whether the StatefulSet will have a pod of this name again. `replicas` is `None` if no set of the name exists.
///
/// If not, a sticky address is released on this evidence.
///
/// # Examples
///
/// ```
/// use ebbtide_ipam::pool::{Replicas, is_expected};
///
/// let three = Some(Replicas { start: 0, count: 3 });
/// assert!(is_expected("web-2", three));
/// assert!(!is_expected("web-3", three));
/// assert!(!is_expected("web-2", None));
/// ```
#[must_use]
pub fn is_expected(pod: &str, replicas: Option<Replicas>) -> bool {
    match (ordinal(pod), replicas) {
        (Some((_, ordinal)), Some(Replicas { start, count })) => {
            (start..start.saturating_add(count)).contains(&ordinal)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_expected_while_its_statefulset_counts_it() {
        let set = |start, count| Some(Replicas { start, count });
        for (pod, replicas, expected) in [
            ("web-0", set(0, 1), true),
            ("web-1", set(0, 1), false),
            ("web-9", set(0, 10), true),
            ("web-0", set(5, 3), false),
            ("web-7", set(5, 3), true),
            ("web-0", None, false),
            ("web", set(0, 9), false),
            ("web-01", set(0, 9), false),
            ("my-web-3", set(0, 4), true),
            ("web-18446744073709551615", set(0, u64::MAX), false),
            ("web-99999999999999999999", set(0, u64::MAX), false),
        ] {
            assert_eq!(is_expected(pod, replicas), expected, "{pod} {replicas:?}");
        }
        assert_eq!(ordinal("my-web-3"), Some(("my-web", 3)));
        assert_eq!(ordinal("-3"), None);
    }
}
