//! Watches a directory of manifests.
//!
//! inotify reports a change at once. A poll of names and times every two seconds detects what
//! inotify cannot: a replaced directory, a symlink's target, file systems without events.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::mpsc, sync::watch::Sender, time};

use super::{
    super::{Catalog, publish},
    load, manifest_files,
};

/// Editors and `kubectl`-like tools write a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_secs(2);

/// Keeps `sender` up to date with the manifests in `dir`, until no receiver is left.
///
/// Each change reloads everything; receivers are only woken if the result differs. Logs what
/// changed, and each problem once.
pub async fn watch(dir: PathBuf, sender: Sender<Arc<Catalog>>) {
    let (event_sender, mut events) = mpsc::channel(1);
    let mut inotify = Inotify::new(event_sender);
    let mut seen = None;
    let mut poll = time::interval(POLL);
    poll.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        let now = in_background({
            let dir = dir.clone();
            move || Fingerprint::of(&dir)
        })
        .await;
        if seen.as_ref() != Some(&now) {
            // Watch first, read after: a change in between is an event.
            inotify.follow(&dir, now.directory);
            let catalog = in_background({
                let dir = dir.clone();
                move || load(&dir)
            })
            .await;
            publish(&sender, catalog);
            seen = Some(now);
        }
        tokio::select! {
            () = sender.closed() => return,
            _ = poll.tick() => {}
            Some(()) = events.recv() => {
                time::sleep(DEBOUNCE).await;
                // One event stands for all that arrived during the delay.
                let _ = events.try_recv();
                // An event may leave names, sizes and times unchanged: read in any case.
                seen = None;
            }
        }
    }
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Device and inode: distinguishes a directory from its replacement.
type Identity = (u64, u64);

#[derive(PartialEq, Eq)]
struct Fingerprint {
    directory: Option<Identity>,
    files: Vec<(PathBuf, Option<FileStamp>)>,
}

#[derive(PartialEq, Eq)]
struct FileStamp {
    identity: Identity,
    size: u64,
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(dir: &Path) -> Self {
        let identity = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
        let stamp = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some(FileStamp {
                identity: identity(&metadata),
                size: metadata.len(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        };
        let files = manifest_files(dir).unwrap_or_default();
        Self {
            directory: std::fs::metadata(dir).ok().as_ref().map(identity),
            files: files
                .into_iter()
                .map(|path| (path.clone(), stamp(&path)))
                .collect(),
        }
    }
}

/// The inotify watch, bound to the directory that exists now.
struct Inotify {
    events: mpsc::Sender<()>,
    watcher: Option<RecommendedWatcher>,
    following: Option<Identity>,
}

impl Inotify {
    const fn new(events: mpsc::Sender<()>) -> Self {
        Self {
            events,
            watcher: None,
            following: None,
        }
    }

    fn follow(&mut self, dir: &Path, identity: Option<Identity>) {
        if self.following == identity && self.watcher.is_some() {
            return;
        }
        self.watcher = None;
        self.following = identity;
        if identity.is_none() {
            return;
        }
        let events = self.events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Reading the files also causes events; without this the reader would wake itself.
            let only_read = matches!(&event, Ok(Event { kind: EventKind::Access(kind), .. })
                if *kind != AccessKind::Close(AccessMode::Write));
            if !only_read {
                // A full channel means that a wake-up is pending already.
                let _ = events.try_send(());
            }
        })
        .and_then(|mut watcher| {
            watcher
                .watch(dir, RecursiveMode::NonRecursive)
                .map(|()| watcher)
        });
        match watcher {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::warn!(
                dir = %dir.display(), %error,
                "cannot watch the manifests by inotify, looking every {} s instead (is fs.inotify.max_user_instances used up?)",
                POLL.as_secs(),
            ),
        }
    }
}
