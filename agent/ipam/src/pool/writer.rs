//! The writer thread, with group commit.
//!
//! While one fsync runs, requests gather; the next batch takes them all. The thread, not the
//! waiting future, updates the state in memory, so a caller that gave up changes nothing.
//!
//! Nothing here is lock-free: one mutex, never held while waiting, one channel and one thread. So
//! loom has nothing to explore that the model test and the concurrency tests do not.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use super::{
    Allocation, Reservation, StoreError,
    clock::{Clock, Moment},
    state::{Ending, State, Taken},
    store::{Change, Journal, encode},
};

/// Bounds a batch, so that the first request does not wait for a long one.
const BATCH: usize = 512;

/// The longest wait for expected requests.
const BATCH_WINDOW: Duration = Duration::from_millis(1);

pub(super) type Reply = Result<(), StoreError>;

pub(super) struct Job {
    pub(super) what: Operation,
    pub(super) reply: oneshot::Sender<Reply>,
}

pub(super) enum Operation {
    Add {
        allocation: Arc<Allocation>,
        taken: Vec<Taken>,
        reservation: Option<Ending>,
        /// The encoded line of the allocation.
        line: Vec<u8>,
    },
    Update {
        old: Arc<Allocation>,
        new: Arc<Allocation>,
        /// The encoded line of `new`.
        line: Vec<u8>,
    },
    Remove {
        allocation: Arc<Allocation>,
        then: AfterRelease,
    },
    Adopt {
        reservation: Arc<Reservation>,
        taken: Vec<Taken>,
    },
    EndReservation(Arc<Reservation>),
}

/// What happens to released addresses.
pub(super) enum AfterRelease {
    /// They cool down.
    CoolDown,
    /// They are free at once: they were never used.
    Free,
    /// They are reserved for their pod.
    Wait(Arc<Reservation>),
}

pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic elsewhere cannot have left the state half-changed: its methods have no early exits.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn spawn(
    journal: Journal,
    state: Arc<Mutex<State>>,
    clock: Clock,
    changes: watch::Sender<u64>,
    jobs: mpsc::Receiver<Job>,
) -> io::Result<JoinHandle<()>> {
    let mut writer = Writer {
        journal,
        state,
        clock,
        changes,
        lines: Vec::new(),
    };
    thread::Builder::new()
        .name("pool-writer".into())
        .spawn(move || {
            let mut crowd = Crowd::default();
            // Ends when the last sender is dropped and everything sent is written.
            while let Ok(first) = jobs.recv() {
                let batch = crowd.gather(first, &jobs);
                let start = Instant::now();
                writer.write(batch);
                crowd.last_write = start.elapsed();
            }
        })
}

/// Estimates the number of concurrent callers and the duration of one write.
///
/// Callers that just got an answer come back one after the other. Without waiting for them the first would have
/// an fsync of its own, and all others would wait for that. Measured side by side (three runs each, on a busy
/// machine): with 8 callers a median latency of 0.54 ms instead of 0.73; with 1 and with 64 no difference.
#[derive(Debug, Default)]
struct Crowd {
    size: usize,
    last_write: Duration,
}

impl Crowd {
    /// Collects all queued requests, and those expected within a part of the duration of the write.
    /// A lone caller never waits.
    fn gather<T>(&mut self, first: T, jobs: &mpsc::Receiver<T>) -> Vec<T> {
        let deadline = Instant::now() + (self.last_write / 2).min(BATCH_WINDOW);
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
                // Fewer callers than estimated: use their actual number from now on.
                Err(_) => break,
            }
        }
        self.size = batch.len();
        batch
    }
}

struct Writer {
    journal: Journal,
    state: Arc<Mutex<State>>,
    clock: Clock,
    /// Counts the changes that became durable.
    changes: watch::Sender<u64>,
    lines: Vec<u8>,
}

