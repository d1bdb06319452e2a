//! What a command-line tool in a pod asks of the API server: objects of any kind as JSON, and programs in other pods.

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{
    Api, Client,
    api::{AttachParams, AttachedProcess},
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::client;

/// How much a program may print before it is read, in bytes.
const BUFFER: usize = 256 << 10;

/// How much of what a program says on its standard error is kept, in bytes.
const SAID: u64 = 64 << 10;

/// Why something was not had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no client.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The API server refuses, or does not answer.
    #[error("{method} {path}: {source}")]
    Request {
        /// The method.
        method: http::Method,
        /// The path.
        path: String,
        /// The reason.
        source: Box<kube::Error>,
    },
    /// The request cannot be written.
    #[error("{path} is no path of the API server: {source}")]
    Path {
        /// The path.
        path: String,
        /// The reason.
        source: http::Error,
    },
    /// No program was started in the container.
    #[error("run {program} in {pod}: {source}")]
    Exec {
        /// The program.
        program: String,
        /// The pod.
        pod: String,
        /// The reason.
        source: Box<kube::Error>,
    },
    /// The program was started, and its input or output was lost.
    #[error("the connection to {0} was lost: {1}")]
    Lost(String, #[source] std::io::Error),
    /// The program has no input or output, or ended without telling how.
    #[error("the connection to {0} was lost")]
    Closed(String),
    /// The program printed more than it may.
    #[error("{0} prints more than {1} bytes")]
    TooMuch(String, u64),
    /// The program failed.
    #[error("{program}: {said}")]
    Failed {
        /// The program.
        program: String,
        /// What it said, or what is said of its end.
        said: String,
    },
}

/// The API server, as a pod's account may ask it.
#[derive(Clone)]
pub struct Remote(Client);

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remote")
    }
}

/// A container of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// The container's name.
    pub container: &'a str,
}

impl Remote {
    /// Prepares the connection with what the kubelet gives a pod. Does not connect yet.
    ///
    /// # Errors
    /// If this process is in no pod.
    pub async fn in_pod() -> Result<Self, Error> {
        Ok(Self(client::connect(None).await?))
    }

    /// Sends a request, with `body` as JSON if there is one, and returns the object that is answered.
    ///
    /// # Errors
    /// If the API server refuses or does not answer.
    pub async fn request(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = http::Request::builder()
            .method(method.clone())
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(text.into_bytes())
            .map_err(|source| Error::Path {
                path: path.to_owned(),
                source,
            })?;
        let answered = self.0.request(request).await;
        answered.map_err(|source| Error::Request {
            method,
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Starts a program in a container, with its standard input and both outputs.
    ///
    /// # Errors
    /// If it is not started.
    pub async fn exec(&self, container: Container<'_>, words: &[&str]) -> Result<Execution, Error> {
        let program = words.first().copied().unwrap_or_default().to_owned();
        let pods: Api<Pod> = Api::namespaced(self.0.clone(), container.namespace);
        let parameters = AttachParams::default()
            .container(container.container)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .max_stdout_buf_size(BUFFER);
        let words = words.iter().copied();
        match pods.exec(container.pod, words, &parameters).await {
            Ok(process) => Ok(Execution { program, process }),
            Err(source) => Err(Error::Exec {
                program,
                pod: container.pod.to_owned(),
                source: Box::new(source),
            }),
        }
    }
}

/// Whether an error says that there is no such object.
#[must_use]
pub fn is_not_found(error: &Error) -> bool {
    let Error::Request { source, .. } = error else {
        return false;
    };
    matches!(&**source, kube::Error::Api(status) if status.code == 404)
}

/// A program that runs in a container.
pub struct Execution {
    program: String,
    process: AttachedProcess,
}

impl std::fmt::Debug for Execution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Execution").field(&self.program).finish()
    }
}

impl Execution {
    /// Gives the program `input`, and returns what it prints until it ends, which may be `most` bytes.
    ///
    /// The program must know by itself where its input ends: before Kubernetes 1.30 nobody tells it.
    ///
    /// # Errors
    /// If it fails, prints more, or the connection is lost.
    pub async fn output(mut self, input: &[u8], most: u64) -> Result<Vec<u8>, Error> {
        let closed = || Error::Closed(self.program.clone());
        let stdin = self.process.stdin();
        let stdout = self.process.stdout().ok_or_else(closed)?;
        let stderr = self.process.stderr().ok_or_else(closed)?;
        let status = self.process.take_status().ok_or_else(closed)?;
        let give = async {
            let mut stdin = stdin?;
            // A program that does not read to the end may answer all the same.
            let _unread = stdin.write_all(input).await;
            let _unread = stdin.flush().await;
            // Closed by the caller, who holds it until the program has ended.
            Some(stdin)
        };
        let (_stdin, printed, said, status) = tokio::join!(
            give,
            read_to_end(stdout, most),
            read_to_end(stderr, SAID),
            status
        );
        let lost = |source| Error::Lost(self.program.clone(), source);
        let (printed, is_whole) = printed.map_err(lost)?;
        if !is_whole {
            return Err(Error::TooMuch(self.program, most));
        }
        let (said, _) = said.map_err(lost)?;
        let status = status.ok_or_else(|| Error::Closed(self.program.clone()))?;
        if is_success(&status) {
            return Ok(printed);
        }
        let said = String::from_utf8_lossy(&said);
        let last = said
            .trim()
            .lines()
            .next_back()
            .filter(|line| !line.is_empty());
        Err(Error::Failed {
            program: self.program,
            said: match (last, status.message) {
                (Some(last), _) => last.to_owned(),
                (None, Some(message)) => message,
                (None, None) => "it failed, and says nothing".to_owned(),
            },
        })
    }

    /// Returns the first line that the program prints, and goes on.
    ///
    /// # Errors
    /// If it ends before, or prints a line of more than `most` bytes.
    pub async fn first_line(&mut self, most: usize) -> Result<String, Error> {
        let Some(mut stdout) = self.process.stdout() else {
            return Err(Error::Closed(self.program.clone()));
        };
        let mut line = Vec::new();
        while line.len() < most {
            match stdout.read_u8().await {
                Ok(b'\n') => return Ok(String::from_utf8_lossy(&line).into_owned()),
                Ok(byte) => line.push(byte),
                Err(source) => return Err(Error::Lost(self.program.clone(), source)),
            }
        }
        Err(Error::TooMuch(self.program.clone(), most as u64))
    }

    /// Ends the program's input by ending the connection.
    pub fn end(self) {
        self.process.abort();
    }
}

/// Reads at most `most` bytes. Returns whether that was all.
///
/// What comes later is read and thrown away: a program whose output nobody reads does not end.
async fn read_to_end(
    mut from: impl AsyncRead + Unpin,
    most: u64,
) -> std::io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    (&mut from).take(most).read_to_end(&mut bytes).await?;
    let more = tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok((bytes, more == 0))
}

fn is_success(status: &Status) -> bool {
    status.status.as_deref() == Some("Success")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_read_has_a_limit_and_the_rest_is_read_all_the_same() {
        for (text, most, expected) in [
            ("", 4, ("", true)),
            ("abcd", 4, ("abcd", true)),
            ("abcde", 4, ("abcd", false)),
        ] {
            let (bytes, is_whole) = read_to_end(text.as_bytes(), most).await.unwrap();
            assert_eq!((std::str::from_utf8(&bytes).unwrap(), is_whole), expected);
        }
    }
}
