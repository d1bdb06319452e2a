//! The addresses for which ARP requests and neighbour solicitations are answered.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use ebbtide_layout::{Address, Answer};
use ebbtide_types::Mac;

use super::{
    Error,
    error::{is_gone, map_error},
    key,
    retry::retry_enomem,
};

/// The map of the responder (ebpf/src/responder.rs).
pub struct Responder {
    map: Mutex<HashMap<MapData, Address, Answer>>,
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Responder {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let map = object.take_map("ANSWERS").ok_or(Error::Lacks("ANSWERS"))?;
        let map = HashMap::try_from(map).map_err(|e| map_error("open the map ANSWERS", e))?;
        Ok(Self {
            map: Mutex::new(map),
        })
    }

    /// Answers ARP requests and neighbour solicitations for `addresses` on the NIC `ifindex` with `mac`.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn insert(&self, addresses: &[IpAddr], ifindex: u32, mac: Mac) -> Result<(), Error> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            let known = map.get(&key(*address), 0).unwrap_or_default();
            let answer = Answer {
                ifindex,
                mac: mac.0,
                pad: [0; 6],
                count: known.count,
            };
            retry_enomem(|| {
                let answered = map.insert(key(*address), answer, 0);
                answered
                    .map_err(|e| map_error(format!("add {address} to the ARP and ND responder"), e))
            })?;
        }
        Ok(())
    }

    /// Stops answering for `addresses`.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn remove(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            match map.remove(&key(*address)) {
                Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => {}
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(e) => {
                    return Err(map_error(
                        format!("remove {address} from the ARP and ND responder"),
                        e,
                    ));
                }
            }
        }
        Ok(())
    }
}
