//! A bounded thread pool for system calls that take effect at once and return late.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

type Job = Box<dyn FnOnce() + Send>;

/// How long an idle thread is kept.
const IDLE: Duration = Duration::from_secs(10);
/// The stack size in bytes: the jobs are single system calls.
const STACK: usize = 64 * 1024;

/// A pool of threads that are started on demand, kept for a while, and never more than a limit: beyond it jobs are
/// queued in order.
#[derive(Clone, Debug)]
pub(super) struct Workers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { threads, idle, .. } = self;
        write!(f, "{threads} threads, {idle} idle")
    }
}

impl Workers {
    pub(super) fn new(limit: usize) -> Self {
        let state = Mutex::default();
        let work = Condvar::new();
        Self(Arc::new(Shared { limit, state, work }))
    }

    /// Runs the job on a thread of the pool.
    ///
    /// # Errors
    /// If the pool has no thread and none can be started. Then the job is not run.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.0.state();
        if state.jobs.len() >= state.idle && state.threads < self.0.limit {
            let shared = Arc::clone(&self.0);
            let started = thread::Builder::new()
                .name("bpf-map".to_owned())
                .stack_size(STACK)
                .spawn(move || shared.work());
            match started {
                Ok(_) => state.threads += 1,
                Err(e) if state.threads == 0 => return Err(e),
                Err(_) => {}
            }
        }
        state.jobs.push_back(Box::new(job));
        drop(state);
        self.0.work.notify_one();
        Ok(())
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state();
                continue;
            }
            state.idle += 1;
            let (back, waited) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    /// Locks the state, also after a panic: jobs run without the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    #[test]
    fn everything_is_done_by_no_more_threads_than_the_limit() {
        const JOBS: usize = 200;
        for limit in [1, 4] {
            let workers = Workers::new(limit);
            let (done, results) = mpsc::channel();
            let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            for number in 0..JOBS {
                let (done, now, most) = (done.clone(), Arc::clone(&now), Arc::clone(&most));
                let job = move || {
                    let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(running, Ordering::SeqCst);
                    thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                    done.send(number).unwrap();
                };
                workers.run(job).unwrap();
            }
            let mut all: Vec<usize> = (0..JOBS).map(|_| results.recv().unwrap()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..JOBS).collect::<Vec<_>>(), "{limit} at most");
            assert!(most.load(Ordering::SeqCst) <= limit);
            assert!(workers.0.state().threads <= limit);
        }
    }

    #[test]
    fn work_that_takes_long_does_not_keep_other_work_waiting() {
        let workers = Workers::new(2);
        let (release, blocked) = mpsc::channel::<()>();
        let wait = move || {
            let _ = blocked.recv();
        };
        workers.run(wait).unwrap();
        let (done, result) = mpsc::channel();
        workers.run(move || done.send(()).unwrap()).unwrap();
        result.recv().unwrap();
        drop(release);
    }
}
