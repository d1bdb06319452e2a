//! Addresses of other plugins that are being assigned to pods at this moment: of two concurrent requests for the same
//! address, one is refused.

use std::{collections::BTreeSet, net::IpAddr, sync::Mutex};

use super::locked;

/// The set of these addresses.
#[derive(Debug, Default)]
pub struct PendingAddresses(Mutex<BTreeSet<IpAddr>>);

/// Reserves addresses until it is dropped. By then the interface is recorded, or is not made.
#[derive(Debug)]
pub struct Pending<'a> {
    pending: &'a PendingAddresses,
    own: Vec<IpAddr>,
}

impl PendingAddresses {
    /// Reserves all of `addresses`.
    ///
    /// # Errors
    /// The first address that another request has reserved; then none is reserved.
    pub fn reserve(&self, addresses: impl Iterator<Item = IpAddr>) -> Result<Pending<'_>, IpAddr> {
        let mut all = locked(&self.0);
        let own: BTreeSet<IpAddr> = addresses.collect();
        if let Some(taken) = own.iter().find(|address| all.contains(address)) {
            return Err(*taken);
        }
        all.extend(&own);
        Ok(Pending {
            pending: self,
            own: own.into_iter().collect(),
        })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut all = locked(&self.pending.0);
        for address in &self.own {
            all.remove(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_at_once_one_has_an_address_and_the_next_one_gets_it_afterwards() {
        let pending = PendingAddresses::default();
        let [a, b] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        // A result may name an address twice.
        let first = pending.reserve([a, a].into_iter()).unwrap();
        assert_eq!(pending.reserve([b, a].into_iter()).unwrap_err(), a);
        drop(pending.reserve([b].into_iter()).unwrap());
        drop(first);
        assert!(pending.reserve([a, b].into_iter()).is_ok());
    }
}
