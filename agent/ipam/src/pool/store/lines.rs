//! The lines of the journal.
//!
//! JSON never contains a raw tab or newline, so neither can be mistaken for a separator. The record
//! stands apart from what the pools need, so that a start does not parse ten thousand records.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Contents, SCHEMA};
use crate::pool::{Allocation, Assigned, Owner, PodRef, Record, Reservation, ReservationKey};

/// One change.
#[derive(Debug, Clone, Copy)]
pub(in crate::pool) enum Change<'a> {
    /// The owner has this allocation; its addresses are in use, neither cooling down nor reserved.
    Put(&'a Allocation),
    /// The owner has none; its addresses were released at this time (ms since 1970), if they had been in use.
    Remove(&'a Owner, Option<u64>),
    /// Addresses are reserved for a pod.
    Reservation(&'a Reservation),
    /// The reservation ended, and its addresses were released at this time if no pod has them now.
    Unreserve(&'a Reservation, Option<u64>),
    /// No pod has this address, and it was released at this time.
    Released(IpAddr, u64),
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) schema: u64,
    /// Distinguishes this store from earlier and later ones.
    pub(super) store: u64,
}

#[derive(Serialize, Deserialize)]
struct Put<'a> {
    owner: Cow<'a, Owner>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Cow<'a, PodRef>>,
    since: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    sticky: bool,
    assigned: Cow<'a, [Assigned]>,
}

#[derive(Serialize, Deserialize)]
struct Remove<'a> {
    owner: Cow<'a, Owner>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Unreserve {
    #[serde(flatten)]
    key: ReservationKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Released {
    address: IpAddr,
    at: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn line<T: Serialize>(out: &mut Vec<u8>, kind: u8, value: &T) -> serde_json::Result<()> {
    out.extend_from_slice(&[kind, b' ']);
    serde_json::to_writer(&mut *out, value)?;
    out.push(b'\n');
    Ok(())
}

/// Appends the line of a change.
pub(in crate::pool) fn encode(out: &mut Vec<u8>, change: Change<'_>) -> serde_json::Result<()> {
    match change {
        Change::Put(allocation) => {
            let put = Put {
                owner: Cow::Borrowed(&allocation.owner),
                pod: allocation.pod.as_ref().map(Cow::Borrowed),
                since: allocation.since,
                sticky: allocation.sticky,
                assigned: Cow::Borrowed(&allocation.assigned),
            };
            line(out, b'+', &put)?;
            if let Some(end) = out.last_mut() {
                *end = b'\t';
            }
            out.extend_from_slice(allocation.record.as_str().as_bytes());
            out.push(b'\n');
            Ok(())
        }
        Change::Remove(owner, at) => {
            let owner = Cow::Borrowed(owner);
            line(out, b'-', &Remove { owner, at })
        }
        Change::Reservation(reservation) => line(out, b'c', reservation),
        Change::Unreserve(reservation, at) => {
            let key = reservation.key();
            line(out, b'x', &Unreserve { key, at })
        }
        Change::Released(address, at) => line(out, b'~', &Released { address, at }),
    }
}

/// Appends the first line of a new file.
pub(super) fn encode_head(out: &mut Vec<u8>, store: u64) -> serde_json::Result<()> {
    let schema = SCHEMA;
    line(out, b'%', &Head { schema, store })
}

/// Parses the first line of a file, if Ebbtide wrote it.
pub(super) fn head(text: &[u8]) -> Option<Head> {
    let first = text.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(first.strip_prefix(b"% ")?).ok()
}

impl Contents {
    /// Applies the change in a line.
    pub(super) fn apply(&mut self, line: &str) -> Result<(), String> {
        let (kind, value) = line
            .split_once(' ')
            .ok_or("it is not in the journal's format")?;
        match kind {
            "%" => Ok(()),
            "+" => {
                let (header, record) = value.split_once('\t').ok_or("it has no record")?;
                let put: Put<'_> = parse(header)?;
                for assigned in put.assigned.iter() {
                    self.released.remove(&assigned.address);
                }
                let owner = put.owner.into_owned();
                let allocation = Allocation {
                    owner: owner.clone(),
                    pod: put.pod.map(Cow::into_owned),
                    assigned: put.assigned.into_owned(),
                    record: Record::from_text(record),
                    since: put.since,
                    sticky: put.sticky,
                };
                self.allocations.insert(owner, Arc::new(allocation));
                Ok(())
            }
            "-" => {
                let remove: Remove<'_> = parse(value)?;
                let gone = self.allocations.remove(&*remove.owner);
                let assigned = gone.iter().flat_map(|gone| &gone.assigned);
                self.release(assigned, remove.at);
                Ok(())
            }
            "c" => {
                let reservation: Reservation = parse(value)?;
                for assigned in &reservation.assigned {
                    self.released.remove(&assigned.address);
                }
                self.reservations
                    .insert(reservation.key(), Arc::new(reservation));
                Ok(())
            }
            "x" => {
                let unreserve: Unreserve = parse(value)?;
                let gone = self.reservations.remove(&unreserve.key);
                let assigned = gone.iter().flat_map(|gone| &gone.assigned);
                self.release(assigned, unreserve.at);
                Ok(())
            }
            "~" => {
                let Released { address, at } = parse(value)?;
                self.released.insert(address, at);
                Ok(())
            }
            _ => Err("its kind is unknown".to_owned()),
        }
    }

    fn release<'a>(&mut self, gone: impl Iterator<Item = &'a Assigned>, at: Option<u64>) {
        if let Some(at) = at {
            self.released.extend(gone.map(|each| (each.address, at)));
        }
    }

    /// Appends the whole contents as lines.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        for allocation in self.allocations.values() {
            encode(out, Change::Put(allocation))?;
        }
        for reservation in self.reservations.values() {
            encode(out, Change::Reservation(reservation))?;
        }
        for (address, at) in &self.released {
            encode(out, Change::Released(*address, *at))?;
        }
        Ok(())
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
