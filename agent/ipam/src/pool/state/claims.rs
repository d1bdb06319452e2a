//! Addresses that wait for a pod.

use std::{net::IpAddr, sync::Arc};

use super::{Asked, State, Taken, Waiting};
use crate::{
    catalog::AddressSet,
    pool::{
        Allocation, Claim, ClaimKey, Conflict, InUse, Owner, PoolError, clock::Moment,
        picker::Holder,
    },
};

/// What came of a wish to adopt addresses.
#[derive(Debug)]
pub(in crate::pool) enum Adoption {
    /// The pod has them, by a claim or by its sandbox.
    Existing,
    /// They are held now, and to be written down.
    New(Vec<Taken>),
}

impl State {
    /// Takes in a claim found on disk; false if one of its addresses has an owner.
    pub(in crate::pool) fn recover_claim(&mut self, claim: Arc<Claim>) -> bool {
        let unique = claim.assigned.iter().all(|assigned| {
            let holder = Holder::Claim(Arc::clone(&claim));
            let other = self.addresses.held.insert(assigned.address, holder);
            other.is_none()
        });
        let waiting = Waiting {
            claim: Arc::clone(&claim),
            durable: true,
            busy: false,
        };
        self.claims.insert(claim.key(), waiting);
        unique
    }

    /// The claim that the request's pod may have.
    pub(super) fn claim_of(&self, asked: &Asked<'_>) -> Option<Arc<Claim>> {
        let pod = asked.pod?;
        let waiting = self
            .claims
            .get(&ClaimKey::new(pod, &asked.owner.interface))?;
        let fits = waiting.durable && !waiting.busy && waiting.claim.is_for(pod);
        fits.then(|| Arc::clone(&waiting.claim))
    }

    pub(in crate::pool) fn set_busy(&mut self, claim: &Claim, busy: bool) {
        if let Some(waiting) = self.claims.get_mut(&claim.key()) {
            waiting.busy = busy;
        }
    }

    /// Holds the claim's addresses for its pod, unless it has them already.
    pub(in crate::pool) fn adopt(&mut self, claim: &Arc<Claim>) -> Result<Adoption, PoolError> {
        let conflict = |address: IpAddr, with: String| Conflict {
            pod: claim.pod.to_string(),
            address,
            with,
        };
        let mut own = 0;
        for assigned in &claim.assigned {
            let address = assigned.address;
            match self.addresses.held.get(&address) {
                None if self.is_withdrawn(address) => {
                    let with = "was given back by this node".to_owned();
                    return Err(conflict(address, with).into());
                }
                None => {}
                Some(Holder::Claim(other)) if is_same(other, claim) => own += 1,
                Some(Holder::Claim(other)) => {
                    let with = format!("waits for {} of pod {}", other.interface, other.pod);
                    return Err(conflict(address, with).into());
                }
                Some(Holder::Owner(owner)) if self.is_of(owner, claim) => own += 1,
                Some(Holder::Owner(owner)) => {
                    return Err(conflict(address, format!("belongs to {owner}")).into());
                }
            }
        }
        let waiting = self.claims.get(&claim.key());
        let all = own == claim.assigned.len();
        if let Some(first) = claim.assigned.first()
            && !all
            && (own > 0 || waiting.is_some())
        {
            let with = "is not all that the pod has on this interface".to_owned();
            return Err(conflict(first.address, with).into());
        }
        if all {
            // Not before it is on disk, though.
            return match waiting {
                Some(waiting) if waiting.busy => Err(PoolError::ClaimBusy(claim.pod.to_string())),
                _ => Ok(Adoption::Existing),
            };
        }
        let taken = claim
            .assigned
            .iter()
            .map(|each| self.mark_held(each.address, Holder::Claim(Arc::clone(claim))))
            .collect();
        let waiting = Waiting {
            claim: Arc::clone(claim),
            durable: false,
            busy: true,
        };
        self.claims.insert(claim.key(), waiting);
        Ok(Adoption::New(taken))
    }

