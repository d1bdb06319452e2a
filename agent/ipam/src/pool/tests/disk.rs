//! A disk in memory that fails on request, and simulates what a power failure leaves.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard},
};

use proptest::{prelude::Rng as _, test_runner::TestRng};

use super::*;
use crate::pool::store::{self, Journal, Name};

/// The unit that a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Unsynced {
    Length(usize),
    Sector(usize, Vec<u8>),
}

#[derive(Debug, Clone, Default)]
struct File {
    /// The content that reads return: the page cache.
    cached: Vec<u8>,
    /// The content that certainly survives a power failure.
    synced: Vec<u8>,
    /// The writes that may survive, in their order.
    unsynced: Vec<Unsynced>,
}

type Names = BTreeMap<Name, usize>;

#[derive(Debug)]
struct Content {
    files: Vec<File>,
    /// The directory's states since it was last synced, the newest last: each may survive.
    names: Vec<Names>,
    /// The number of changes that still work; then all fail until `mend`.
    changes_left: i64,
    failed: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Disk(Arc<Mutex<Content>>);

impl Default for Disk {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Content {
            files: Vec::new(),
            names: vec![Names::new()],
            changes_left: i64::MAX,
            failed: false,
        })))
    }
}

impl Content {
    fn names(&self) -> &Names {
        self.names.last().unwrap()
    }

    fn change(&mut self) -> io::Result<()> {
        self.changes_left -= 1;
        if self.changes_left >= 0 {
            return Ok(());
        }
        self.failed = true;
        Err(io::ErrorKind::StorageFull.into())
    }

    fn file(&mut self, name: Name) -> &mut File {
        let index = match self.names().get(&name) {
            Some(index) => *index,
            None => {
                self.files.push(File::default());
                let index = self.files.len() - 1;
                let mut names = self.names().clone();
                names.insert(name, index);
                self.names.push(names);
                index
            }
        };
        &mut self.files[index]
    }
}

fn put(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    image.resize(image.len().max(offset + data.len()), 0);
    image[offset..offset + data.len()].copy_from_slice(data);
}

impl File {
    fn write(&mut self, offset: usize, data: &[u8]) {
        put(&mut self.cached, offset, data);
        // Split at the file system's sectors, not from the beginning of the data.
        let end = offset + data.len();
        let mut place = offset;
        while place < end {
            let next = ((place / SECTOR + 1) * SECTOR).min(end);
            let sector = self.cached[place..next].to_vec();
            self.unsynced.push(Unsynced::Sector(place, sector));
            place = next;
        }
    }

    fn cut(&mut self, length: usize) {
        self.cached.resize(length, 0);
        self.unsynced.push(Unsynced::Length(length));
    }

    fn after_power_failure(&self, random: &mut TestRng) -> Vec<u8> {
        let mut image = self.synced.clone();
        for change in &self.unsynced {
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
}

impl Disk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    pub(super) fn fail_after(&self, changes: i64) {
        let mut content = self.content();
        (content.failed, content.changes_left) = (false, changes);
    }

    /// Ends the failures; returns whether anything failed since `fail_after`.
    pub(super) fn mend(&self) -> bool {
        let mut content = self.content();
        content.changes_left = i64::MAX;
        content.failed
    }

    /// Returns one of the disks that a power failure at this moment can leave.
    pub(super) fn after_power_failure(&self, random: &mut TestRng) -> Self {
        let content = self.content();
        let which = random.next_u32() as usize % content.names.len();
        let names = content.names[which].clone();
        let files = content.files.iter().map(|file| {
            let image = file.after_power_failure(random);
            File {
                cached: image.clone(),
                synced: image,
                unsynced: Vec::new(),
            }
        });
        Self(Arc::new(Mutex::new(Content {
            files: files.collect(),
            names: vec![names],
            changes_left: i64::MAX,
            failed: false,
        })))
    }

    /// Whether a power failure now could lose anything.
    pub(super) fn is_unsynced(&self) -> bool {
        let content = self.content();
        let journal = content.names().get(&Name::Journal);
        content.names.len() > 1
            || journal.is_some_and(|index| !content.files[*index].unsynced.is_empty())
    }

    pub(super) fn open(&self, lab: &Lab) -> Pools {
        self.try_open(lab).unwrap()
    }

    pub(super) fn try_open(&self, lab: &Lab) -> Result<Pools, OpenError> {
        let (journal, contents) = self.journal()?;
        let path = Path::new("disk");
        Pools::start(journal, contents, &lab.options(), lab.clock(), path)
    }

    pub(super) fn journal(&self) -> Result<(Journal, store::Contents), OpenError> {
        Journal::open(Box::new(self.clone()), "disk".into())
    }
}

impl store::Disk for Disk {
    fn read(&mut self, name: Name) -> io::Result<Option<Vec<u8>>> {
        let content = self.content();
        let index = content.names().get(&name);
        Ok(index.map(|index| content.files[*index].cached.clone()))
    }

    fn write(&mut self, name: Name, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.content();
        if name == Name::Mark {
            // Its failure is only logged.
            content.file(name).write(offset as usize, data);
            return Ok(());
        }
        let result = content.change();
        // A short write: half of the data is written.
        let length = data.len() / if result.is_ok() { 1 } else { 2 };
        content.file(name).write(offset as usize, &data[..length]);
        result
    }

    fn cut(&mut self, name: Name, length: u64) -> io::Result<()> {
        let mut content = self.content();
        content.change()?;
        content.file(name).cut(length as usize);
        Ok(())
    }

    fn sync(&mut self, name: Name) -> io::Result<()> {
        let mut content = self.content();
        content.change()?;
        let file = content.file(name);
        file.synced = file.cached.clone();
        file.unsynced.clear();
        Ok(())
    }

    fn replace(&mut self) -> io::Result<()> {
        let mut content = self.content();
        content.change()?;
        let mut names = content.names().clone();
        let new = names.remove(&Name::New).unwrap();
        names.insert(Name::Journal, new);
        content.names.push(names);
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let mut content = self.content();
        content.change()?;
        content.names = content.names.pop().into_iter().collect();
        Ok(())
    }
}
