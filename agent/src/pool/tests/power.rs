//! The power goes: what was written since the last sync is on the disk in part, sector by sector.

use std::{
    io,
    sync::{Mutex, MutexGuard},
};

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use redb::{Database, DatabaseError, StorageBackend};

use super::*;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug)]
enum Unsynced {
    Length(usize),
    Sector(usize, Vec<u8>),
}

#[derive(Debug, Default)]
struct Content {
    /// What a read gives: the page cache.
    cached: Vec<u8>,
    /// What is there for certain when the power comes back.
    synced: Vec<u8>,
    /// What may be there, in the order in which it was written.
    unsynced: Vec<Unsynced>,
}

#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Content>>);

fn put(image: &mut [u8], offset: usize, data: &[u8]) {
    // Beyond the end: the file was never made longer, as far as the disk knows.
    if let Some(place) = image.get_mut(offset..offset + data.len()) {
        place.copy_from_slice(data);
    }
}

impl Disk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    /// One of the images that a power failure at this moment can leave.
    fn after_power_failure(&self, random: &mut TestRng) -> Vec<u8> {
        let content = self.content();
        let mut image = content.synced.clone();
        for change in &content.unsynced {
            if random.next_u32().is_multiple_of(2) {
                continue;
            }
            match change {
                Unsynced::Length(length) => image.resize(*length, 0),
                Unsynced::Sector(offset, data) => put(&mut image, *offset, data),
            }
        }
        image
    }

    fn open(&self, lab: &Lab) -> Pools {
        let disk = self.clone();
        let create = move || {
            Database::builder().create_with_backend(disk.clone()) as Result<_, DatabaseError>
        };
        let (store, contents) = Store::open_with("disk".into(), Box::new(create)).unwrap();
        let options = Options { rest: lab.rest };
        Pools::start(store, contents, &options, lab.clock(), Path::new("disk")).unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        out.copy_from_slice(&self.content().cached[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.content();
        content.cached.resize(len as usize, 0);
        content.unsynced.push(Unsynced::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.content();
        content.synced = content.cached.clone();
        content.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.content();
        put(&mut content.cached, offset as usize, data);
        let sectors = data.chunks(SECTOR).enumerate();
        let sectors = sectors.map(|(number, sector)| {
            Unsynced::Sector(offset as usize + number * SECTOR, sector.to_vec())
        });
        content.unsynced.extend(sectors);
        Ok(())
    }
}

/// Also after an fsync that was left out anywhere: then an acknowledged address would be missing.
#[test]
fn what_was_acknowledged_outlives_a_power_failure_at_any_moment() {
    let catalog = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.99], default: true}");
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let (disk, lab) = (Disk::default(), Lab::new());
    let pools = disk.open(&lab);
    let mut unsynced = 0;
    for number in 0..40 {
        add(&pools, &catalog, &number.to_string());
        if number % 3 == 0 {
            release(&pools, &number.to_string());
        }
        let acknowledged = pools.list();
        // The next request is under way: the writer is somewhere in the middle of it.
        let next = grant(&pools, &catalog, "next");
        let commit = thread_commit(next);
        for _ in 0..8 {
            unsynced += usize::from(!disk.content().unsynced.is_empty());
            let image = disk.after_power_failure(&mut random);
            let after = Lab::new();
            std::fs::write(after.dir.path().join("pool.redb"), &image).unwrap();
            let mut found = after.open().list();
            found.retain(|each| each.owner.container_id != "next");
            assert_eq!(found, acknowledged, "after {number}");
        }
        commit.join().unwrap();
        release(&pools, "next");
        lab.pass(60);
    }
    assert!(
        unsynced > 0,
        "the power never failed in the middle of a write"
    );
}

fn thread_commit(grant: Grant) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        wait(grant.commit(json!("next"))).unwrap();
    })
}