    /// Whether that is a sandbox of the claim's own pod.
    fn is_of(&self, owner: &Owner, claim: &Claim) -> bool {
        let pod = self
            .get(owner)
            .and_then(|allocation| allocation.pod.clone());
        pod.is_some_and(|pod| {
            ClaimKey::new(&pod, &owner.interface) == claim.key() && claim.is_for(&pod)
        })
    }

    /// The claim is on disk.
    pub(in crate::pool) fn keep(&mut self, claim: &Claim) {
        for assigned in &claim.assigned {
            self.borrowed.remove(&assigned.address);
        }
        if let Some(waiting) = self.claims.get_mut(&claim.key()) {
            waiting.durable = true;
            waiting.busy = false;
        }
    }

    /// Undoes [`Self::adopt`].
    pub(in crate::pool) fn disown(&mut self, claim: &Claim, taken: &[Taken]) {
        self.claims.remove(&claim.key());
        self.give_back(taken);
    }

    /// Marks the claim as about to end.
    pub(in crate::pool) fn begin_end(
        &mut self,
        key: &ClaimKey,
    ) -> Result<Option<Arc<Claim>>, PoolError> {
        match self.claims.get_mut(key) {
            None => Ok(None),
            Some(waiting) if waiting.busy => {
                Err(PoolError::ClaimBusy(waiting.claim.pod.to_string()))
            }
            Some(waiting) => {
                waiting.busy = true;
                Ok(Some(Arc::clone(&waiting.claim)))
            }
        }
    }

    /// The claim is on disk no more; its addresses rest.
    pub(in crate::pool) fn end(&mut self, claim: &Claim, now: Moment) {
        self.claims.remove(&claim.key());
        self.release(&claim.assigned, Some(now));
    }

    /// The allocation's sandbox is gone, and its addresses wait for the pod's next one: both are on disk.
    pub(in crate::pool) fn turn(
        &mut self,
        allocation: &Allocation,
        claim: &Arc<Claim>,
        unix_seconds: u64,
    ) {
        self.history.add(allocation, unix_seconds);
        self.owners.remove(&allocation.owner);
        for assigned in &allocation.assigned {
            let holder = Holder::Claim(Arc::clone(claim));
            self.addresses.held.insert(assigned.address, holder);
        }
        let waiting = Waiting {
            claim: Arc::clone(claim),
            durable: true,
            busy: false,
        };
        self.claims.insert(claim.key(), waiting);
    }

    /// Whether something waits for this interface of the pod already, or is about to.
    pub(in crate::pool) fn is_claimed(&self, key: &ClaimKey) -> bool {
        self.claims.contains_key(key)
    }

    pub(in crate::pool) fn claims(&self) -> Vec<Arc<Claim>> {
        let durable = self.claims.values().filter(|waiting| waiting.durable);
        durable.map(|waiting| Arc::clone(&waiting.claim)).collect()
    }

    /// Hands none of these out any more, unless one of them is in use or rests: then nothing changes.
    pub(in crate::pool) fn withdraw(&mut self, set: &AddressSet, now: Moment) -> Result<(), InUse> {
        let held = set.ranges().flat_map(|(first, last)| {
            let held = self.addresses.held.range(first..=last);
            held.map(|(address, _)| *address)
        });
        let held: Vec<IpAddr> = held.collect();
        let ripe = now.saturating_sub(self.rest);
        let resting = self.addresses.released_in(set);
        let resting: Vec<IpAddr> = resting
            .filter(|(moment, _)| *moment > ripe)
            .map(|(_, address)| address)
            .collect();
        if !held.is_empty() || !resting.is_empty() {
            return Err(InUse { held, resting });
        }
        let withdrawn = &mut self.withdrawn[set.family() as usize];
        *withdrawn = withdrawn.union(set);
        Ok(())
    }

    /// The opposite.
    pub(in crate::pool) fn restore(&mut self, set: &AddressSet) {
        let withdrawn = &mut self.withdrawn[set.family() as usize];
        *withdrawn = withdrawn.without(set);
    }
}

fn is_same(a: &Claim, b: &Claim) -> bool {
    a.key() == b.key() && a.is_for(&b.pod)
}
