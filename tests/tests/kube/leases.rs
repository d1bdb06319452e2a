//! A pool that nodes share, against a real API server.

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Options, Owner, PoolError, Pools, Request, Reserved},
};
use ebbtide_kube::{self as kube, Cluster, Leases, controller, leader};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::setup::cluster;

const NODES: usize = 20;

/// Returns the number of pods of a node, from 2 to 8, so that no node has its even share.
const fn pods_of(node: usize) -> usize {
    2 + node % 7
}

fn total() -> usize {
    (0..NODES).map(pods_of).sum()
}

/// One agent's catalog, leases and addresses.
struct Node {
    name: String,
    catalog: watch::Receiver<Arc<Catalog>>,
    leases: Arc<Leases>,
    pools: Pools,
}

impl Node {
    async fn start(kubeconfig: &Path, state: &Path, name: String) -> Result<Self> {
        let state = state.join(&name);
        std::fs::create_dir_all(&state)?;
        let client = kube::connect(Some(kubeconfig)).await?;
        let (cluster, mut catalog) = Cluster::start(client, name.clone(), &state);
        let pools = Pools::open(&state, Options::default())?;
        let leases = Leases::start(cluster, pools.clone(), catalog.clone());
        let there = catalog.wait_for(|catalog| catalog.pool("shared").is_some());
        timeout(Duration::from_secs(60), there)
            .await
            .context("the pool never came")??;
        Ok(Self {
            name,
            catalog,
            leases,
            pools,
        })
    }

    /// Does what ADD does: reserves, waits for a lease, commits.
    async fn add(&self, pod: usize) -> Result<IpAddr> {
        let owner = Owner {
            network: "test".into(),
            container_id: format!("{}-{pod}", self.name),
            interface: "eth0".into(),
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let catalog = Arc::clone(&self.catalog.borrow());
            match self
                .pools
                .reserve(&Request::new(&owner, &self.name, &catalog))
            {
                Ok(Reserved::New(grant)) => {
                    let held = grant.commit(serde_json::Value::Null).await?;
                    return Ok(held.assigned[0].address);
                }
                Ok(Reserved::Existing(_)) => anyhow::bail!("{owner} had an address before"),
                Err(PoolError::Full(full)) => {
                    let more = self.leases.more(&full, deadline).await;
                    ensure!(more, "{owner}: {full}");
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_nodes_share_a_pool_of_exactly_as_many_addresses_as_there_are_pods() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let kubeconfig = cluster.kubeconfig();
    let pool = format!(
        "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {{name: shared}}\n\
         spec: {{subnet: 10.9.0.0/16, default: true, ips: [10.9.1.0-10.9.1.{}]}}\n",
        total() - 1
    );
    cluster.apply(&pool)?;
    // The first change creates the ConfigMap.
    let client = kube::connect(Some(&kubeconfig)).await?;
    let elected = Cluster::start_controller(client, "controller".into());
    tokio::spawn(leader::lead(elected, controller::work));
    let state = tempfile::tempdir()?;
    let mut nodes = Vec::new();
    for node in 0..NODES {
        let name = format!("node{node}");
        nodes.push(Arc::new(
            Node::start(&kubeconfig, state.path(), name).await?,
        ));
    }
    let mut pods = JoinSet::new();
    for (number, node) in nodes.iter().enumerate() {
        for pod in 0..pods_of(number) {
            let node = Arc::clone(node);
            pods.spawn(async move { node.add(pod).await });
        }
    }
    let mut addresses = BTreeSet::new();
    while let Some(added) = pods.join_next().await {
        let address = added??;
        ensure!(addresses.insert(address), "{address} was given out twice");
    }
    ensure!(
        addresses.len() == total(),
        "{} of {}",
        addresses.len(),
        total()
    );
    Ok(())
}
