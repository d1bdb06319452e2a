//! A metadata service of tests: a real TCP server on the loopback, which answers what a test says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::Endpoint;

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    /// By name in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

/// What the server does.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Answers with a body.
    Text(u16, String),
    /// Answers with headers, each with its line end, and a body.
    With(u16, String, String),
    /// Writes this and closes.
    Raw(Vec<u8>),
    /// Takes the request and says nothing.
    Hang,
}

impl Reply {
    pub(crate) fn ok(body: &str) -> Self {
        Self::Text(200, body.to_owned())
    }
}

/// A running server; it ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts a server that answers each request by `answer`, one after another.
    pub(crate) async fn start(answer: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(serve(listener, answer, Arc::clone(&seen)));
        let endpoint = format!("http://127.0.0.1:{port}").parse().unwrap();
        Self {
            endpoint,
            seen,
            task,
        }
    }

    /// Returns the requests until now.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns how often a path was asked.
    pub(crate) fn count(&self, path: &str) -> usize {
        let seen = self.seen();
        seen.iter().filter(|seen| seen.path == path).count()
    }
}

async fn serve(
    listener: TcpListener,
    mut answer: impl FnMut(&Seen) -> Reply,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    let mut hanging = Vec::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let Some(seen) = request(&mut stream).await else {
            continue;
        };
        log.lock().unwrap().push(seen.clone());
        let (status, headers, body) = match answer(&seen) {
            Reply::Text(status, body) => (status, String::new(), body),
            Reply::With(status, headers, body) => (status, headers, body),
            Reply::Raw(bytes) => {
                let _ = stream.write_all(&bytes).await;
                continue;
            }
            Reply::Hang => {
                hanging.push(stream);
                continue;
            }
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }
}

async fn request(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let headers = lines.filter_map(|line| line.split_once(": "));
    Some(Seen {
        method: first.next()?.to_owned(),
        path: first.next()?.to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
    })
}
