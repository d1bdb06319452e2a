//! A disk that fails at every possible moment.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, AtomicI64},
};

use redb::{Database, DatabaseError, StorageBackend, StorageError};

use super::*;

/// A file whose changes begin to fail after a number of them, until it is mended.
#[derive(Debug, Clone)]
struct Disk {
    file: Arc<File>,
    changes_left: Arc<AtomicI64>,
    failed: Arc<AtomicBool>,
}

impl Disk {
    fn new(lab: &Lab) -> Self {
        let path = lab.dir.path().join("disk");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        Self {
            file: Arc::new(file),
            changes_left: Arc::new(AtomicI64::new(i64::MAX)),
            failed: Arc::default(),
        }
    }

    fn fail_after(&self, changes: i64) {
        self.failed.store(false, Ordering::SeqCst);
        self.changes_left.store(changes, Ordering::SeqCst);
    }

    /// Whether anything failed since `fail_after`.
    fn mend(&self) -> bool {
        self.changes_left.store(i64::MAX, Ordering::SeqCst);
        self.failed.load(Ordering::SeqCst)
    }

    fn change(&self) -> io::Result<()> {
        if self.changes_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.failed.store(true, Ordering::SeqCst);
        Err(io::ErrorKind::StorageFull.into())
    }

    fn open(&self, lab: &Lab) -> Pools {
        let disk = self.clone();
        let create = move || {
            Database::builder().create_with_backend(disk.clone()) as Result<_, DatabaseError>
        };
        let (store, contents) = Store::open_with("disk".into(), Box::new(create)).unwrap();
        Pools::start(
            store,
            contents,
            &Options { rest: lab.rest },
            lab.clock(),
            Path::new("disk"),
        )
        .unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.change() {
            Ok(()) => self.file.write_all_at(data, offset),
            Err(error) => {
                // A short write: half of it got there.
                self.file.write_all_at(&data[..data.len() / 2], offset)?;
                Err(error)
            }
        }
    }
}

const POOL: &str = "p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}";

/// Runs `test` with the disk failing after 0, 1, 2... changes, until it says that nothing failed.
fn at_every_change(test: impl Fn(&Lab, &Disk, i64) -> bool) {
    for changes in 0..200 {
        let lab = Lab::new();
        let disk = Disk::new(&lab);
        if !test(&lab, &disk, changes) {
            assert!(changes > 2, "the disk was hardly used");
            return;
        }
    }
    panic!("the disk never stopped failing");
}

#[test]
fn an_add_that_could_not_be_written_did_not_happen_and_never_comes_back_beside_another() {
    let catalog = catalog(POOL);
    at_every_change(|lab, disk, changes| {
        let pools = disk.open(lab);
        add(&pools, &catalog, "old");
        let second = grant(&pools, &catalog, "a");
        disk.fail_after(changes);
        let result = wait(second.commit(json!(null)));
        let failed = disk.mend();
        assert_eq!(result.is_err(), failed, "after {changes}: {result:?}");
        if let Err(error) = result {
            assert!(
                error
                    .to_string()
                    .contains("see that the file system has space"),
                "{error}"
            );
            assert_eq!(
                add(&pools, &catalog, "b"),
                ["10.0.0.2"],
                "after {changes}: given back, and served again"
            );
        }
        let before = pools.list();
        assert_eq!(before.len(), 2);
        drop(pools);
        assert_eq!(disk.open(lab).list(), before, "after {changes}");
        failed
    });
}

#[test]
fn a_release_that_could_not_be_written_did_not_happen() {
    let catalog = catalog(POOL);
    at_every_change(|lab, disk, changes| {
        let pools = disk.open(lab);
        add(&pools, &catalog, "a");
        disk.fail_after(changes);
        let result = wait(pools.release(&owner("a")));
        let failed = disk.mend();
        assert_eq!(result.is_err(), failed, "after {changes}: {result:?}");
        assert_eq!(pools.get(&owner("a")).is_some(), failed, "after {changes}");
        add(&pools, &catalog, "b");
        let before = pools.list();
        drop(pools);
        let pools = disk.open(lab);
        assert_eq!(pools.list(), before, "after {changes}");
        assert_eq!(release(&pools, "a").is_some(), failed);
        failed
    });
}

#[test]
fn a_crash_in_the_middle_of_a_write_leaves_either_all_of_it_or_nothing() {
    let catalog = catalog(POOL);
    at_every_change(|lab, disk, changes| {
        let pools = disk.open(lab);
        add(&pools, &catalog, "old");
        disk.fail_after(changes);
        let result = wait(grant(&pools, &catalog, "new").commit(json!(null)));
        // Nothing more reaches the disk: not even what an orderly end writes.
        disk.fail_after(0);
        drop(pools);
        disk.mend();
        let containers: Vec<String> = disk
            .open(lab)
            .list()
            .into_iter()
            .map(|each| each.owner.container_id)
            .collect();
        let whole = containers == ["new", "old"];
        assert!(
            whole || (result.is_err() && containers == ["old"]),
            "after {changes}: {containers:?}, {result:?}"
        );
        result.is_err()
    });
}

#[test]
fn redb_itself_serves_no_more_after_a_failure_which_is_why_it_is_opened_anew() {
    let lab = Lab::new();
    let disk = Disk::new(&lab);
    let database = Database::builder()
        .create_with_backend(disk.clone())
        .unwrap();
    disk.fail_after(0);
    assert!(database.begin_write().unwrap().commit().is_err());
    disk.mend();
    let again = database.begin_write().map(drop).map_err(redb::Error::from);
    assert!(
        matches!(again, Err(redb::Error::PreviousIo)),
        "{again:?}, {:?}",
        StorageError::PreviousIo
    );
}
