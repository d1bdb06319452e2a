//! The agent's Unix socket, and the requests on it.

mod limits;

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ebbtide_plugin::{
    cni::{NEWEST, code},
    wire::{Query, Request, Response},
};
use limits::{Limits, Received, SMALL};
use nix::unistd::geteuid;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{debug, error, warn};

use crate::{
    agent::Agent,
    cni::{self, Failure},
    query,
};

/// How long a client may take to send its request, and to read the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The interval at which it is checked whether the socket's file is still there.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The number of a trace's answers that may wait for their reader.
const ANSWERS: usize = 64;

/// The listening socket, whose file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// The inode of its file: another file of the same name belongs to another agent.
    inode: u64,
}

impl Server {
    /// Listens on `path`, for the owner alone (0600). Replaces the socket file of an agent that has ended. An agent
    /// with another state directory may be alive: then its socket answers.
    ///
    /// # Errors
    /// If the socket cannot be made, another agent listens there, or other users could replace the socket.
    pub fn bind(path: &Path) -> io::Result<Self> {
        refuse_open_directory(path)?;
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent listens there: end it, or give this one a directory of its own (--run-dir)",
            ));
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Bound under another name until its mode is set, so that it is never open to other users.
        let draft = path.with_extension("draft");
        match fs::remove_file(&draft) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&draft)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&draft)?.ino();
        fs::rename(&draft, path)?;
        Ok(Self {
            listener,
            inode,
            path: path.to_owned(),
        })
    }

    /// Serves until `stop` completes, then lets requests in flight end.
    pub async fn serve(mut self, agent: Arc<Agent>, stop: impl Future<Output = ()>) {
        let limits = Arc::new(Limits::new());
        let (stopping, told) = watch::channel(false);
        // Held by every connection, so that its closing shows that all have ended.
        let (talking, mut ended) = mpsc::channel::<()>(1);
        tokio::pin!(stop);
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = self.listener.accept() => accepted,
                _ = looks.tick() => {
                    agent.metrics.set_ready(self.can_be_reached(agent.metrics.is_ready()));
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Most likely out of descriptors: other connections must end first.
                    warn!("accept a connection on {}: {e}", self.path.display());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if !may_ask(&stream) {
                warn!(
                    "a request at {} is refused: the client is not root",
                    self.path.display()
                );
                continue;
            }
            let silence = limits.register(Instant::now());
            let (agent, limits, told) = (Arc::clone(&agent), Arc::clone(&limits), told.clone());
            let talking = talking.clone();
            tokio::spawn(async move {
                if let Err(e) = converse(&agent, &limits, stream, silence, told).await {
                    debug!("a client went away: {e}");
                }
                drop(talking);
            });
        }
        let _nobody_listens = stopping.send(true);
        limits.close_silent();
        drop(talking);
        let _all_ended = ended.recv().await;
    }

    /// Whether clients find the socket. If something has removed its file, as a cleaner of temporary files may, listens
    /// there anew.
    fn can_be_reached(&mut self, could: bool) -> bool {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            return true;
        }
        let path = self.path.clone();
        match Self::bind(&path) {
            Ok(anew) => {
                *self = anew;
                warn!(
                    "something has removed the socket {}: it is there again",
                    path.display()
                );
                true
            }
            Err(e) => {
                if could {
                    let path = path.display();
                    error!(
                        "something has removed the socket {path}, and it cannot be made again: {e}; no pod can be added"
                    );
                }
                false
            }
        }
    }
}

/// Refuses a directory that other users may write to: they could replace the socket, and answer for the agent.
fn refuse_open_directory(socket: &Path) -> io::Result<()> {
    const STICKY: u32 = 0o1000;
    let directory = match socket.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let found = fs::metadata(directory)?;
    let mode = found.mode();
    let is_trusted = found.uid() == 0 || found.uid() == geteuid().as_raw();
    let others_write = mode & 0o002 != 0 || mode & 0o020 != 0 && found.gid() != 0;
    if is_trusted && (!others_write || mode & STICKY != 0) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "others may write into {dir} (user {}, mode {:o}) and could answer in the agent's place: `chown root {dir}; \
             chmod go-w {dir}`, or give the agent a directory of its own (--run-dir)",
            found.uid(),
            mode & 0o7777,
            dir = directory.display()
        ),
    ))
}

/// Whether a client may send requests. The socket's mode enforces the same, as long as nobody changes it.
fn may_ask(stream: &UnixStream) -> bool {
    let asks = stream.peer_cred().map(|peer| peer.uid());
    asks.is_ok_and(|user| user == 0 || user == geteuid().as_raw())
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() != self.inode) {
            return;
        }
        if let Err(e) = fs::remove_file(&self.path) {
            debug!("remove {}: {e}", self.path.display());
        }
    }
}

