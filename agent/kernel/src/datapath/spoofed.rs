//! Reads which pods tried to send with addresses that are not their own.

use std::sync::Mutex;

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use ebbtide_layout::Spoofed;

use super::{
    Error,
    error::{is_gone, map_error},
    lock,
};

/// The map of the spoof guard (ebpf/src/guard.rs), by pod number.
pub(super) struct Spoofers(Mutex<HashMap<MapData, u32, Spoofed>>);

impl Spoofers {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let map = object.take_map("SPOOFED").ok_or(Error::Lacks("SPOOFED"))?;
        let map = HashMap::try_from(map).map_err(|e| map_error("open the map SPOOFED", e))?;
        Ok(Self(Mutex::new(map)))
    }

    /// Returns what the spoof guard dropped of one pod.
    pub(super) fn of(&self, pod: u32) -> Result<Spoofed, Error> {
        match lock(&self.0).get(&pod, 0) {
            Err(MapError::KeyNotFound) => Ok(Spoofed::default()),
            other => other.map_err(|e| map_error("read the counters of the spoof guard", e)),
        }
    }

    /// Removes a pod's entry: its number will be reused.
    pub(super) fn forget(&self, pod: u32) -> Result<(), Error> {
        match lock(&self.0).remove(&pod) {
            Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => Ok(()),
            Err(MapError::KeyNotFound) => Ok(()),
            other => other.map_err(|e| map_error("delete the counters of the spoof guard", e)),
        }
    }
}
