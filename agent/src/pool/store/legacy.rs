//! The store as it was up to schema version 2: a redb file. It is only read.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, TableDefinition,
    TableError, backends::InMemoryBackend,
};
use serde::Deserialize;
use serde_json::Value;

use super::{Contents, SCHEMA};
use crate::pool::{Allocation, Assigned, OpenError, Owner};

pub(super) const FILE: &str = "pool.redb";
/// Its name once the journal has all of it.
pub(super) const RETIRED: &str = "pool.redb.old";

/// As the journal's mark: (store, newest commit).
const MARK: &str = "pool.mark";

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ALLOCATIONS: TableDefinition<'_, (&str, &str, &str), &[u8]> =
    TableDefinition::new("allocations");
const RELEASED: TableDefinition<'_, &str, u64> = TableDefinition::new("released");

/// Version 2: a line of JSON, then the record.
#[derive(Deserialize)]
struct Header {
    since: u64,
    assigned: Vec<Assigned>,
}

/// Version 1: all of it one JSON object.
#[derive(Deserialize)]
struct Whole {
    owner: Owner,
    since: u64,
    assigned: Vec<Assigned>,
    record: Value,
}

/// Why a file cannot be read.
enum Bad {
    Corrupt(String),
    Schema(u64),
}

impl<E: Into<redb::Error>> From<E> for Bad {
    fn from(error: E) -> Self {
        Self::Corrupt(error.into().to_string())
    }
}

/// Everything in the file, held against its checksums.
///
/// Of a copy in memory: on the file itself redb would mend what it can by dropping the last changes.
pub(super) fn read(path: &Path) -> Result<Contents, OpenError> {
    let failed = |error: std::io::Error| OpenError::Failed {
        path: path.to_owned(),
        detail: error.to_string(),
    };
    let content = fs::read(path).map_err(failed)?;
    let noted = path.with_file_name(MARK);
    let noted = fs::read(noted).ok().and_then(|bytes| {
        let number = |range: std::ops::Range<usize>| {
            Some(u64::from_le_bytes(bytes.get(range)?.try_into().ok()?))
        };
        Some((number(0..8)?, number(8..16)?))
    });
    // redb panics on some kinds of damage; nothing that the work was at is used after that.
    let result = catch_unwind(AssertUnwindSafe(|| read_copy(&content, noted)))
        .unwrap_or_else(|_| Err(Bad::Corrupt("its structure makes no sense".into())));
    let path = path.to_owned();
    result.map_err(|bad| match bad {
        Bad::Corrupt(detail) => OpenError::Corrupt { path, detail },
        Bad::Schema(found) => OpenError::Schema {
            path,
            found,
            supported: SCHEMA,
        },
    })
}

fn read_copy(content: &[u8], noted: Option<(u64, u64)>) -> Result<Contents, Bad> {
    let mut contents = Contents::default();
    if content.is_empty() {
        return Ok(contents);
    }
    let copy = InMemoryBackend::new();
    let copied = copy.set_len(content.len() as u64);
    copied
        .and_then(|()| copy.write(0, content))
        .map_err(redb::Error::from)?;
    let mut database = Database::builder().create_with_backend(copy)?;
    if !database.check_integrity()? {
        return Err(Bad::Corrupt("its checksums do not match".into()));
    }
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(contents),
        result => result?,
    };
    let number = |name| Ok::<_, Bad>(meta.get(name)?.map_or(0, |value| value.value()));
    let (store, commit) = (number("store")?, number("commit")?);
    if let Some((noted_store, noted_commit)) = noted
        && noted_store == store
        && noted_commit > commit
    {
        return Err(Bad::Corrupt(format!(
            "the last {} of {noted_commit} changes that were acknowledged are not in it any more",
            noted_commit - commit,
        )));
    }
    let schema = number("schema")?;
    if !(1..=2).contains(&schema) {
        return Err(Bad::Schema(schema));
    }
    for row in transaction.open_table(ALLOCATIONS)?.iter()? {
        let (key, value) = row?;
        let (network, container_id, interface) = key.value();
        let owner = Owner {
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            interface: interface.to_owned(),
        };
        let allocation = decode(schema, &owner, value.value())
            .map_err(|reason| Bad::Corrupt(format!("the record of {owner}: {reason}")))?;
        contents.allocations.insert(owner, Arc::new(allocation));
    }
    for row in transaction.open_table(RELEASED)?.iter()? {
        let (address, released_at) = row?;
        let address = address.value();
        let parsed = address
            .parse()
            .map_err(|_| Bad::Corrupt(format!("{address:?} was released but is no address")))?;
        contents.released.insert(parsed, released_at.value());
    }
    Ok(contents)
}

fn decode(schema: u64, owner: &Owner, bytes: &[u8]) -> Result<Allocation, String> {
    let text = |error: serde_json::Error| error.to_string();
    let (since, assigned, record) = if schema == 1 {
        let whole: Whole = serde_json::from_slice(bytes).map_err(text)?;
        if whole.owner != *owner {
            return Err(format!("it names {}", whole.owner));
        }
        (whole.since, whole.assigned, whole.record)
    } else {
        let line = bytes.iter().position(|byte| *byte == b'\n');
        let (header, record) = bytes.split_at(line.ok_or("it has one line only")?);
        let header: Header = serde_json::from_slice(header).map_err(text)?;
        let record = serde_json::from_slice(record).map_err(text)?;
        (header.since, header.assigned, record)
    };
    Ok(Allocation {
        owner: owner.clone(),
        pod: None,
        assigned,
        record: record.into(),
        since,
        sticky: false,
    })
}
