//! The limits of pods' bandwidth, for the programs that enforce them.

use std::sync::Mutex;

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};
use ebbtide_layout::{Limit, Limits};
use ebbtide_types::bandwidth::{Bandwidth, Rate};

use super::{
    Error,
    error::{is_gone, map_error},
    lock,
    retry::retry_enomem,
};

/// The maps of the programs that limit (ebpf/src/limit.rs).
pub struct PodLimits {
    /// By pod number.
    limits: Mutex<HashMap<MapData, u32, Limits>>,
    dropped: Array<MapData, u64>,
}

impl std::fmt::Debug for PodLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodLimits").finish_non_exhaustive()
    }
}

/// Packets that were dropped for a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limited {
    /// Out of pods.
    pub egress: u64,
    /// Into pods.
    pub ingress: u64,
}

/// Returns an unused limit for the programs.
fn fresh(rate: Option<Rate>) -> Limit {
    rate.map_or_else(Limit::default, |rate| Limit {
        rate: rate.bits_per_second,
        burst: rate.burst_nanoseconds(),
        ..Limit::default()
    })
}

/// Whether two limits are the same, however far they are used.
fn is_same(a: &Limit, b: &Limit) -> bool {
    (a.rate, a.burst) == (b.rate, b.burst)
}

impl PodLimits {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let mut map = |name| object.take_map(name).ok_or(Error::Lacks(name));
        let (limits, dropped) = (map("LIMITS")?, map("LIMITED")?);
        let limits = HashMap::try_from(limits).map_err(|e| map_error("open the map LIMITS", e))?;
        let dropped = Array::try_from(dropped).map_err(|e| map_error("open the map LIMITED", e))?;
        Ok(Self {
            limits: Mutex::new(limits),
            dropped,
        })
    }

    /// Sets the limits of a pod. The same ones stay, with what is used of them.
    ///
    /// # Errors
    /// If the kernel refuses the entry (out of memory, or too many pods have limits).
    pub fn set(&self, pod: u16, bandwidth: &Bandwidth) -> Result<(), Error> {
        let wanted = Limits {
            egress: fresh(bandwidth.egress),
            ingress: fresh(bandwidth.ingress),
        };
        let mut limits = lock(&self.limits);
        if limits
            .get(&pod.into(), 0)
            .is_ok_and(|known| holds(&known, &wanted))
        {
            return Ok(());
        }
        retry_enomem(|| {
            let set = limits.insert(u32::from(pod), wanted, 0);
            set.map_err(|e| map_error(format!("limit the bandwidth of pod number {pod}"), e))
        })
    }

    /// Whether these are the limits of a pod.
    #[must_use]
    pub fn are(&self, pod: u16, bandwidth: &Bandwidth) -> bool {
        let wanted = Limits {
            egress: fresh(bandwidth.egress),
            ingress: fresh(bandwidth.ingress),
        };
        let known = lock(&self.limits).get(&pod.into(), 0);
        known.is_ok_and(|known| holds(&known, &wanted))
    }

    /// Returns the limits of a pod, with what was counted; `None` without.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn of(&self, pod: u16) -> Result<Option<Limits>, Error> {
        match lock(&self.limits).get(&pod.into(), 0) {
            Ok(limits) => Ok(Some(limits)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(map_error("read a pod's limits", e)),
        }
    }

    /// Removes the limits of a pod, whose number will be reused.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn forget(&self, pod: u16) -> Result<(), Error> {
        match lock(&self.limits).remove(&pod.into()) {
            Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => Ok(()),
            Err(MapError::KeyNotFound) => Ok(()),
            other => other.map_err(|e| map_error("delete a pod's limits", e)),
        }
    }

    /// Returns the packets of all pods, also of those that are gone, that were dropped for their limits.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn dropped(&self) -> Result<Limited, Error> {
        let read = |at| {
            let count = self.dropped.get(&at, 0);
            count.map_err(|e| map_error("read how much was dropped for limits", e))
        };
        Ok(Limited {
            egress: read(0)?,
            ingress: read(1)?,
        })
    }
}

fn holds(known: &Limits, wanted: &Limits) -> bool {
    is_same(&known.egress, &wanted.egress) && is_same(&known.ingress, &wanted.ingress)
}
