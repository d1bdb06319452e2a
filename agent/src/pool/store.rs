//! What is on disk: two tables in one redb file.
//!
//! Values are JSON and addresses are text, so that a person can read the file with any redb tool.
//! Schema version 2: `allocations` (network, container id, interface) → [`Allocation`] (see
//! `codec`); `released` address → milliseconds since 1970; `meta` "schema" → version. Version 1, with
//! allocations of another form, is rewritten when it is opened.

use std::{
    fs::{DirBuilder, File},
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable, TableDefinition,
};

use super::{
    Allocation, OpenError, Owner, StoreError,
    codec::{decode, decode_version_1, encode},
    integrity::{guarded, lock, verify},
    witness::{Mark, Witness},
};

const FILE: &str = "pool.redb";
const SCHEMA: u64 = 2;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ALLOCATIONS: TableDefinition<'_, (&str, &str, &str), &[u8]> =
    TableDefinition::new("allocations");
const RELEASED: TableDefinition<'_, &str, u64> = TableDefinition::new("released");

/// One change. Applying it twice is as good as once.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// The owner has this; its addresses rest no more. As bytes, too, where somebody made them already.
    Put(Arc<Allocation>, Option<Arc<[u8]>>),
    /// The owner has nothing; its addresses were released at this time (ms since 1970), if they had been in use.
    Remove {
        allocation: Arc<Allocation>,
        released_at: Option<u64>,
    },
}

/// Opens the database: the first time, and again after a failure.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

pub(super) struct Store {
    path: PathBuf,
    open: Opener,
    /// None between a failure and the next attempt: redb serves no more after an I/O error.
    database: Option<Database>,
    /// Held for as long as the store is open. None where a test brings its own disk.
    lock: Option<File>,
    /// None likewise.
    witness: Option<Witness>,
}

/// What was on disk when it was opened.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) allocations: Vec<Allocation>,
    pub(super) released: Vec<(IpAddr, u64)>,
}

impl Store {
    /// Opens or makes the store in `dir`.
    pub(super) fn open(dir: &Path) -> Result<(Self, Contents), OpenError> {
        let failed = |error: std::io::Error| OpenError::Failed {
            path: dir.to_owned(),
            detail: error.to_string(),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed)?;
        let path = dir.join(FILE);
        let lock = lock(dir, &path)?;
        guarded(&path, || verify(&path))?;
        let file = path.clone();
        let (mut store, contents) = Self::open_with(
            path,
            // The records of a node are a few hundred kilobytes.
            Box::new(move || Database::builder().set_cache_size(4 << 20).create(&file)),
        )?;
        // The file's name in the directory must outlive a power failure as well.
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
        store.lock = Some(lock);
        store.witness = Some(Witness::open(dir).map_err(failed)?);
        Ok((store, contents))
    }

    pub(super) fn open_with(path: PathBuf, open: Opener) -> Result<(Self, Contents), OpenError> {
        let (database, contents) = guarded(&path, || open_and_read(&path, &open))?;
        Ok((
            Self {
                path,
                open,
                database: Some(database),
                lock: None,
                witness: None,
            },
            contents,
        ))
    }

    /// Makes all changes durable, or none of them for certain: after an error it is not known which of
    /// them a crash would leave on disk.
    pub(super) fn apply(&mut self, changes: &[&Change]) -> Result<(), StoreError> {
        let result = self.try_apply(changes);
        match &result {
            Err(_) => self.database = None,
            Ok(mark) => {
                if let Some(Err(error)) = self.witness.as_ref().map(|witness| witness.write(*mark))
                {
                    // What is on disk is on disk; only a later loss of it would not be noticed.
                    tracing::warn!(%error, "the number of the newest commit could not be noted");
                }
            }
        }
        result.map(drop).map_err(|source| StoreError {
            path: self.path.clone(),
            source: Arc::new(source),
        })
    }

