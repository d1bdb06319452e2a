use hyper::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn router() -> Router {
    Router::default()
        .at("/healthz", |_| async { Answer::line(StatusCode::OK, "ok") })
        .at("/echo", |asked: Asked| async move {
            Answer::of("text/html", format!("{} {}", asked.query, asked.accept))
        })
}

/// Starts a server, and returns its address.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { answer_all(&listener, Arc::new(router())).await });
    address
}

/// Sends bytes, and returns everything that is answered until the server closes.
async fn ask(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before all is sent.
    let _refused = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, head: &str) -> String {
    ask(address, format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn paths_are_answered_and_nothing_else() {
    let address = server().await;
    for (head, status, body) in [
        ("GET /healthz HTTP/1.1", "200 OK", "ok\n"),
        ("GET /healthz?verbose HTTP/1.1", "200 OK", "ok\n"),
        ("HEAD /healthz HTTP/1.1", "200 OK", ""),
        ("GET /healthz HTTP/1.0", "200 OK", "ok\n"),
        (
            "GET /echo?a=b HTTP/1.1\r\nAccept: x/y\r\naccept: z",
            "200 OK",
            "a=b x/y,z",
        ),
        (
            "GET / HTTP/1.1",
            "404 Not Found",
            "not found; there are /echo, /healthz\n",
        ),
        (
            "GET /healthz/ HTTP/1.1",
            "404 Not Found",
            "not found; there are /echo, /healthz\n",
        ),
        (
            "POST /healthz HTTP/1.1",
            "405 Method Not Allowed",
            "GET and HEAD are answered\n",
        ),
    ] {
        let answer = get(address, head).await;
        let (headers, found) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            headers.lines().next().unwrap().ends_with(status),
            "{answer}"
        );
        assert_eq!(found, body, "{head}");
        assert!(headers.contains("nosniff"), "{headers}");
    }
    let head = get(address, "HEAD /healthz HTTP/1.1").await;
    assert!(head.contains("content-length: 3"), "{head}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let address = server().await;
    let large = format!("GET /healthz HTTP/1.1\r\na: {}", "x".repeat(MAX_HEAD));
    let many = format!("GET /healthz HTTP/1.1{}", "\r\na: b".repeat(MAX_HEADERS));
    for head in [large, many] {
        let answer = get(address, &head).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    let nonsense = ask(address, b"\x16\x03\x01nonsense\r\n\r\n").await;
    assert!(!nonsense.contains("200 OK"), "{nonsense}");
}

#[tokio::test]
async fn silent_clients_take_no_more_than_their_places() {
    let address = server().await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // One more is closed at once.
    let refused = get(address, "GET /healthz HTTP/1.1").await;
    assert_eq!(refused, "");
    silent.clear();
    let patience = std::time::Instant::now() + Duration::from_secs(30);
    while !get(address, "GET /healthz HTTP/1.1")
        .await
        .contains("200 OK")
    {
        assert!(std::time::Instant::now() < patience);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_and_tried_again() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    let status = ListenStatus::default();
    tokio::spawn(serve(address, router(), status.clone()));
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    while status.fault().is_none() {
        assert!(std::time::Instant::now() < patience);
        sleep(Duration::from_millis(10)).await;
    }
    let fault = status.fault().unwrap();
    assert!(fault.contains(&address.to_string()), "{fault}");
    assert!(fault.contains("another process has it"), "{fault}");
    drop(other);
    while status.fault().is_some() {
        assert!(std::time::Instant::now() < patience);
        sleep(Duration::from_millis(50)).await;
    }
    let answer = get(address, "GET /healthz HTTP/1.1").await;
    assert!(answer.contains("200 OK"), "{answer}");
}
