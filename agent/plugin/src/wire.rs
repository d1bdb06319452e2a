//! One request, one response, each a length (32 bit, little endian) and as many bytes of JSON.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest request, in bytes; a network configuration is a few hundred.
pub const MAX_REQUEST: u32 = 1 << 20;

/// The longest answer, in bytes.
pub const MAX_ANSWER: u32 = 4 << 20;

/// The longest network configuration accepted on standard input, in bytes: with its quotes escaped it is a request.
pub const MAX_CONFIG: u64 = 1 << 19;

/// What the agent is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// By the plugin.
    Cni(Invocation),
    /// By `ebbtidectl`.
    Query(Query),
}

/// One execution of the plugin: its environment and standard input, as they came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    #[serde(default)]
    pub container_id: String,
    /// `CNI_NETNS`.
    #[serde(default)]
    pub netns: String,
    /// `CNI_IFNAME`.
    #[serde(default)]
    pub if_name: String,
    /// `CNI_ARGS`.
    #[serde(default)]
    pub args: String,
    /// `CNI_PATH`.
    #[serde(default)]
    pub path: String,
    /// The network configuration.
    #[serde(default)]
    pub config: String,
}

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Query {
    /// Is the agent there and well?
    Status,
    /// What is wrong with the node, and what can be done about it?
    Doctor,
    /// The pods' interfaces.
    Pods,
    /// The pools and how full they are.
    Pools,
    /// The node's links, and what each is taken for.
    Nics,
    /// The programs and their counters.
    Datapath,
    /// A pod's network as it was planned.
    Explain {
        /// `namespace/name`, `name`, or the start of a container ID.
        pod: String,
    },
    /// The flows that a pod remembers; without one, those the node has a part in.
    Flows {
        /// As in [`Query::Explain`].
        pod: Option<String>,
        /// At most so many, the youngest.
        limit: usize,
    },
    /// What the programs do with a pod's packets, one answer each until the empty one.
    Trace(Trace),
    /// Whose an address is.
    Ip {
        /// The address.
        address: std::net::IpAddr,
    },
    /// Takes an address away from a pod that is gone.
    Release {
        /// The address.
        address: std::net::IpAddr,
        /// Also if the pod is alive, or may be.
        #[serde(default)]
        force: bool,
    },
}

/// Which packets are traced, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// As in [`Query::Explain`].
    pub pod: String,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// A port of either side.
    pub port: Option<u16>,
    /// The other side.
    pub peer: Option<std::net::IpAddr>,
    /// At most so many packets' answers.
    pub count: Option<u32>,
    /// At most so many seconds.
    pub seconds: u32,
}

/// The agent's answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    /// Exit status for the process that asked.
    pub exit: u8,
    /// What it prints to standard output.
    pub output: String,
}

/// Writes one request.
///
/// # Errors
/// When it is longer than [`MAX_REQUEST`] (`InvalidInput`) or cannot be written.
pub fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|length| *length <= MAX_REQUEST)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a request of {} bytes is longer than the {MAX_REQUEST} that there may be",
                    bytes.len()
                ),
            )
        })?;
    // One write: the agent needs one wake-up, and no half message is ever on the socket.
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&bytes);
    stream.write_all(&frame)
}

/// Reads one answer.
///
/// # Errors
/// When it is longer than [`MAX_ANSWER`], cut off, or not the JSON expected.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_ANSWER {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("an answer of {length} bytes is too long"),
        ));
    }
    let mut bytes = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Asks the agent at `socket`, waiting `patience` at most for the answer.
///
/// # Errors
/// When nobody listens, or somebody else than root or this process' user does, or no whole answer comes in time.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> io::Result<Response> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    send(&mut stream, request)?;
    receive(&mut stream)
}

/// Connects to the agent at `socket`. Whoever has the socket's file gives the answer, which a runtime believes.
///
/// # Errors
/// When nobody listens, or the socket is neither root's nor this process' user's.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let owner = fs::metadata(socket)?.uid();
    let own = fs::metadata("/proc/self")?.uid();
    if owner == 0 || owner == own {
        return UnixStream::connect(socket);
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the socket is user {owner}'s, and an agent's is root's"),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_of_somebody_else_is_not_asked() {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return;
        }
        let path = std::env::temp_dir().join(format!("ebbtide-wire-{}.sock", std::process::id()));
        let _listener = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let asked = ask(
            &path,
            &Request::Query(Query::Status),
            Duration::from_secs(1),
        );
        fs::remove_file(&path).unwrap();
        let refused = asked.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
    }

    #[test]
    fn a_request_that_is_too_long_is_not_sent() {
        let config = "x".repeat(MAX_REQUEST as usize);
        let request = Request::Cni(Invocation {
            config,
            ..Invocation::default()
        });
        let mut sent = Vec::new();
        let refused = send(&mut sent, &request).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{refused}");
        assert!(sent.is_empty());
    }

    #[test]
    fn what_is_sent_is_received() {
        let mut buffer = Vec::new();
        send(&mut buffer, &Query::Explain { pod: "a/b".into() }).unwrap();
        let query: Query = receive(&mut buffer.as_slice()).unwrap();
        assert_eq!(query, Query::Explain { pod: "a/b".into() });
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        let error = receive::<Query>(&mut bytes.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_message_cut_off_anywhere_is_an_error() {
        let mut buffer = Vec::new();
        send(&mut buffer, &Query::Pods).unwrap();
        for cut in 0..buffer.len() {
            assert!(receive::<Query>(&mut &buffer[..cut]).is_err(), "at {cut}");
        }
    }
}
