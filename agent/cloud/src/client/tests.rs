use std::time::Duration;

use tokio::net::TcpListener;

use super::*;
use crate::testing::{Reply, Server};

const IMPATIENT: Duration = Duration::from_millis(300);

async fn ask(reply: Reply) -> (Result<Option<String>, RequestError>, Server) {
    let server = Server::start(move |_| reply.clone()).await;
    let client = Client::impatient(server.endpoint.clone(), IMPATIENT);
    let answer = client.get("/latest/x?a=b", &[("X-Token", "t")]).await;
    (
        answer.map(|answer| answer.map(|answer| answer.text)),
        server,
    )
}

#[tokio::test]
async fn a_request_has_what_a_service_needs_and_nothing_of_a_proxy() {
    let (answer, server) = ask(Reply::ok("10.0.0.1\n")).await;
    assert_eq!(answer.unwrap().as_deref(), Some("10.0.0.1\n"));
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((&*seen[0].method, &*seen[0].path), ("GET", "/latest/x?a=b"));
    let names: Vec<&str> = seen[0].headers.keys().map(String::as_str).collect();
    assert_eq!(names, ["host", "user-agent", "x-token"]);
    assert_eq!(
        format!("http://{}", seen[0].headers["host"]),
        server.endpoint.to_string()
    );

    let client = Client::new(server.endpoint.clone());
    client.put("/latest/api/token", &[]).await.unwrap();
    let put = server.seen().pop().unwrap();
    assert_eq!((&*put.method, &*put.path), ("PUT", "/latest/api/token"));
    assert_eq!(put.headers["content-length"], "0");
}

#[tokio::test]
async fn each_failure_is_named_with_what_was_asked_of_whom() {
    let raw = |text: &[u8]| Reply::Raw(text.to_vec());
    let page = "<html>moved</html>".to_owned();
    let location = "Location: http://127.0.0.1:1/\r\n".to_owned();
    for (reply, part) in [
        (Reply::Text(401, String::new()), "no longer valid (401)"),
        (Reply::Text(403, String::new()), "turned off"),
        (Reply::Text(429, String::new()), "too many requests (429)"),
        (
            Reply::With(429, "Retry-After: 7\r\n".into(), String::new()),
            "(429), again in 7 s",
        ),
        (
            Reply::With(429, "Retry-After: 99999999\r\n".into(), String::new()),
            "again in 3600 s",
        ),
        (Reply::Text(410, String::new()), "status 410"),
        (Reply::Text(500, page.clone()), "status 500: the service"),
        (Reply::With(302, location, page), "status 302: a redirect"),
        (Reply::Text(204, String::new()), "status 204"),
        (Reply::ok(&"x".repeat(LONGEST + 1)), "more than 256 KiB"),
        (
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd"),
            "is not text",
        ),
        // An answer that ends too early must not pass for a shorter list.
        (
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n10.0.0.1\n"),
            "no valid HTTP answer",
        ),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "no valid HTTP answer"),
        (raw(b""), "no valid HTTP answer"),
        (Reply::Hang, "no whole answer within 300ms"),
    ] {
        let (answer, server) = ask(reply.clone()).await;
        let error = answer.expect_err(part).to_string();
        let asked = format!("GET {}/latest/x?a=b: ", server.endpoint);
        assert!(error.starts_with(&asked), "{error}");
        assert!(error.contains(part), "{reply:?}: {error}");
        assert_eq!(server.seen().len(), 1, "asked once, followed never");
    }
}

#[tokio::test]
async fn the_longest_answer_is_read_and_404_is_an_answer() {
    let (answer, _) = ask(Reply::ok(&"x".repeat(LONGEST))).await;
    assert_eq!(answer.unwrap().unwrap().len(), LONGEST);
    let (answer, _) = ask(Reply::Text(404, "<html>".into())).await;
    assert_eq!(answer.unwrap(), None);
}

#[tokio::test]
async fn where_nobody_listens_the_connection_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let endpoint = format!("http://127.0.0.1:{port}").parse().unwrap();
    let error = Client::new(endpoint).get("/", &[]).await.unwrap_err();
    assert!(matches!(error.problem, Problem::Refused), "{error}");
}

#[tokio::test]
async fn what_a_service_said_cannot_become_another_request() {
    let server = Server::start(|_| Reply::ok("")).await;
    let client = Client::new(server.endpoint.clone());
    for (path, value) in [("/a b", "x"), ("/", "x\r\nHost: y"), ("/\r\n", "x")] {
        let error = client.get(path, &[("X-Token", value)]).await.unwrap_err();
        assert!(matches!(error.problem, Problem::Malformed(_)), "{error}");
    }
    assert!(server.seen().is_empty());
}
