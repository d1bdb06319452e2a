//! Limits on requests that are served or waiting at once. Silent connections take no slot, queries have slots apart
//! from commands that change something, and the memory for requests and answers is bounded.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ebbtide_plugin::wire::{MAX_REQUEST, Query, Request};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};

/// Commands that are served at once. Each may need a thread and a few descriptors.
const COMMANDS: usize = 256;

/// Queries that are served at once: from memory, and quickly.
const QUERIES: usize = 16;

/// Requests of either kind longer than [`USUAL`] that are served at once.
const LONG: usize = 32;

/// The longest request that is served without the limits for long ones; usual ones are shorter. JSON may take up to
/// eighty times its length in memory.
const USUAL: usize = 8 << 10;

/// KiB of long requests that are served at once.
const LONG_KIB: u32 = 2048;

/// Requests of each kind that may be served or waiting. A node has a few hundred pods.
const MAX_CONNECTIONS: usize = 1024;

/// Messages up to this length are read or written at any time: there are at most [`MAX_CONNECTIONS`] of each kind.
pub(super) const SMALL: usize = 64 << 10;

/// The number of larger messages that are in memory at once.
const LARGE: usize = 16;

/// Connections that have not sent their whole request, and may stay so.
const SILENT: usize = 256;

/// Of more than [`SILENT`], the oldest are closed, except those that are younger than this: they may be about to send.
const YOUNG: Duration = Duration::from_secs(1);

/// The most silent connections, however young.
const MOST_SILENT: usize = 1024;

/// The limits and their current use.
#[derive(Debug)]
pub(super) struct Limits {
    commands: Kind,
    queries: Kind,
    long: Kind,
    long_kib: Semaphore,
    large_requests: Arc<Semaphore>,
    large_answers: Arc<Semaphore>,
    silent: Mutex<VecDeque<Silent>>,
}

#[derive(Debug)]
struct Kind {
    places: Semaphore,
    here: Semaphore,
}

impl Kind {
    fn new(places: usize) -> Self {
        Self {
            places: Semaphore::new(places),
            here: Semaphore::new(MAX_CONNECTIONS),
        }
    }
}

/// A connection that has not sent its whole request. Dropping this closes it.
#[derive(Debug)]
struct Silent {
    since: Instant,
    end: oneshot::Sender<()>,
}

/// A request as it was read.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    /// Held for as long as the parsed request exists.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl Limits {
    pub(super) fn new() -> Self {
        Self {
            commands: Kind::new(COMMANDS),
            queries: Kind::new(QUERIES),
            long: Kind::new(LONG),
            long_kib: Semaphore::new(LONG_KIB as usize),
            large_requests: Arc::new(Semaphore::new(LARGE)),
            large_answers: Arc::new(Semaphore::new(LARGE)),
            silent: Mutex::default(),
        }
    }

    /// Registers a new connection. The result completes when it was silent for too long, with so many others.
    pub(super) fn register(&self, now: Instant) -> oneshot::Receiver<()> {
        let (end, ended) = oneshot::channel();
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.push_back(Silent { since: now, end });
        if silent.len() > SILENT {
            // A connection that has sent its request has dropped its receiver.
            silent.retain(|one| !one.end.is_closed());
        }
        while silent.len() > SILENT
            && silent.front().is_some_and(|oldest| {
                silent.len() > MOST_SILENT || now.duration_since(oldest.since) >= YOUNG
            })
        {
            silent.pop_front();
        }
        ended
    }

    /// Closes all silent connections.
    pub(super) fn close_silent(&self) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.clear();
    }

    /// Reads one request. Memory for it is allocated as it arrives.
    ///
    /// # Errors
    /// If it is too long, or is not sent completely.
    pub(super) async fn receive(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Received> {
        let length = stream.read_u32_le().await?;
        if length > MAX_REQUEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a request of {length} bytes is too long"),
            ));
        }
        let length = length as usize;
        let mut bytes = Vec::new();
        let first = length.min(SMALL);
        (&mut *stream)
            .take(first as u64)
            .read_to_end(&mut bytes)
            .await?;
        let mut permit = None;
        if length > first && bytes.len() == first {
            permit = Some(one(&self.large_requests).await?);
            let rest = (length - first) as u64;
            stream.take(rest).read_to_end(&mut bytes).await?;
        }
        if bytes.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Received { bytes, permit })
    }

    /// Waits until `length` bytes may be kept for a client that reads slowly; short answers need no permit.
    ///
    /// # Errors
    /// If the agent ends.
    pub(super) async fn for_answer(
        &self,
        length: usize,
    ) -> io::Result<Option<OwnedSemaphorePermit>> {
        match length > SMALL {
            true => one(&self.large_answers).await.map(Some),
            false => Ok(None),
        }
    }

    /// Does the work for a request when there is a slot for it; returns `None` if too many wait already.
    pub(super) async fn serve<T>(
        &self,
        request: &Request,
        length: usize,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let is_long = length > USUAL;
        let kind = match (is_long, is_read_only(request)) {
            (true, _) => &self.long,
            (false, true) => &self.queries,
            (false, false) => &self.commands,
        };
        let _here = kind.here.try_acquire().ok()?;
        let _kib = match is_long {
            true => {
                let kib = u32::try_from(length.div_ceil(1 << 10)).unwrap_or(LONG_KIB);
                Some(self.long_kib.acquire_many(kib.min(LONG_KIB)).await.ok()?)
            }
            false => None,
        };
        let _place = kind.places.acquire().await.ok()?;
        Some(work.await)
    }
}

