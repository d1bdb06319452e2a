//! The API server, asked by a pod of the cluster as its own account: where there is no kubectl.
//!
//! Each call has a connection and a runtime of its own: calls are few, and come from several threads.

use std::{fs, sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, bail};
use ebbtide_kube::remote::{self, Remote, is_not_found};
use http::Method;
use serde_json::Value;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{CALL, Container, Kind, MOST, NAMESPACES, PODS, SERVICES, Which};

/// Where the kubelet tells a pod its namespace.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// How long a line of a program may be, in bytes.
const LINE: usize = 64 << 10;

/// The pause between two looks at an object that ends.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) fn get(kind: Kind, namespace: Option<&str>, which: Which<'_>) -> anyhow::Result<Value> {
    let own = match (namespace, which) {
        (None, Which::Named(_)) if kind == PODS => {
            let own = fs::read_to_string(OWN_NAMESPACE);
            Some(own.with_context(|| format!("read {OWN_NAMESPACE}"))?)
        }
        _ => None,
    };
    let path = path(kind, namespace.or(own.as_deref()), which);
    within(CALL, async |api| {
        Ok(api.request(Method::GET, &path, None).await?)
    })
}

pub(super) fn create(objects: &[Value]) -> anyhow::Result<()> {
    within(CALL, async |api| {
        for object in objects {
            let text = |at: &str| object.pointer(at).and_then(Value::as_str);
            let kind = match text("/kind") {
                Some("Namespace") => NAMESPACES,
                Some("Pod") => PODS,
                Some("Service") => SERVICES,
                other => bail!("no path is known for objects of kind {other:?}"),
            };
            let path = path(kind, text("/metadata/namespace"), Which::All);
            api.request(Method::POST, &path, Some(object)).await?;
        }
        Ok(())
    })
}

pub(super) fn delete(
    kind: Kind,
    namespace: Option<&str>,
    name: &str,
    does_wait: bool,
) -> anyhow::Result<()> {
    let path = path(kind, namespace, Which::Named(name));
    let gone = |result: Result<Value, remote::Error>| match result {
        Ok(_) => Ok(false),
        Err(error) if is_not_found(&error) => Ok(true),
        Err(error) => Err(error),
    };
    within(CALL * 2, async |api| {
        let mut is_gone = gone(api.request(Method::DELETE, &path, None).await)?;
        while does_wait && !is_gone {
            sleep(PAUSE).await;
            is_gone = gone(api.request(Method::GET, &path, None).await)?;
        }
        Ok(())
    })
}

pub(super) fn version() -> anyhow::Result<Value> {
    within(CALL, async |api| {
        let version = api.request(Method::GET, "/version", None).await?;
        Ok(version["gitVersion"].clone())
    })
}

pub(super) fn run(
    container: Container<'_>,
    words: &[&str],
    input: &[u8],
    most: Duration,
) -> anyhow::Result<Vec<u8>> {
    within(most, async |api| {
        let running = api.exec(remote(container), words).await?;
        Ok(running.output(input, MOST).await?)
    })
}

/// A program's connection. It ends with this.
#[derive(Debug)]
pub(super) struct Connected {
    /// Its end, or a word, ends the connection.
    _end: oneshot::Sender<()>,
}

pub(super) fn hold(
    container: Container<'_>,
    words: &[&str],
    most: Duration,
) -> anyhow::Result<(Connected, String)> {
    let (end, ended) = oneshot::channel();
    let (sender, receiver) = mpsc::channel();
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let [namespace, pod, name] =
        [container.namespace, container.pod, container.name].map(str::to_owned);
    thread::spawn(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let container = Container {
            namespace: &namespace,
            pod: &pod,
            name: &name,
        };
        let started = with_api(async |api| {
            let mut running = api.exec(remote(container), &words).await?;
            let line = timeout(most, running.first_line(LINE)).await;
            // The receiver may have stopped waiting.
            let _ = sender.send(line.context("it says nothing")??);
            // There is no word but the end.
            let _ = ended.await;
            running.end();
            Ok(())
        });
        // Without a line there is nobody to tell but through the channel, which ends.
        drop(started);
    });
    let line = receiver.recv_timeout(most + CALL).unwrap_or_default();
    Ok((Connected { _end: end }, line))
}

fn remote(container: Container<'_>) -> remote::Container<'_> {
    remote::Container {
        namespace: container.namespace,
        pod: container.pod,
        container: container.name,
    }
}

/// Does something with a connection of its own, for no longer than `most`.
fn within<T>(
    most: Duration,
    work: impl AsyncFnOnce(Remote) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    with_api(async |api| {
        let done = timeout(most, work(api)).await;
        done.with_context(|| format!("the API server did not answer within {} s", most.as_secs()))?
    })
}

fn with_api<T>(work: impl AsyncFnOnce(Remote) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    runtime.block_on(async { work(Remote::in_pod().await?).await })
}

/// Returns the path of objects.
fn path(kind: Kind, namespace: Option<&str>, which: Which<'_>) -> String {
    let Kind { root, plural } = kind;
    let place = namespace.map(|namespace| format!("/namespaces/{namespace}"));
    let place = place.unwrap_or_default();
    let rest = match which {
        Which::All => String::new(),
        Which::Labelled(label) => format!("?labelSelector={}", escaped(label)),
        Which::Having(field) => format!("?fieldSelector={}", escaped(field)),
        Which::Named(name) => format!("/{name}"),
    };
    format!("{root}{place}/{plural}{rest}")
}

fn escaped(selector: &str) -> String {
    selector.replace('=', "%3D").replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{EVENTS, NETWORKS, NODES},
        *,
    };

    #[test]
    fn objects_have_paths() {
        for (kind, namespace, which, expected) in [
            (NODES, None, Which::All, "/api/v1/nodes"),
            (NAMESPACES, None, Which::Named("n"), "/api/v1/namespaces/n"),
            (
                NETWORKS,
                None,
                Which::All,
                "/apis/spiderpool.spidernet.io/v2beta1/spidermultusconfigs",
            ),
            (
                PODS,
                Some("n"),
                Which::Labelled("app.kubernetes.io/name=x"),
                "/api/v1/namespaces/n/pods?labelSelector=app.kubernetes.io%2Fname%3Dx",
            ),
            (
                EVENTS,
                None,
                Which::Having("reason=x"),
                "/api/v1/events?fieldSelector=reason%3Dx",
            ),
            (
                SERVICES,
                Some("n"),
                Which::Named("s"),
                "/api/v1/namespaces/n/services/s",
            ),
        ] {
            assert_eq!(path(kind, namespace, which), expected);
        }
    }
}
