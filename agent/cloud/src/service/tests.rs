use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::*;
use crate::{
    Problem, RequestError,
    testing::{Reply, Seen, Server},
    tree::ROOT,
};

const TOKEN: &str = "/latest/api/token";

fn service(provider: Provider, server: &Server) -> Service {
    let patience = Duration::from_millis(500);
    let client = Client::impatient(server.endpoint.clone(), patience);
    Service::with_client(provider, client)
}

/// A NIC of AWS or Alibaba Cloud; all else is 404.
fn leaf(path: &str) -> Reply {
    match path.strip_prefix(ROOT) {
        Some("") => Reply::ok("02:0a:00:00:00:01/\n"),
        Some("02:0a:00:00:00:01/local-ipv4s") => Reply::ok("10.0.0.10\n10.0.0.11"),
        Some("02:0a:00:00:00:01/primary-ip-address") => Reply::ok("10.0.0.10"),
        Some("02:0a:00:00:00:01/private-ipv4s") => Reply::ok("[\"10.0.0.11\",\"10.0.0.10\"]"),
        _ => Reply::Text(404, String::new()),
    }
}

fn token_of(seen: &Seen) -> Option<&str> {
    let name = match seen.headers.get("x-aws-ec2-metadata-token") {
        Some(token) => Some(token),
        None => seen.headers.get("x-aliyun-ecs-metadata-token"),
    };
    name.map(String::as_str)
}

fn has_the_address(reading: &Reading) -> bool {
    let nic = &reading.view.nics[0];
    let blocks: Vec<_> = nic.blocks.values().flatten().collect();
    blocks == [&"10.0.0.11/32".parse().unwrap()] && nic.primary.len() == 1
}

/// A service with tokens that become invalid after some requests.
async fn with_tokens(lasts: usize) -> Server {
    let (mut number, mut left) = (0, 0);
    Server::start(move |seen| {
        if seen.path == TOKEN {
            assert_eq!(seen.method, "PUT");
            let life = seen
                .headers
                .keys()
                .find(|name| name.ends_with("-ttl-seconds"));
            assert_eq!(seen.headers[life.unwrap()], "21600");
            (number, left) = (number + 1, lasts);
            return Reply::ok(&format!("token-{number}==\n"));
        }
        if left == 0 || token_of(seen) != Some(&format!("token-{number}==")) {
            return Reply::Text(401, String::new());
        }
        left -= 1;
        leaf(&seen.path)
    })
    .await
}

#[tokio::test]
async fn a_token_is_kept_and_renewed_when_it_is_refused() {
    for (provider, lasts, tokens) in [
        (Provider::Aws, 100, 1),
        (Provider::Aws, 5, 4),
        (Provider::Alibaba, 100, 1),
        (Provider::Alibaba, 7, 4),
    ] {
        let server = with_tokens(lasts).await;
        let mut service = service(provider, &server);
        for _ in 0..2 {
            assert!(has_the_address(&service.read().await.unwrap()));
        }
        assert_eq!(server.count(TOKEN), tokens, "{provider} {lasts}");
        assert!(!format!("{service:?}").contains("token-"));
    }
    // A token that is refused at once is renewed once, not forever.
    let server = with_tokens(0).await;
    let error = service(Provider::Aws, &server).read().await.unwrap_err();
    assert!(error.to_string().contains("(401)"), "{error}");
    assert_eq!(server.count(TOKEN), 2);
}

#[tokio::test]
async fn aws_without_an_answer_to_put_is_a_matter_of_hops_and_is_never_asked_plainly() {
    for (reply, part) in [
        (Reply::Hang, "HttpPutResponseHopLimit"),
        (Reply::Text(403, String::new()), "turned off"),
        (Reply::Text(404, String::new()), "404"),
        (Reply::Text(405, String::new()), "status 405"),
        (Reply::ok(""), "no token"),
        (Reply::ok("<html> <body>"), "no token"),
    ] {
        let server = Server::start(move |seen| match &*seen.path {
            TOKEN => reply.clone(),
            path => leaf(path),
        })
        .await;
        let error = service(Provider::Aws, &server).read().await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(server.seen().len(), 1, "{part}");
    }
}

