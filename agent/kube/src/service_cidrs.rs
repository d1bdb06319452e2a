//! Reads and watches `ServiceCIDR` objects: the Services' networks, where the API server has them.

use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use ipnet::IpNet;
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event, watcher},
    },
};
use serde_json::Value;
use tokio::time::sleep;
use tracing::debug;

/// The interval between two checks for ServiceCIDR objects: the API server may be upgraded meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Returns the versions of `ServiceCIDR` (1.33, beta since 1.31), the newer first.
fn versions(client: &Client) -> [Api<DynamicObject>; 2] {
    ["v1", "v1beta1"].map(|version| {
        let gvk = GroupVersionKind::gvk("networking.k8s.io", version, "ServiceCIDR");
        let resource = ApiResource::from_gvk_with_plural(&gvk, "servicecidrs");
        Api::all_with(client.clone(), &resource)
    })
}

/// Streams an item for each change of the `ServiceCIDR` objects; none while the API server has no such kind.
///
/// The content is ignored: [`super::cidrs::reconcile`] queries all sources again.
pub(super) fn changes(client: Client) -> impl Stream<Item = ()> {
    let watches = stream::unfold((client, false), |(client, again)| async move {
        if again {
            sleep(RETRY_INTERVAL).await;
        }
        let api = served(&client).await;
        let events = watcher(api, Config::default()).default_backoff();
        // A version that is no longer served (a release later) is looked up again; the watch
        // recovers from everything else.
        let events = events
            .take_while(|event| std::future::ready(!matches!(event, Err(e) if is_missing(e))))
            .filter_map(|event| std::future::ready(is_change(event).then_some(())));
        Some((events, (client, true)))
    });
    watches.flatten()
}

/// Returns the newest served version of the objects, as soon as there is one.
async fn served(client: &Client) -> Api<DynamicObject> {
    loop {
        for api in versions(client) {
            match api.list(&ListParams::default().limit(1)).await {
                Ok(_) => return api,
                Err(e) => debug!("{}: {e}", api.resource_url()),
            }
        }
        sleep(RETRY_INTERVAL).await;
    }
}

fn is_missing(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(e)
    | watcher::Error::WatchStartFailed(e)
    | watcher::Error::WatchFailed(e)) = error
    else {
        return false;
    };
    matches!(e, kube::Error::Api(status) if status.code == 404)
}

fn is_change(event: Result<Event<DynamicObject>, watcher::Error>) -> bool {
    match event {
        Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone) => true,
        Ok(Event::Init | Event::InitApply(_)) => false,
        Err(e) => {
            debug!("ServiceCIDR objects: {e}");
            false
        }
    }
}

/// Returns the networks in the `ServiceCIDR` objects.
pub(super) async fn all(client: &Client) -> Option<Vec<IpNet>> {
    for api in versions(client) {
        match api.list(&ListParams::default()).await {
            Ok(list) => {
                let cidrs = list
                    .iter()
                    .filter_map(|object| object.data.pointer("/spec/cidrs")?.as_array())
                    .flatten();
                let nets: Vec<IpNet> = cidrs.filter_map(net).collect();
                if !nets.is_empty() {
                    return Some(nets);
                }
            }
            Err(e) => debug!("{}: {e}", api.resource_url()),
        }
    }
    None
}

fn net(value: &Value) -> Option<IpNet> {
    value.as_str()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(nets: &[IpNet]) -> String {
        let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
        texts.join(" ")
    }

    /// An API server that has one object at one path, and nothing else. Each line of `events` is
    /// sent to the first watcher there.
    fn server_with(path: &'static str, answer: &Value, events: &[Value]) -> Client {
        use std::io::{BufRead as _, BufReader, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = answer.to_string();
        let mut events: Vec<String> = events.iter().map(Value::to_string).collect();
        std::thread::spawn(move || {
            let mut watched = Vec::new();
            for stream in listener.incoming().flatten() {
                let mut request = BufReader::new(&stream).lines().map_while(Result::ok);
                let first = request.next().unwrap_or_default();
                let asked = first.split_whitespace().nth(1).unwrap_or_default();
                // to the empty line
                request.find(String::is_empty);
                let missing = json!({"kind": "Status", "status": "Failure", "code": 404, "message": "",
                    "reason": "NotFound"});
                let (place, query) = asked.split_once('?').unwrap_or((asked, ""));
                let head = "Content-Type: application/json\r\nConnection: close";
                if place == path && query.contains("watch=") {
                    let lines: String = events.drain(..).map(|line| line + "\n").collect();
                    let text = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{lines}");
                    let _ = (&stream).write_all(text.as_bytes());
                    // A watch stays open.
                    watched.push(stream);
                    continue;
                }
                let (status, body) = if place == path {
                    ("200 OK", answer.clone())
                } else {
                    ("404 Not Found", missing.to_string())
                };
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                // A client that disconnected has what it needs.
                let _ = (&stream).write_all(text.as_bytes());
            }
        });
        let url = format!("http://{address}").parse().unwrap();
        Client::try_from(kube::Config::new(url)).unwrap()
    }

    fn server(path: &'static str, answer: &Value) -> Client {
        server_with(path, answer, &[])
    }

    /// Without a poll: the second change arrives by the watch or never.
    #[tokio::test]
    async fn a_new_service_cidr_is_told_by_a_watch_of_either_version() {
        for path in [
            "/apis/networking.k8s.io/v1/servicecidrs",
            "/apis/networking.k8s.io/v1beta1/servicecidrs",
        ] {
            let list = json!({"kind": "ServiceCIDRList", "metadata": {"resourceVersion": "345"}, "items": []});
            let added = json!({"type": "ADDED", "object": {
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "more", "resourceVersion": "346"}, "spec": {"cidrs": ["10.97.0.0/16"]},
            }});
            let mut changes = Box::pin(changes(server_with(path, &list, &[added])));
            let next = async { (changes.next().await, changes.next().await) };
            let told = tokio::time::timeout(Duration::from_secs(60), next).await;
            assert_eq!(told, Ok((Some(()), Some(()))), "{path}");
        }
    }

    #[tokio::test]
    async fn where_there_are_no_such_objects_nothing_is_told() {
        let nothing = server("/healthz", &json!({}));
        let mut changes = Box::pin(changes(nothing));
        let told = tokio::time::timeout(Duration::from_millis(300), changes.next()).await;
        assert!(told.is_err(), "{told:?}");
    }

    /// Written after the API's reference for 1.33: the API server of the tests is older.
    #[tokio::test]
    async fn service_cidr_objects_of_either_version_tell_all_their_networks() {
        let objects = json!({
            "kind": "ServiceCIDRList",
            "metadata": {"resourceVersion": "345"},
            "items": [
                {
                    "metadata": {"name": "kubernetes", "uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z",
                        "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
                    "spec": {"cidrs": ["10.96.0.0/28", "fd00:10:96::/112"]},
                    "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "",
                        "message": "Kubernetes Service CIDR is ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
                },
                {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/16"]}},
            ],
        });
        for path in [
            "/apis/networking.k8s.io/v1/servicecidrs",
            "/apis/networking.k8s.io/v1beta1/servicecidrs",
        ] {
            let found = all(&server(path, &objects)).await;
            assert_eq!(
                shown(&found.expect(path)),
                "10.96.0.0/28 fd00:10:96::/112 10.97.0.0/16"
            );
        }
        let none = json!({"kind": "ServiceCIDRList", "metadata": {}, "items": []});
        let client = server("/apis/networking.k8s.io/v1/servicecidrs", &none);
        assert_eq!(all(&client).await, None);
    }
}
