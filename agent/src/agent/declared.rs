//! The catalog that the agent works by: the declared one, without changes that would break running pods.

use std::{collections::BTreeSet, sync::Arc};

use ebbtide_ipam::{
    catalog::{Catalog, publish},
    pool::Pools,
};
use tokio::sync::watch;

use super::Agent;

impl Agent {
    /// Keeps a pool as it was while a change of it would harm pods that have its addresses ([`Catalog::keeping_used_pools`]).
    /// Ends with the runtime.
    #[must_use]
    pub fn keeping_pools(mut self) -> Self {
        self.catalog = follow(self.catalog, self.pools.clone());
        self
    }
}

/// Returns a receiver of `declared`'s catalogs, without changes that harm pods with addresses.
fn follow(
    mut declared: watch::Receiver<Arc<Catalog>>,
    pools: Pools,
) -> watch::Receiver<Arc<Catalog>> {
    let first = Arc::clone(&declared.borrow_and_update());
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut changes = pools.subscribe();
        let mut is_refused = false;
        loop {
            // A refused change waits until the last address of its pool is released.
            tokio::select! {
                changed = declared.changed() => if changed.is_err() { return },
                changed = changes.changed(), if is_refused => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let newest = Arc::clone(&declared.borrow_and_update());
            let in_use = in_use(&pools);
            let current = Arc::clone(&sender.borrow());
            let kept =
                Catalog::clone(&newest).keeping_used_pools(&current, |name| in_use.contains(name));
            is_refused = kept != *newest;
            publish(&sender, kept);
        }
    });
    receiver
}

/// Returns the pools that have an address in use or reserved for a pod.
fn in_use(pools: &Pools) -> BTreeSet<String> {
    pools.snapshot().pools.into_keys().collect()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use ebbtide_ipam::pool::{Options, Owner, Request, Reserved};
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;

    fn catalog(subnet: &str) -> Arc<Catalog> {
        let text = format!(
            "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {{name: p}}, \
             spec: {{subnet: {subnet}.0/24, ips: [{subnet}.10-{subnet}.20], default: true}}}}"
        );
        Arc::new(Catalog::from_texts([(
            Path::new("pools.yaml"),
            text.as_str(),
        )]))
    }

    /// Waits until the catalog's pool has this subnet, and returns the problems.
    async fn problems_at(kept: &mut watch::Receiver<Arc<Catalog>>, subnet: &str) -> Vec<String> {
        let has =
            |catalog: &Arc<Catalog>| catalog.pools()[0].subnet.to_string().starts_with(subnet);
        let found = timeout(Duration::from_secs(20), kept.wait_for(has)).await;
        let catalog = found.expect("in time").expect("a sender");
        catalog.problems().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_subnet_that_is_changed_waits_for_the_last_pod_of_the_pool() {
        let state = tempfile::tempdir().unwrap();
        let pools = Pools::open(
            state.path(),
            Options {
                cooldown: Duration::ZERO,
                sticky: false,
            },
        )
        .unwrap();
        let [old, new] = ["10.0.0", "10.0.1"].map(catalog);
        let owner = Owner {
            network: "n".into(),
            container_id: "c".into(),
            interface: "eth0".into(),
        };
        let Ok(Reserved::New(grant)) = pools.reserve(&Request::new(&owner, "node", &old)) else {
            panic!("no address")
        };
        grant.commit(json!({})).await.unwrap();
        let (declared, receiver) = watch::channel(old);
        let mut kept = follow(receiver, pools.clone());

        declared.send_replace(new);
        kept.changed().await.unwrap();
        let problems = problems_at(&mut kept, "10.0.0").await;
        assert!(
            problems.len() == 1
                && problems[0].contains("SpiderIPPool p: spec.subnet")
                && problems[0].contains("declare another pool"),
            "{problems:?}"
        );

        pools.release(&owner).await.unwrap();
        assert_eq!(problems_at(&mut kept, "10.0.1").await, [""; 0]);
    }
}
