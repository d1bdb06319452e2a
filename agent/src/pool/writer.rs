//! The one thread that writes: group commit.
//!
//! While one fsync runs, requests gather; the next transaction takes them all. The thread, not the
//! waiting future, tells the memory what became durable, so a caller that gave up changes nothing.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Allocation, Owner, StoreError,
    clock::Clock,
    state::{State, Taken},
    store::{Change, Store},
};

/// Bounds a transaction, so that the first of a crowd does not wait for a long one.
const BATCH: usize = 512;

/// The longest wait for requests that are expected to come.
const PATIENCE: Duration = Duration::from_millis(1);

pub(super) type Reply = Result<Arc<Allocation>, StoreError>;

pub(super) struct Job {
    pub(super) what: What,
    pub(super) reply: oneshot::Sender<Reply>,
}

pub(super) enum What {
    Add {
        allocation: Arc<Allocation>,
        taken: Vec<Taken>,
        /// The allocation as it goes to disk.
        value: Arc<[u8]>,
    },
    Update {
        old: Arc<Allocation>,
        new: Arc<Allocation>,
        /// `new` as it goes to disk.
        value: Arc<[u8]>,
    },
    Remove {
        allocation: Arc<Allocation>,
        /// Whether its addresses rest.
        rest: bool,
    },
}

pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic elsewhere cannot have left the state half-changed: its methods have no early exits.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn spawn(
    store: Store,
    state: Arc<Mutex<State>>,
    clock: Clock,
    jobs: mpsc::Receiver<Job>,
) -> io::Result<JoinHandle<()>> {
    let mut writer = Writer {
        store,
        state,
        clock,
        amends: HashMap::new(),
    };
    thread::Builder::new()
        .name("pool-writer".into())
        .spawn(move || {
            let mut crowd = Crowd::default();
            // Ends when the last sender is gone and everything sent is written.
            while let Ok(first) = jobs.recv() {
                let batch = crowd.gather(first, &jobs);
                let start = Instant::now();
                writer.write(batch);
                crowd.last_write = start.elapsed();
            }
        })
}

/// How many seem to ask at the same time, and how long one write takes.
///
/// Those whose requests were just answered come back one after the other. Without waiting for them
/// the first would have a transaction and an fsync of its own, and all others would wait for that.
#[derive(Debug, Default)]
struct Crowd {
    size: usize,
    last_write: Duration,
}

impl Crowd {
    /// All requests that are there, and those that are to be expected in a part of the time that
    /// the write will take. Who asks alone never waits.
    fn gather<T>(&mut self, first: T, jobs: &mpsc::Receiver<T>) -> Vec<T> {
        let deadline = Instant::now() + (self.last_write / 2).min(PATIENCE);
        let mut batch = vec![first];
        while batch.len() < BATCH {
            if let Ok(job) = jobs.try_recv() {
                batch.push(job);
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if batch.len() >= self.size || left.is_zero() {
                break;
            }
            match jobs.recv_timeout(left) {
                Ok(job) => batch.push(job),
                // Fewer than thought: from now on as many as there are.
                Err(_) => break,
            }
        }
        self.size = batch.len();
        batch
    }
}

struct Writer {
    store: Store,
    state: Arc<Mutex<State>>,
    clock: Clock,
    /// Undoes what a failed transaction may have left on disk all the same; part of each later one until
    /// one succeeds. So no address can be written for a new owner while the disk may still name
    /// the one who was told that it failed.
    amends: HashMap<Owner, Change>,
}

impl Writer {
    fn write(&mut self, batch: Vec<Job>) {
        let now = self.clock.unix_millis();
        let changes: Vec<Change> = batch.iter().map(|job| job.what.change(now)).collect();
        let all: Vec<&Change> = self.amends.values().chain(&changes).collect();
        match self.store.apply(&all) {
            Ok(()) => {
                self.amends.clear();
                let moment = self.clock.now();
                let mut state = lock(&self.state);
                for job in &batch {
                    match &job.what {
                        What::Add { allocation, .. }
                        | What::Update {
                            new: allocation, ..
                        } => state.hold(allocation),
                        What::Remove { allocation, rest } => {
                            state.forget(allocation, rest.then_some(moment), now / 1000);
                        }
                    }
                }
                drop(state);
                for job in batch {
                    // Nobody may be waiting any more; what happened stays.
                    let _ = job.reply.send(Ok(job.what.into_allocation()));
                }
            }
            Err(error) => {
                tracing::error!(%error, requests = batch.len(), "addresses could not be written down");
                self.amends.extend(
                    batch
                        .iter()
                        .map(|job| (job.what.owner().clone(), job.what.undo())),
                );
                let mut state = lock(&self.state);
                for job in &batch {
                    match &job.what {
                        What::Add {
                            allocation, taken, ..
                        } => state.abandon(&allocation.owner, taken),
                        What::Update {
                            old: allocation, ..
                        }
                        | What::Remove { allocation, .. } => state.hold(allocation),
                    }
                }
                drop(state);
                for job in batch {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }
}

impl What {
    fn change(&self, unix_millis: u64) -> Change {
        match self {
            Self::Add {
                allocation, value, ..
            }
            | Self::Update {
                new: allocation,
                value,
                ..
            } => Change::Put(Arc::clone(allocation), Some(Arc::clone(value))),
            Self::Remove { allocation, rest } => Change::Remove {
                allocation: Arc::clone(allocation),
                released_at: rest.then_some(unix_millis),
            },
        }
    }

    fn undo(&self) -> Change {
        match self {
            Self::Add { allocation, .. } => Change::Remove {
                allocation: Arc::clone(allocation),
                released_at: None,
            },
            Self::Update {
                old: allocation, ..
            }
            | Self::Remove { allocation, .. } => Change::Put(Arc::clone(allocation), None),
        }
    }

    fn owner(&self) -> &Owner {
        match self {
            Self::Add { allocation, .. }
            | Self::Update {
                new: allocation, ..
            }
            | Self::Remove { allocation, .. } => &allocation.owner,
        }
    }

    fn into_allocation(self) -> Arc<Allocation> {
        match self {
            Self::Add { allocation, .. }
            | Self::Update {
                new: allocation, ..
            }
            | Self::Remove { allocation, .. } => allocation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_alone_never_waits_and_a_crowd_is_waited_for_once() {
        let (sender, jobs) = mpsc::channel();
        let mut crowd = Crowd {
            size: 1,
            last_write: Duration::from_secs(3600),
        };
        let start = Instant::now();
        for _ in 0..1000 {
            assert_eq!(crowd.gather(0, &jobs), [0]);
        }
        assert!(start.elapsed() < PATIENCE * 500, "{:?}", start.elapsed());
        (1..=5).for_each(|job| sender.send(job).unwrap());
        assert_eq!(
            crowd.gather(0, &jobs),
            [0, 1, 2, 3, 4, 5],
            "all that are there"
        );
        sender.send(1).unwrap();
        assert_eq!(crowd.gather(0, &jobs), [0, 1], "waited for, and not come");
        assert_eq!(crowd.size, 2);
        (0..2000).for_each(|job| sender.send(job).unwrap());
        assert_eq!(crowd.gather(0, &jobs).len(), BATCH);
    }
}