async fn one(semaphore: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.map_err(io::Error::other)
}

/// Whether a request only reads from memory. It is answered without waiting for commands that change something.
fn is_read_only(request: &Request) -> bool {
    match request {
        Request::Query(Query::Release { .. }) => false,
        Request::Query(_) => true,
        Request::Cni(invocation) => invocation.command == "STATUS",
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_plugin::wire::Invocation;
    use tokio::time::timeout;

    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_le_bytes().to_vec();
        frame.resize(4 + length, b'x');
        frame
    }

    fn command() -> Request {
        Request::Cni(Invocation::default())
    }

    #[tokio::test]
    async fn a_request_is_read_whole_or_not_at_all() {
        let limits = Limits::new();
        for length in [0, 1, SMALL, SMALL + 1, 1 << 20] {
            let whole = frame(length);
            let received = limits.receive(&mut whole.as_slice()).await.unwrap();
            assert_eq!(received.bytes.len(), length);
            let cut = &whole[..whole.len() - 1];
            let refused = limits.receive(&mut &*cut).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
        let refused = limits.receive(&mut frame((1 << 20) + 1).as_slice()).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData);
        // The header announces a long request; only what arrives is kept.
        let (mut near, mut far) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut far, &frame(1 << 20)[..40])
            .await
            .unwrap();
        let reading = timeout(Duration::from_millis(20), limits.receive(&mut near)).await;
        assert!(reading.is_err());
        assert_eq!(limits.large_requests.available_permits(), LARGE);
    }

    #[tokio::test]
    async fn the_oldest_of_many_silent_ones_ends_and_no_young_one_does() {
        let limits = Limits::new();
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut first: Vec<_> = (0..SILENT).map(|_| limits.register(at(0))).collect();
        // One of them has sent its request.
        drop(first.remove(0));
        let mut second = limits.register(at(2000));
        assert!(
            first
                .iter_mut()
                .all(|one| one.try_recv() == Err(oneshot::error::TryRecvError::Empty))
        );
        let mut third = limits.register(at(2001));
        assert_eq!(
            first[0].try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
        for young in [&mut second, &mut third, &mut first[1]] {
            assert_eq!(young.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        }
        let flood: Vec<_> = (0..2 * MOST_SILENT)
            .map(|_| limits.register(at(2002)))
            .collect();
        assert_eq!(limits.silent.lock().unwrap().len(), MOST_SILENT);
        drop(flood);
        limits.close_silent();
        assert_eq!(third.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[tokio::test]
    async fn queries_are_served_while_commands_take_all_places_and_what_is_too_many_is_told_so() {
        let limits = Arc::new(Limits::new());
        let forever = || std::future::pending::<()>();
        let mut stuck = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let limits = Arc::clone(&limits);
            let serving = async move { limits.serve(&command(), 1000, forever()).await };
            stuck.push(tokio::spawn(serving));
        }
        while limits.commands.here.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(limits.serve(&command(), 1000, async {}).await, None);
        for length in [USUAL + 1, 1 << 20] {
            assert_eq!(limits.serve(&command(), length, async {}).await, Some(()));
        }
        for request in [
            Request::Query(Query::Status),
            Request::Cni(Invocation {
                command: "STATUS".into(),
                ..Invocation::default()
            }),
        ] {
            let answer = limits.serve(&request, 1000, async { 7 });
            let answer = timeout(Duration::from_secs(10), answer).await;
            assert_eq!(answer.unwrap(), Some(7), "{request:?}");
        }
        for one in stuck {
            one.abort();
        }
    }

    #[tokio::test]
    async fn few_of_the_longest_requests_are_served_at_once_and_keep_no_usual_one_waiting() {
        let limits = Arc::new(Limits::new());
        let (mut most, running) = (0, Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (limits, running) = (Arc::clone(&limits), Arc::clone(&running));
            all.spawn(async move {
                let work = async {
                    let now = running.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                    tokio::task::yield_now().await;
                    running.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    now
                };
                limits.serve(&command(), 1 << 20, work).await.unwrap()
            });
        }
        let stuck = Arc::new(Limits::new());
        for _ in 0..LONG {
            let stuck = Arc::clone(&stuck);
            tokio::spawn(async move {
                let forever = std::future::pending::<()>();
                stuck.serve(&command(), 1 << 20, forever).await
            });
        }
        tokio::task::yield_now().await;
        let request = command();
        let usual = stuck.serve(&request, USUAL, async { 7 });
        let usual = timeout(Duration::from_secs(10), usual).await;
        assert_eq!(usual.unwrap(), Some(7));
        while let Some(now) = all.join_next().await {
            most = most.max(now.unwrap());
        }
        assert_eq!(most, 2);
    }
}
