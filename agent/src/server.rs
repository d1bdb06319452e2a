//! The agent's Unix socket.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ebbtide_plugin::wire::{MAX_MESSAGE, Query, Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tracing::{debug, warn};

use crate::{agent::Agent, cni, query};

/// How long a client may take to say what it wants, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests served at once; the others wait. Each may need a thread and a few descriptors.
const AT_ONCE: usize = 256;

/// Answers of a trace that may wait for their reader.
const ANSWERS: usize = 64;

/// The listening socket; its file goes when this does.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Which file is ours: another one of the same name is another agent's.
    inode: u64,
}

impl Server {
    /// Listens on `path`, for the owner alone (0600). A socket file that a dead agent left is
    /// replaced. One with another state directory may be alive: then its socket answers.
    ///
    /// # Errors
    /// When the socket cannot be made, or somebody listens there.
    pub fn bind(path: &Path) -> io::Result<Self> {
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
        // Bound under another name until its mode is right: never open to others, not for a moment.
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

    /// Serves until `stop` completes, then lets the requests that are under way end.
    pub async fn serve(self, agent: Arc<Agent>, stop: impl Future<Output = ()>) {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let (stopping, told) = watch::channel(false);
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, most likely: others must end first.
                    warn!("accept a connection on {}: {e}", self.path.display());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let agent = Arc::clone(&agent);
            let told = told.clone();
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                break;
            };
            tokio::spawn(async move {
                if let Err(e) = converse(&agent, stream, told).await {
                    debug!("a client went away: {e}");
                }
                drop(place);
            });
        }
        let _nobody_listens = stopping.send(true);
        // Every place back means every request answered.
        let _all = room.acquire_many(AT_ONCE as u32).await;
    }
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
    agent: &Agent,
    mut stream: UnixStream,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let request = timeout(PATIENCE, receive(&mut stream)).await??;
    let response = match serde_json::from_slice::<Request>(&request) {
        Ok(Request::Cni(invocation)) => cni::handle(agent, &invocation).await,
        Ok(Request::Query(Query::Trace(wish))) => {
            let (sender, answers) = mpsc::channel(ANSWERS);
            let (passed_on, ()) = tokio::join!(
                pass_on(answers, &mut stream, stopping),
                query::trace(agent, &wish, sender)
            );
            return passed_on;
        }
        Ok(Request::Query(query)) => query::answer(agent, &query).await,
        Err(e) => Response {
            exit: 2,
            output: format!(
                "the agent does not understand this request (are plugin, ebbtidectl and agent of \
                 one release?): {e}"
            ),
        },
    };
    timeout(PATIENCE, send(&mut stream, &response)).await?
}

/// Sends answers until there are no more, the other side has gone, or we are stopping. Then the
/// channel's end is gone, which tells who makes them.
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
            // Whoever traces says nothing more: this is its end.
            _ = from.read(&mut nothing) => None,
            _ = stopping.wait_for(|stopping| *stopping) => None,
        };
        let Some(answer) = answer else {
            return Ok(());
        };
        timeout(PATIENCE, send(&mut to, &answer)).await??;
    }
}

async fn receive(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32_le().await?;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a request of {length} bytes is too long"),
        ));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
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
        // Somebody has put another one in its place.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists());
        drop(other);
    }
}
