//! Threads that stay in a namespace and open sockets there.
//! In user-mode Linux, starting a thread in a namespace takes longer than everything that a socket does afterwards.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, mpsc},
};

use anyhow::{Context as _, Result};
use ebbtide_vpc::netns::Netns;
use socket2::Socket;

type Job = Box<dyn FnOnce() + Send>;

/// The threads, by the name of their namespace. They end when this is dropped.
#[derive(Debug, Default)]
pub struct Doors(Mutex<BTreeMap<String, mpsc::Sender<Job>>>);

impl Doors {
    /// Opens a socket by `open` in a namespace, which is identified by its name.
    ///
    /// # Errors
    /// If `open` fails, or the namespace cannot be entered.
    pub fn open(
        &self,
        netns: &Netns,
        open: impl FnOnce() -> Result<Socket> + Send + 'static,
    ) -> Result<Socket> {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move || {
            // The caller waits for it.
            let _ = answer.send(open());
        });
        let gone = || format!("the thread in {} is gone", netns.name());
        self.thread(netns).send(job).ok().with_context(gone)?;
        answered.recv().with_context(gone)?
    }

    fn thread(&self, netns: &Netns) -> mpsc::Sender<Job> {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = threads.entry(netns.name().to_owned()).or_insert_with(|| {
            let (jobs, todo) = mpsc::channel::<Job>();
            let _ends_with_the_channel = netns.spawn(move || {
                todo.into_iter().for_each(|job| job());
                Ok(())
            });
            jobs
        });
        thread.clone()
    }
}
