//! Requested addresses: a pod gets these instead of any free ones.

use std::net::IpAddr;

use ebbtide_types::Family;

use super::{State, take::Asked};
use crate::{
    catalog::Pool,
    pool::{
        Unavailable,
        picker::Holder,
        select::{Choice, Selection},
    },
};

/// Returns the requested address of this family.
pub(super) fn of_family(requested_addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    let mut all = requested_addresses.iter().copied();
    all.find(|address| Family::of(*address) == family)
}

/// Whether the interface can have all requested addresses: at most one of each family, and only of
/// families that it gets.
pub(in crate::pool) fn can_be_met(
    requested_addresses: &[IpAddr],
    selection: &Selection<'_>,
) -> Result<(), Unavailable> {
    for (position, &address) in requested_addresses.iter().enumerate() {
        let family = Family::of(address);
        if of_family(&requested_addresses[..position], family).is_some() {
            let reason = format!("an interface has one {family} address, and another is requested");
            return Err(Unavailable { address, reason });
        }
        if selection.iter().all(|choice| choice.family != family) {
            let reason = format!("no {family} pool serves this pod");
            return Err(Unavailable { address, reason });
        }
    }
    Ok(())
}

impl State {
    /// Returns the pool that can hand out `address` to this pod now.
    pub(super) fn requested_addresses<'a>(
        &self,
        address: IpAddr,
        choice: &Choice<'a>,
        asked: &Asked<'_>,
    ) -> Result<(IpAddr, &'a Pool), Unavailable> {
        let unavailable = |reason: String| Unavailable { address, reason };
        let mut pools = choice.pools.iter();
        let Some(pool) = pools.find(|pool| pool.ranges.contains(address)) else {
            let names: Vec<&str> = choice.pools.iter().map(|pool| &*pool.name).collect();
            return Err(unavailable(format!(
                "it is not among the addresses of the pools that serve this pod ({})",
                names.join(", ")
            )));
        };
        match self.addresses.held.get(&address) {
            Some(Holder::Owner(owner)) => {
                return Err(unavailable(format!("it is in use: {owner}")));
            }
            Some(Holder::Reservation(reservation)) => {
                return Err(unavailable(format!(
                    "it is reserved for pod {}",
                    reservation.pod
                )));
            }
            None => {}
        }
        if let Some(why) = self.withheld.why(address) {
            return Err(unavailable(why.to_owned()));
        }
        if self.is_withdrawn(address) {
            return Err(unavailable(format!(
                "it is another node's share of pool {}",
                pool.name
            )));
        }
        let ripe = asked.now.saturating_sub(self.cooldown);
        match self.addresses.released.get(&address) {
            Some(&released) if released > ripe && !self.was_its_own(address, asked) => {
                let left = (released - ripe).unsigned_abs().div_ceil(1000);
                let reason =
                    format!("it was released a moment ago and cools down for {left} s more");
                Err(unavailable(reason))
            }
            _ => Ok((address, *pool)),
        }
    }

    /// Whether this container or a pod of this name had it last: peers that still send to that one may as well reach
    /// this one.
    fn was_its_own(&self, address: IpAddr, asked: &Asked<'_>) -> bool {
        let own = self.own_cooldowns.of(asked.pod, asked.owner);
        if own.contains(&address) {
            return true;
        }
        let past = self.history.of(address);
        let last = past.first().and_then(|past| past.pod.as_deref());
        asked.pod.is_some_and(|pod| last == Some(&*pod.to_string()))
    }
}
