//! A double of EC2 for tests, with what no other one has: prefixes, limits that are enforced, and answers of one's choice.
//! It is not EC2: it knows what EC2's reference says, and one NIC.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The most addresses and prefixes that its NIC may have, with its own.
const LIMIT: usize = 4;

/// What it knows, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) prefixes: BTreeSet<String>,
    pub(crate) requests: Vec<String>,
    /// Raw answers that come first.
    pub(crate) next: Vec<String>,
}

/// A double of EC2 with prefixes.
#[derive(Clone, Debug)]
pub(crate) struct PrefixDouble {
    pub(crate) url: String,
    pub(crate) state: Arc<Mutex<State>>,
}

impl PrefixDouble {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state: Arc<Mutex<State>> = Arc::default();
        let own = Self {
            url,
            state: Arc::clone(&state),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&state)));
            }
        });
        own
    }

    pub(crate) fn then(&self, answer: String) {
        self.state.lock().unwrap().next.push(answer);
    }

    pub(crate) fn last(&self) -> String {
        self.state
            .lock()
            .unwrap()
            .requests
            .last()
            .cloned()
            .unwrap_or_default()
    }
}

pub(crate) fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse::<usize>()
                    .ok()
            });
            if body.len() >= length.unwrap_or(0) {
                let answer = act(&text, &mut state.lock().unwrap());
                if let Some(answer) = answer {
                    let _ = stream.write_all(answer.as_bytes()).await;
                } else {
                    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
                }
                return;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Returns an answer; none at all if the next one is to be empty.
fn act(request: &str, state: &mut State) -> Option<String> {
    state.requests.push(request.to_owned());
    if !state.next.is_empty() {
        let next = state.next.remove(0);
        return (!next.is_empty()).then_some(next);
    }
    let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let field = |name: &str| {
        body.split('&')
            .find_map(|each| each.strip_prefix(&format!("{name}=")))
            .map(|value| value.replace("%2F", "/").replace("%3A", ":"))
    };
    let item = |prefix: &String| format!("<item><ipv4Prefix>{prefix}</ipv4Prefix></item>");
    Some(match field("Action").as_deref() {
        Some("AssignPrivateIpAddresses") => {
            let count: usize = field("Ipv4PrefixCount")
                .and_then(|n| n.parse().ok())
                .unwrap();
            if 1 + state.prefixes.len() + count > LIMIT {
                return Some(answer(
                    400,
                    "<Response><Errors><Error><Code>PrivateIpAddressLimitExceeded</Code><Message>too many</Message>\
                     </Error></Errors><RequestID>r-9</RequestID></Response>",
                ));
            }
            let free = (1..).map(|n| format!("10.0.0.{}/28", n * 16));
            let new: Vec<String> = free
                .filter(|each| !state.prefixes.contains(each))
                .take(count)
                .collect();
            state.prefixes.extend(new.iter().cloned());
            let items: String = new.iter().map(item).collect();
            answer(
                200,
                &format!("<R><assignedIpv4PrefixSet>{items}</assignedIpv4PrefixSet></R>"),
            )
        }
        Some("UnassignPrivateIpAddresses") => {
            for number in 1.. {
                let Some(prefix) = field(&format!("Ipv4Prefix.{number}")) else {
                    break;
                };
                state.prefixes.remove(&prefix);
            }
            answer(200, "<R><return>true</return></R>")
        }
        Some("DescribeNetworkInterfaces") => {
            let items: String = state.prefixes.iter().map(item).collect();
            answer(
                200,
                &format!(
                    "<R><networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId>\
                     <macAddress>02:00:00:00:00:01</macAddress><privateIpAddress>10.0.0.9</privateIpAddress>\
                     <ipv4PrefixSet>{items}</ipv4PrefixSet></item></networkInterfaceSet></R>"
                ),
            )
        }
        other => panic!("{other:?}"),
    })
}
