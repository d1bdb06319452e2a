//! An agent's Kubernetes side without the kernel's side: everything but interfaces.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Options, Owner, PoolError, Pools, Request, Reserved, Subject},
};
use ebbtide_kube::{self as kube, Cluster, Leases, leases};
use ebbtide_types::ObjectName;
use tokio::{
    runtime::Runtime,
    sync::watch,
    time::{Instant, timeout},
};

/// The default time limit: this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent of one node. Dropping it ends it at once, as SIGKILL does; the files on disk stay.
#[derive(Debug)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// Its pools.
    pub pools: Pools,
    cluster: Arc<Cluster>,
    catalog: watch::Receiver<Arc<Catalog>>,
    leases: Arc<Leases>,
    runtime: Option<Runtime>,
}

impl Member {
    /// Starts an agent with the state in `state` and this cooldown.
    ///
    /// # Errors
    /// If it cannot be started. An unreachable API server is not an error.
    pub fn start(kubeconfig: &Path, state: &Path, node: &str, cooldown: Duration) -> Result<Self> {
        Self::start_with(kubeconfig, state, node, cooldown, leases::Pace::default())
    }

    /// As [`Member::start`], with other times after which unused leases are returned.
    ///
    /// # Errors
    /// If it cannot be started. An unreachable API server is not an error.
    pub fn start_with(
        kubeconfig: &Path,
        state: &Path,
        node: &str,
        cooldown: Duration,
        pace: leases::Pace,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let started = runtime.block_on(async {
            std::fs::create_dir_all(state)?;
            let client = kube::connect(Some(kubeconfig)).await?;
            let (cluster, catalog) = Cluster::start(client, node.to_owned(), state);
            let options = Options {
                cooldown,
                sticky: true,
            };
            let pools = Pools::open(state, options)?;
            let leases =
                Leases::start_with(Arc::clone(&cluster), pools.clone(), catalog.clone(), pace);
            let taking_over =
                kube::takeover::run(Arc::clone(&cluster), pools.clone(), state.to_owned());
            tokio::spawn(taking_over);
            tokio::spawn(kube::sticky::run(Arc::clone(&cluster), pools.clone()));
            anyhow::Ok((cluster, catalog, pools, leases))
        });
        let (cluster, catalog, pools, leases) = started?;
        Ok(Self {
            node: node.to_owned(),
            pools,
            cluster,
            catalog,
            leases,
            runtime: Some(runtime),
        })
    }

    fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let runtime = self.runtime.as_ref().context("the agent is dead")?;
        runtime.block_on(future)
    }

    /// Waits until its catalog has the pool.
    ///
    /// # Errors
    /// If it does not arrive in time.
    pub fn knows_pool(&self, pool: &str) -> Result<()> {
        self.block_on(async {
            let mut catalog = self.catalog.clone();
            let there = catalog.wait_for(|catalog| catalog.pool(pool).is_some());
            timeout(PATIENCE, there)
                .await
                .with_context(|| format!("pool {pool} never came"))??;
            Ok(())
        })
    }

    /// Waits until `look` returns true for its catalog, and returns that catalog.
    ///
    /// # Errors
    /// If it does not become so in time; the error is the last one.
    pub fn catalog_once(
        &self,
        look: impl Fn(&Catalog) -> bool,
    ) -> std::result::Result<Arc<Catalog>, Arc<Catalog>> {
        let mut catalog = self.catalog.clone();
        let found = self.block_on(async {
            let found = timeout(PATIENCE, catalog.wait_for(|catalog| look(catalog)));
            Ok(Arc::clone(&*found.await??))
        });
        found.map_err(|_| Arc::clone(&self.catalog.borrow()))
    }

    /// Returns its facts about a pod of the default namespace.
    ///
    /// # Errors
    /// If the API server has no such pod.
    pub fn subject(&self, pod: &str) -> Result<Subject> {
        self.block_on(async {
            let name = ObjectName {
                namespace: "default".into(),
                name: pod.into(),
            };
            Ok(self.cluster.pod(&name, "").await?)
        })
    }

    /// Waits until addresses may be handed out.
    ///
    /// # Errors
    /// If it does not become so in time.
    pub fn is_open(&self) -> Result<()> {
        self.block_on(async {
            let deadline = Instant::now() + PATIENCE;
            while !self.cluster.is_taken_over().await {
                ensure!(Instant::now() < deadline, "addresses are never handed out");
            }
            Ok(())
        })
    }

    /// Does what ADD does for `eth0` of a pod of the default namespace, by the pod's own annotations: reads the pod,
    /// chooses an address, waits up to `patience` for a lease, and commits.
    ///
    /// # Errors
    /// If there is no address; the error has the reason.
    pub fn add(&self, pod: &str, patience: Duration) -> Result<IpAddr> {
        self.block_on(async {
            let gate = self.cluster.is_taken_over().await;
            ensure!(gate, "what Spiderpool's pods have is not known yet");
            let name = ObjectName {
                namespace: "default".into(),
                name: pod.into(),
            };
            let subject = self.cluster.pod(&name, "").await?;
            let owner = owner(pod);
            let deadline = Instant::now() + patience;
            loop {
                let catalog = Arc::clone(&self.catalog.borrow());
                let request = Request {
                    subject: &subject,
                    ..Request::new(&owner, &self.node, &catalog)
                };
                match self.pools.reserve(&request) {
                    Ok(Reserved::New(grant)) => {
                        let held = grant.commit(serde_json::Value::Null).await?;
                        let first = held.assigned.first().context("no address")?;
                        return Ok(first.address);
                    }
                    Ok(Reserved::Existing(_)) => anyhow::bail!("{pod} has an address already"),
                    Err(PoolError::Full(full)) => {
                        let more = self.leases.more(&full, deadline).await;
                        ensure!(more, "{full}");
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        })
    }

    /// Releases the pod's addresses as DEL does.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn del(&self, pod: &str) -> Result<()> {
        self.block_on(async {
            let released = self.pools.release(&owner(pod)).await?;
            ensure!(released.is_some(), "{pod} has nothing");
            Ok(())
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn owner(pod: &str) -> Owner {
    Owner {
        network: "test".into(),
        container_id: pod.into(),
        interface: "eth0".into(),
    }
}
