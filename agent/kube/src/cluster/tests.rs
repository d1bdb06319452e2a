use std::time::Instant;

use futures::FutureExt as _;
use kube::Config;
use serde_json::json;

use super::*;
use crate::leases;

/// A client whose server never answers.
fn client() -> Client {
    Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap()
}

fn named(name: &str) -> DynamicObject {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}})).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pods_concern_neither_catalog_nor_leases_and_are_written_together() {
    let state = tempfile::tempdir().unwrap();
    let (saved, mirror) = Saved::load(state.path());
    let cluster = Cluster::watching(client(), "node".into(), mirror, Some(saved), &[]);
    let catalog = cluster.mirror().declared_catalog();
    let [mut of_catalog, mut of_leases, mut of_pods] =
        [&CATALOG[..], &leases::KINDS, &[Kind::Pod]].map(|kinds| cluster.changes(kinds));
    tokio::spawn(save(Arc::clone(&cluster)));
    let start = Instant::now();
    for number in 0..1000 {
        let pod = named(&format!("web-{number}"));
        cluster.change(Kind::Pod, |mirror| mirror.set(Kind::Pod, pod));
        if number % 10 == 0 {
            let namespace = named(&format!("shop-{number}"));
            cluster.change(Kind::Namespace, |mirror| {
                mirror.set(Kind::Namespace, namespace)
            });
        }
        tokio::task::yield_now().await;
    }
    assert!(of_pods.changed().now_or_never().is_some());
    for (who, woken) in [
        ("catalog", of_catalog.changed().now_or_never()),
        ("leases", of_leases.changed().now_or_never()),
    ] {
        assert!(woken.is_none(), "the {who} is woken by pods");
    }
    assert!(Arc::ptr_eq(&catalog, &cluster.mirror().declared_catalog()));

    cluster.save_last().await;
    let saved = || async {
        let saved = cluster.saved.lock().await;
        saved.as_ref().map_or(0, |saved| saved.writes)
    };
    let writes = saved().await;
    let pauses = usize::try_from(start.elapsed().as_secs() / SAVE.as_secs()).unwrap();
    assert!((1..=3 + pauses).contains(&writes), "{writes} writes");
    let (_, on_disk) = Saved::load(state.path());
    assert_eq!(on_disk.all(Kind::Pod).count(), 1000);

    // An equal object is not written again.
    let again = named("web-7");
    cluster.change(Kind::Pod, |mirror| mirror.set(Kind::Pod, again));
    cluster.record_own_network("ebbtide");
    cluster.save_last().await;
    assert_eq!(saved().await, writes);
}
