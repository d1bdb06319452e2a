//! The agent's side of Kubernetes without the kernel's: everything but interfaces.

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

/// How long things may take that have no time of their own: this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node's agent. Dropped it dies at once, as by SIGKILL; what is on disk stays.
#[derive(Debug)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// The addresses.
    pub pools: Pools,
    cluster: Arc<Cluster>,
    catalog: watch::Receiver<Arc<Catalog>>,
    leases: Arc<Leases>,
    runtime: Option<Runtime>,
}

impl Member {
    /// Starts an agent with the state that is in `state`, `cooldown` as its rest.
    ///
    /// # Errors
    /// When it cannot be started. That the API server is away is none.
    pub fn start(kubeconfig: &Path, state: &Path, node: &str, cooldown: Duration) -> Result<Self> {
        Self::start_with(kubeconfig, state, node, cooldown, leases::Pace::default())
    }

    /// As [`Member::start`], with a pace of its own: when leases that are not used go back.
    ///
    /// # Errors
    /// When it cannot be started. That the API server is away is none.
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
    /// When it does not come.
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

    /// Waits until `look` is true of its catalog, and gives that.
    ///
    /// # Errors
    /// The last one, when it does not become so.
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

    /// What it knows of a pod of the default namespace.
    ///
    /// # Errors
    /// When the API server has no such pod.
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
    /// When that does not become so.
    pub fn is_open(&self) -> Result<()> {
        self.block_on(async {
            let deadline = Instant::now() + PATIENCE;
            while !self.cluster.is_taken_over().await {
                ensure!(Instant::now() < deadline, "addresses are never handed out");
            }
            Ok(())
        })
    }

    /// What ADD decides for `eth0` of a pod of the default namespace, by the pod's own annotations: ask
    /// for the pod, choose, wait up to `patience` for a lease, write down.
    ///
    /// # Errors
    /// Why there is no address.
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

    /// What DEL gives back.
    ///
    /// # Errors
    /// When it cannot be written down.
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
