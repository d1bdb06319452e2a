//! An allocation as bytes: one line of JSON for what the pools need, then the record as it is.
//!
//! So that nothing parses ten thousand records at a start, and a person can still read the file.

use serde::{Deserialize, Serialize};

use super::{Allocation, Assigned, Owner, Record};

/// The first line. The owner is the row's key.
#[derive(Serialize, Deserialize)]
struct Header<A> {
    since: u64,
    assigned: A,
}

pub(super) fn encode(allocation: &Allocation) -> serde_json::Result<Vec<u8>> {
    let header = Header {
        since: allocation.since,
        assigned: allocation.assigned.as_slice(),
    };
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(allocation.record.as_str().as_bytes());
    Ok(bytes)
}

pub(super) fn decode(owner: Owner, bytes: &[u8]) -> Result<Allocation, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (header, record) = text.split_once('\n').ok_or("it has one line only")?;
    let header: Header<Vec<Assigned>> =
        serde_json::from_str(header).map_err(|error| error.to_string())?;
    Ok(Allocation {
        owner,
        assigned: header.assigned,
        record: Record::from_text(record),
        since: header.since,
    })
}

/// As schema version 1 had it: all of it one JSON object.
pub(super) fn decode_version_1(owner: &Owner, bytes: &[u8]) -> Result<Allocation, String> {
    let allocation: Allocation =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if allocation.owner != *owner {
        return Err(format!("it names {}", allocation.owner));
    }
    Ok(allocation)
}