async fn converse(
    agent: &Arc<Agent>,
    limits: &Limits,
    mut stream: UnixStream,
    silence: oneshot::Receiver<()>,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let Received {
        bytes,
        permit: kept,
    } = tokio::select! {
        received = timeout(TIMEOUT, limits.receive(&mut stream)) => received??,
        _ = silence => return Err(io::Error::other("closed: silent, among too many connections")),
    };
    let length = bytes.len();
    let is_long = length > SMALL;
    let read = aside(is_long, async move { serde_json::from_slice(&bytes) }).await;
    let response = match read {
        Ok(request @ Request::Query(Query::Trace(_))) => {
            let tracing = trace(agent, &request, &mut stream, stopping);
            return limits
                .serve(&request, length, tracing)
                .await
                .unwrap_or(Ok(()));
        }
        Ok(request) => {
            let request = Arc::new(request);
            let answer = answer(Arc::clone(agent), Arc::clone(&request));
            let served = limits.serve(&request, length, aside(is_long, answer)).await;
            served.unwrap_or_else(|| {
                if let Request::Cni(invocation) = &*request {
                    let events = &agent.metrics.events;
                    events.command(&invocation.command, code::TRY_AGAIN_LATER, &[]);
                }
                too_many(&request)
            })
        }
        Err(e) => Response {
            exit: 2,
            output: format!(
                "the agent does not understand this request (are plugin, ebbtidectl and agent of \
                 one release?): {e}"
            ),
        },
    };
    drop(kept);
    timeout(TIMEOUT, async {
        let _permit = limits.for_answer(response.output.len()).await?;
        send(&mut stream, &response).await
    })
    .await?
}

/// Runs work that takes long on a thread of its own, so that short requests need not wait for it.
async fn aside<T: Send + 'static>(
    takes_long: bool,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    if !takes_long {
        return work.await;
    }
    let runtime = Handle::current();
    let done = spawn_blocking(move || runtime.block_on(work)).await;
    done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

async fn answer(agent: Arc<Agent>, request: Arc<Request>) -> Response {
    match &*request {
        Request::Cni(invocation) => cni::handle(&agent, invocation).await,
        Request::Query(query) => query::answer(&agent, query).await,
    }
}

async fn trace(
    agent: &Agent,
    request: &Request,
    stream: &mut UnixStream,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let Request::Query(Query::Trace(request)) = request else {
        return Ok(());
    };
    let (sender, answers) = mpsc::channel(ANSWERS);
    let (passed_on, ()) = tokio::join!(
        pass_on(answers, stream, stopping),
        query::trace(agent, request, sender)
    );
    passed_on
}

/// Returns the immediate answer to a request when too many wait.
fn too_many(request: &Request) -> Response {
    let what = "too many requests wait already: this one was not started";
    match request {
        Request::Cni(_) => Response {
            exit: 1,
            output: Failure::new(code::TRY_AGAIN_LATER, what, "the runtime will try again")
                .to_json(NEWEST),
        },
        Request::Query(_) => Response {
            exit: 1,
            output: format!("{what}: ask again in a moment"),
        },
    }
}

/// Sends answers until there are no more, the client has left, or the agent is stopping. Then the channel is closed,
/// which ends the sender's work.
async fn pass_on(
    mut answers: mpsc::Receiver<Response>,
    stream: &mut UnixStream,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    let mut nothing = [0];
    loop {
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            // A tracing client sends nothing more, so this is its end.
            _ = from.read(&mut nothing) => None,
            _ = stopping.wait_for(|stopping| *stopping) => None,
        };
        let Some(answer) = answer else {
            return Ok(());
        };
        timeout(TIMEOUT, send(&mut to, &answer)).await??;
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), response: &Response) -> io::Result<()> {
    let bytes = serde_json::to_vec(response)?;
    let mut frame = (bytes.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&bytes);
    stream.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_living_agent_s_socket_is_neither_taken_nor_removed_and_a_dead_one_s_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cni.sock");
        let first = Server::bind(&path).unwrap();
        let refused = Server::bind(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(refused.to_string().contains("--run-dir"), "{refused}");
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        // As a killed agent leaves it.
        let kept = directory.path().join("kept");
        fs::hard_link(&path, &kept).unwrap();
        drop(first);
        assert!(!path.exists());
        fs::rename(&kept, &path).unwrap();
        let second = Server::bind(&path).unwrap();
        // Another one was put in its place.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists());
        drop(other);
    }
}
