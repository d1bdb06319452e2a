//! The wire format of requests and responses: a length (32 bit, little endian) and as many bytes of JSON.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The maximum size of a request, in bytes; a network configuration is a few hundred.
pub const MAX_REQUEST: u32 = 1 << 20;

/// The maximum size of an answer, in bytes.
pub const MAX_ANSWER: u32 = 4 << 20;

/// The maximum size of a network configuration on standard input, in bytes: with its quotes escaped
/// it fits into a request.
pub const MAX_CONFIG: u64 = 1 << 19;

/// A request to the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// From the plugin.
    Cni(Invocation),
    /// From `ebbtidectl`.
    Query(Query),
}

/// One execution of the plugin: its environment and standard input, unchanged.
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
    /// `TRACEPARENT`, if the runtime traces.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub traceparent: String,
    /// `TRACESTATE`, if it is there with a `TRACEPARENT`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tracestate: String,
}

/// An operator's query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Query {
    /// Whether the agent is running and healthy.
    Status,
    /// The node's problems, and what can be done about them.
    Doctor,
    /// The pods' interfaces.
    Pods,
    /// The pools and their usage.
    Pools,
    /// The node's links, and the role of each.
    Nics,
    /// What the cloud's metadata service tells of the NICs.
    Cloud {
        /// Whether the service is to be read first.
        #[serde(default)]
        refresh: bool,
    },
    /// The eBPF programs and their counters.
    Datapath,
    /// The planned network of a pod.
    Explain {
        /// `namespace/name`, `name`, or the start of a container ID; empty: all pods.
        pod: String,
    },
    /// The flow entries of a pod; without one, those that involve the node.
    Flows {
        /// As in [`Query::Explain`].
        pod: Option<String>,
        /// The maximum number of flows, the youngest first.
        limit: usize,
    },
    /// The eBPF programs' decisions on a pod's packets, one answer each until an empty one.
    Trace(Trace),
    /// The owner of an address.
    Ip {
        /// The address.
        address: std::net::IpAddr,
    },
    /// What is logged; with a filter, it is changed first.
    Log {
        /// As RUST_LOG has it.
        #[serde(default)]
        filter: Option<String>,
        /// For how many seconds; without, until the agent ends.
        #[serde(default)]
        seconds: Option<u64>,
    },
    /// Where the node's page is, and what it must bring to get its data.
    Page,
    /// Releases the address of a pod that was deleted.
    Release {
        /// The address.
        address: std::net::IpAddr,
        /// Whether to release it even if the pod lives, or may.
        #[serde(default)]
        force: bool,
    },
}

/// A trace request: which packets, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// As in [`Query::Explain`].
    pub pod: String,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// A port of either side.
    pub port: Option<u16>,
    /// The peer's address.
    pub peer: Option<std::net::IpAddr>,
    /// The maximum number of packets.
    pub count: Option<u32>,
    /// The maximum duration in seconds.
    pub seconds: u32,
}

/// The agent's response.
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    /// The exit status for the requesting process.
    pub exit: u8,
    /// The text for its standard output.
    pub output: String,
}

/// Writes one request.
///
/// # Errors
/// If it is longer than [`MAX_REQUEST`] (`InvalidInput`) or cannot be written.
///
/// # Examples
///
/// ```
/// use ebbtide_plugin::wire::{MAX_REQUEST, Query, Request, receive, send};
///
/// let mut stream = Vec::new();
/// send(&mut stream, &Request::Query(Query::Pools))?;
/// let Request::Query(query) = receive(&mut stream.as_slice())? else {
///     unreachable!("a query was sent")
/// };
/// assert_eq!(query, Query::Pools);
/// assert!(stream.len() < MAX_REQUEST as usize);
/// # Ok::<(), std::io::Error>(())
/// ```
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
    // One write: the agent needs one wake-up, and never sees half a message.
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&bytes);
    stream.write_all(&frame)
}

/// Reads one answer.
///
/// # Errors
/// If it is longer than [`MAX_ANSWER`], cut off, or not the expected JSON.
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

/// Sends a request to the agent at `socket` and waits up to `patience` for the answer.
///
/// # Errors
/// If nothing listens, the socket is neither root's nor this process' user's, or no whole answer arrives in time.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> io::Result<Response> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    send(&mut stream, request)?;
    receive(&mut stream)
}

/// Connects to the agent at `socket`. Checks the owner of the socket's file, since a runtime trusts the answer.
///
/// # Errors
/// If nothing listens, or the socket is neither root's nor this process' user's.
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
    fn plugin_and_agent_of_different_releases_understand_each_other() {
        // Without a trace a request is as it was before there were traces. Fields that an agent does not know are passed
        // over.
        let invocation = Invocation {
            command: "ADD".into(),
            ..Invocation::default()
        };
        let sent = serde_json::to_string(&invocation).unwrap();
        assert!(!sent.contains("trace"), "{sent}");
        let newer = sent.replacen(
            '{',
            r#"{"traceparent": "00", "fromTheFuture": {"a": []},"#,
            1,
        );
        let read: Invocation = serde_json::from_str(&newer).unwrap();
        assert_eq!(
            (read.command.as_str(), read.traceparent.as_str()),
            ("ADD", "00")
        );
        let older: Invocation = serde_json::from_str(r#"{"command":"DEL"}"#).unwrap();
        assert_eq!(older.traceparent, "");
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