impl Writer {
    fn write(&mut self, batch: Vec<Job>) {
        let date = self.clock.unix_millis();
        let encoded = batch
            .iter()
            .try_for_each(|job| job.what.encode(&mut self.lines, date));
        let result = match encoded {
            Ok(()) => self.journal.append(&mut self.lines),
            Err(error) => {
                self.lines.clear();
                Err(self.journal.failed(error.into()))
            }
        };
        if let Err(error) = &result {
            tracing::error!(
                %error,
                requests = batch.len(),
                "allocations could not be written to the journal"
            );
        }
        let moment = self.clock.now();
        let mut state = lock(&self.state);
        for job in &batch {
            match &result {
                Ok(()) => job.what.done(&mut state, moment, date / 1000),
                Err(_) => job.what.undo(&mut state),
            }
        }
        if result.is_ok() {
            // Under the lock: a snapshot and its number belong together.
            self.changes
                .send_modify(|changes| *changes += batch.len() as u64);
        }
        drop(state);
        for job in batch {
            // The caller may have given up; what happened stays.
            let _ = job.reply.send(result.clone());
        }
        if self.journal.is_long() {
            let contents = lock(&self.state).durable(&self.clock);
            if let Err(error) = self.journal.rewrite(&contents) {
                tracing::warn!(%error, "the journal could not be compacted, and keeps growing");
            }
        }
    }
}

impl Operation {
    /// Appends its lines; `date` is in milliseconds since 1970.
    fn encode(&self, lines: &mut Vec<u8>, date: u64) -> serde_json::Result<()> {
        match self {
            Self::Add {
                reservation, line, ..
            } => {
                if let Some(Ending {
                    reservation,
                    is_met,
                }) = reservation
                {
                    let released = (!is_met).then_some(date);
                    encode(lines, Change::Unreserve(reservation, released))?;
                }
                lines.extend_from_slice(line);
                Ok(())
            }
            Self::Update { line, .. } => {
                lines.extend_from_slice(line);
                Ok(())
            }
            Self::Remove { allocation, then } => {
                let released = matches!(then, AfterRelease::CoolDown).then_some(date);
                encode(lines, Change::Remove(&allocation.owner, released))?;
                match then {
                    AfterRelease::Wait(reservation) => {
                        encode(lines, Change::Reservation(reservation))
                    }
                    AfterRelease::CoolDown | AfterRelease::Free => Ok(()),
                }
            }
            Self::Adopt { reservation, .. } => encode(lines, Change::Reservation(reservation)),
            Self::EndReservation(reservation) => {
                encode(lines, Change::Unreserve(reservation, Some(date)))
            }
        }
    }

    /// Updates the state after the change is on disk.
    fn done(&self, state: &mut State, moment: Moment, unix_seconds: u64) {
        match self {
            Self::Add {
                allocation,
                reservation,
                ..
            } => state.add(allocation, reservation.as_ref(), moment),
            Self::Update { new, .. } => state.hold(new),
            Self::Remove { allocation, then } => match then {
                AfterRelease::CoolDown => state.forget(allocation, Some(moment), unix_seconds),
                AfterRelease::Free => state.forget(allocation, None, unix_seconds),
                AfterRelease::Wait(reservation) => {
                    state.turn(allocation, reservation, unix_seconds)
                }
            },
            Self::Adopt { reservation, .. } => state.keep(reservation),
            Self::EndReservation(reservation) => state.end(reservation, moment),
        }
    }

    /// Undoes the change in memory: it is not on disk, or callers cannot rely on it.
    fn undo(&self, state: &mut State) {
        match self {
            Self::Add {
                allocation,
                taken,
                reservation,
                ..
            } => state.undo_reserve(&allocation.owner, taken, reservation.as_ref()),
            Self::Update {
                old: allocation, ..
            }
            | Self::Remove { allocation, .. } => state.hold(allocation),
            Self::Adopt { reservation, taken } => state.disown(reservation, taken),
            Self::EndReservation(reservation) => state.set_busy(reservation, false),
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
        assert!(
            start.elapsed() < BATCH_WINDOW * 500,
            "{:?}",
            start.elapsed()
        );
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