    fn try_apply(&mut self, changes: &[&Change]) -> Result<Mark, redb::Error> {
        let database = match &mut self.database {
            Some(database) => database,
            none => none.insert((self.open)()?),
        };
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        let mark;
        {
            let mut meta = transaction.open_table(META)?;
            let old = mark_of(&meta)?;
            mark = Mark {
                commit: old.commit + 1,
                ..old
            };
            meta.insert("commit", mark.commit)?;
            let mut allocations = transaction.open_table(ALLOCATIONS)?;
            let mut released = transaction.open_table(RELEASED)?;
            for change in changes {
                match change {
                    Change::Put(allocation, value) => {
                        let key = key(&allocation.owner);
                        match value {
                            Some(value) => allocations.insert(key, value.as_ref())?,
                            None => allocations.insert(key, encoded(allocation)?.as_slice())?,
                        };
                        for assigned in &allocation.assigned {
                            released.remove(assigned.address.to_string().as_str())?;
                        }
                    }
                    Change::Remove {
                        allocation,
                        released_at,
                    } => {
                        allocations.remove(key(&allocation.owner))?;
                        for assigned in released_at.iter().flat_map(|_| &allocation.assigned) {
                            released.insert(
                                assigned.address.to_string().as_str(),
                                released_at.unwrap_or_default(),
                            )?;
                        }
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(mark)
    }
}

fn mark_of(meta: &impl ReadableTable<&'static str, u64>) -> Result<Mark, redb::Error> {
    let number = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
    Ok(Mark {
        store: number("store")?,
        commit: number("commit")?,
    })
}

/// Which store this is, and its newest commit.
pub(super) fn mark(database: &Database) -> Result<Mark, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => mark_of(&meta),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(Mark {
            store: 0,
            commit: 0,
        }),
        Err(error) => Err(error.into()),
    }
}

fn encoded(allocation: &Allocation) -> Result<Vec<u8>, redb::Error> {
    encode(allocation).map_err(|error| redb::Error::Io(error.into()))
}

fn key(owner: &Owner) -> (&str, &str, &str) {
    (&owner.network, &owner.container_id, &owner.interface)
}

fn open_and_read(path: &Path, open: &Opener) -> Result<(Database, Contents), OpenError> {
    let database = open().map_err(|error| open_error(path, error))?;
    initialise(&database).map_err(|error| redb_error(path, error))?;
    let contents = read(&database, path)?;
    Ok((database, contents))
}

fn initialise(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        if meta.get("schema")?.is_none() {
            meta.insert("schema", SCHEMA)?;
        }
        if meta.get("store")?.is_none() {
            // Tells it from one that was here before: the nanosecond of its birth will do.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let nanos = now.unwrap_or_default().as_nanos() & u128::from(u64::MAX);
            meta.insert("store", u64::try_from(nanos).unwrap_or(u64::MAX))?;
        }
        transaction.open_table(ALLOCATIONS)?;
        transaction.open_table(RELEASED)?;
    }
    transaction.commit()?;
    Ok(())
}

fn read(database: &Database, path: &Path) -> Result<Contents, OpenError> {
    let corrupt = |detail: String| OpenError::Corrupt {
        path: path.to_owned(),
        detail,
    };
    let mut contents = Contents::default();
    let rows = read_rows(database).map_err(|error| redb_error(path, error))?;
    let decode_row: fn(Owner, &[u8]) -> Result<Allocation, String> = match rows.schema {
        SCHEMA => decode,
        1 => |owner, value| decode_version_1(&owner, value),
        found => {
            return Err(OpenError::Schema {
                path: path.to_owned(),
                found,
                supported: SCHEMA,
            });
        }
    };
    for (owner, value) in rows.allocations {
        let name = owner.to_string();
        let allocation = decode_row(owner, &value)
            .map_err(|error| corrupt(format!("the record of {name}: {error}")))?;
        contents.allocations.push(allocation);
    }
    for (address, released_at) in rows.released {
        let address = address
            .parse()
            .map_err(|_| corrupt(format!("{address:?} was released but is no address")))?;
        contents.released.push((address, released_at));
    }
    if rows.schema != SCHEMA {
        upgrade(database, &contents.allocations).map_err(|error| redb_error(path, error))?;
        tracing::info!(path = %path.display(), from = rows.schema, to = SCHEMA, "store upgraded");
    }
    Ok(contents)
}

/// Writes all of it in this version's form, in one transaction: a crash leaves the old file.
fn upgrade(database: &Database, all: &[Allocation]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut allocations = transaction.open_table(ALLOCATIONS)?;
        for allocation in all {
            allocations.insert(key(&allocation.owner), encoded(allocation)?.as_slice())?;
        }
        transaction.open_table(META)?.insert("schema", SCHEMA)?;
    }
    transaction.commit()?;
    Ok(())
}

struct Rows {
    schema: u64,
    allocations: Vec<(Owner, Vec<u8>)>,
    released: Vec<(String, u64)>,
}

fn read_rows(database: &Database) -> Result<Rows, redb::Error> {
    let transaction = database.begin_read()?;
    let mut rows = Rows {
        schema: 0,
        allocations: Vec::new(),
        released: Vec::new(),
    };
    rows.schema = transaction
        .open_table(META)?
        .get("schema")?
        .map_or(0, |value| value.value());
    for row in transaction.open_table(ALLOCATIONS)?.iter()? {
        let (key, value) = row?;
        let (network, container_id, interface) = key.value();
        let owner = Owner {
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            interface: interface.to_owned(),
        };
        rows.allocations.push((owner, value.value().to_vec()));
    }
    for row in transaction.open_table(RELEASED)?.iter()? {
        let (address, released_at) = row?;
        rows.released
            .push((address.value().to_owned(), released_at.value()));
    }
    Ok(rows)
}

pub(super) fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked {
            path: path.to_owned(),
        },
        DatabaseError::UpgradeRequired(version) => OpenError::Corrupt {
            path: path.to_owned(),
            detail: format!("it has the file format {version} of an older redb"),
        },
        other => redb_error(path, other.into()),
    }
}

pub(super) fn redb_error(path: &Path, error: redb::Error) -> OpenError {
    let path = path.to_owned();
    let detail = error.to_string();
    match error {
        redb::Error::Corrupted(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::RepairAborted => OpenError::Corrupt { path, detail },
        // A file that is not redb's, or one that was cut off.
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            OpenError::Corrupt { path, detail }
        }
        _ => OpenError::Failed { path, detail },
    }
}