#[tokio::test]
async fn alibaba_is_asked_plainly_where_it_has_no_tokens() {
    for status in [400, 403, 404, 405] {
        let server = Server::start(move |seen| match &*seen.path {
            TOKEN => Reply::Text(status, String::new()),
            path => leaf(path),
        })
        .await;
        let mut service = service(Provider::Alibaba, &server);
        assert!(has_the_address(&service.read().await.unwrap()), "{status}");
        assert_eq!(server.count(TOKEN), 1, "once a read");
        service.read().await.unwrap();
        assert_eq!(server.count(TOKEN), 2, "tokens may be demanded now");
    }
    // A service that is slow or broken is not one without tokens.
    for reply in [Reply::Hang, Reply::Text(500, String::new())] {
        let server = Server::start(move |_| reply.clone()).await;
        service(Provider::Alibaba, &server)
            .read()
            .await
            .unwrap_err();
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_list_that_changes_is_discarded_and_one_that_is_gone_is_no_news() {
    let list = |second: Reply| async {
        let reads = AtomicUsize::new(0);
        let server = Server::start(move |seen| match &*seen.path {
            ROOT if reads.fetch_add(1, Ordering::Relaxed) == 1 => second.clone(),
            TOKEN => Reply::ok("t"),
            path => leaf(path),
        })
        .await;
        service(Provider::Aws, &server).read().await
    };
    let two = Reply::ok("02:0a:00:00:00:01/\n02:0a:00:00:00:02/\n");
    assert!(matches!(list(two).await, Err(ReadError::Torn)));
    let gone = Reply::Text(404, String::new());
    assert!(matches!(list(gone).await, Err(ReadError::NoList { .. })));
    let empty = list(Reply::ok("\n")).await.unwrap_err();
    assert!(empty.to_string().contains("is empty"), "{empty}");
    let page = list(Reply::ok("<html>")).await.unwrap_err();
    assert!(page.to_string().contains("no MAC"), "{page}");
    let same = Reply::ok("02:0A:00:00:00:01/");
    assert!(has_the_address(&list(same).await.unwrap()));
}

#[tokio::test]
async fn one_leaf_that_fails_fails_the_read() {
    for (reply, pause) in [
        (Reply::Text(500, String::new()), None),
        (
            Reply::With(429, "Retry-After: 5\r\n".into(), String::new()),
            Some(Duration::from_secs(5)),
        ),
        (Reply::Hang, None),
        (Reply::ok("<html>busy</html>"), None),
    ] {
        let server = Server::start(move |seen| match &*seen.path {
            TOKEN => Reply::ok("t"),
            path if path.ends_with("/ipv6s") => reply.clone(),
            path => leaf(path),
        })
        .await;
        let error = service(Provider::Aws, &server).read().await.unwrap_err();
        assert_eq!(error.pause(), pause, "{error}");
    }
}

#[tokio::test]
async fn tencent_is_asked_in_its_own_spelling_and_for_one_gateway() {
    const NIC: &str = "52:54:00:BF:B3:51";
    let server = Server::start(|seen| match seen.path.strip_prefix(ROOT) {
        Some("") => Reply::ok("52:54:00:BF:B3:51/"),
        Some("52:54:00:BF:B3:51/primary-local-ipv4") => Reply::ok("10.104.13.59"),
        Some("52:54:00:BF:B3:51/local-ipv4s/") => Reply::ok("10.104.13.59/\n10.104.13.60/"),
        Some("52:54:00:BF:B3:51/local-ipv4s/10.104.13.59/gateway") => Reply::ok("10.104.0.1"),
        Some("52:54:00:BF:B3:51/local-ipv4s/10.104.13.59/subnet-mask") => {
            Reply::ok("255.255.192.0")
        }
        _ => Reply::Text(404, String::new()),
    })
    .await;
    let reading = service(Provider::Tencent, &server).read().await.unwrap();
    let nic = &reading.view.nics[0];
    assert_eq!(nic.mac.to_string(), NIC.to_lowercase());
    assert_eq!(
        nic.gateways,
        ["10.104.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(nic.subnets, ["10.104.0.0/18".parse().unwrap()]);
    assert_eq!(server.seen().len(), 6);
    assert!(server.seen().iter().all(|seen| seen.method == "GET"));
}

#[tokio::test]
async fn azure_demands_its_header_and_says_not_yet() {
    let is_up = Arc::new(AtomicBool::new(false));
    let up = Arc::clone(&is_up);
    let server = Server::start(move |seen| {
        let is_azure = seen.headers.get("metadata").is_some_and(|value| value == "true");
        match up.load(Ordering::Relaxed) {
            _ if !is_azure || seen.headers.contains_key("x-forwarded-for") => {
                Reply::Text(400, String::new())
            }
            false => Reply::Text(404, String::new()),
            true => Reply::ok(
                r#"{"interface":[{"macAddress":"000D3A1B00FF","ipv4":{"ipAddress":[{"privateIpAddress":"10.0.0.10"}]}}]}"#,
            ),
        }
    })
    .await;
    let mut service = service(Provider::Azure, &server);
    let error = service.read().await.unwrap_err();
    assert!(matches!(error, ReadError::NoList { .. }), "{error}");
    is_up.store(true, Ordering::Relaxed);
    assert_eq!(service.read().await.unwrap().view.nics.len(), 1);
}

#[tokio::test]
async fn google_is_followed_by_its_etag_and_known_by_its_header() {
    const NICS: &str = r#"[{"mac":"42:01:0a:80:00:05","ip":"10.128.0.5","ipAliases":[]}]"#;
    let server = Server::start(|seen| {
        assert_eq!(seen.headers["metadata-flavor"], "Google");
        let etag = seen.path.split("last_etag=").nth(1).unwrap_or("none");
        let flavor = match etag {
            "bad" => "",
            _ => "Metadata-Flavor: Google\r\n",
        };
        Reply::With(200, format!("{flavor}ETag: a1{etag}\r\n"), NICS.to_owned())
    })
    .await;
    let mut service = service(Provider::Gcp, &server);
    assert!(service.can_follow());
    let first = service.read().await.unwrap();
    assert_eq!(first.etag.as_deref(), Some("a1none"));
    let second = service.follow(None).await.unwrap();
    assert_eq!(second.etag.as_deref(), Some("a1NONE"));
    let third = service.follow(Some("a1&x=y")).await.unwrap();
    assert_eq!(
        third.etag.as_deref(),
        Some("a1NONE"),
        "no request by an etag"
    );
    let path = &server.seen()[1].path;
    assert!(
        path.contains("wait_for_change=true&timeout_sec=60"),
        "{path}"
    );
    let error = service.follow(Some("bad")).await.unwrap_err();
    assert!(matches!(error, ReadError::Stranger { .. }), "{error}");
}

#[tokio::test]
async fn a_service_that_hangs_is_an_error_in_every_dialect() {
    for provider in Provider::ALL {
        let server = Server::start(|_| Reply::Hang).await;
        match service(provider, &server).read().await {
            Err(
                ReadError::Request(RequestError { problem, .. })
                | ReadError::HopLimit(RequestError { problem, .. }),
            ) => {
                assert!(
                    matches!(problem, Problem::NoAnswer(_)),
                    "{provider}: {problem}"
                );
            }
            other => panic!("{provider}: {other:?}"),
        }
    }
}
