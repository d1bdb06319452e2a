//! The agent itself: its state, its start, and the operations on pods' interfaces that requests and the reconciler
//! share.

mod boot;
pub(crate) mod chained;
mod cloud;
mod declared;
mod drift;
pub mod formats;
pub(crate) mod forwarding_backup;
mod interfaces;
mod locks;
mod nic_modes;
mod nics;
mod pending;
pub(crate) mod qdiscs_made;
mod records;
mod rule_base;
mod running;
mod share;
pub(crate) mod sysctl_backup;
mod view;
mod withheld;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
};

use chained::ChainedInterfaces;
pub use drift::Drift;
use drift::Uplink;
use interfaces::Interfaces;
pub use locks::WriteGuard;
use locks::{ContainerLocks, ReadGuard};
pub use nic_modes::NicMode;
use nics::Nics;
pub use pending::{Pending, PendingAddresses};
pub use running::{Running, RunningContainer};
use tokio::sync::watch;
use tracing::{info, warn};
pub use view::View;

use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Owner, Pools},
};
use ebbtide_kernel::{
    datapath::Datapath,
    netlink::{Netlink, model::Sysctl, sysctl},
    node::{self, CurrentFacts, NodeFacts},
    podnet::{self, PodNet},
};
use ebbtide_kube::{Cluster, Leases};
use ebbtide_types::{Family, private, settings::Settings, timing};

use crate::{
    cloud::{Cloud, Parts, follow},
    install::InstallStatus,
    metrics::Metrics,
    page::PageStatus,
    reconcile::{Scope, Work},
    traces::Traces,
};

/// The directories that the agent keeps its state in.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Survives reboots: the assigned addresses, and other records.
    pub state: PathBuf,
    /// On a bpf file system: the pinned maps.
    pub bpf: PathBuf,
}

/// The node agent: everything that a request needs.
#[derive(Debug)]
pub struct Agent {
    /// This node's name, as pools refer to it.
    pub node_name: String,
    /// The administrator's settings.
    pub settings: Settings,
    /// The address pools and their store.
    pub pools: Pools,
    /// The host's netlink socket.
    pub host: Netlink,
    /// The eBPF programs and their maps.
    pub datapath: Datapath,
    /// The state watched from the API server, if there is one.
    pub cluster: Option<Arc<Cluster>>,
    /// This node's leases of pools that nodes share, if there is an API server.
    pub leases: Option<Arc<Leases>>,
    /// Whether the plugin and its configuration are on the host.
    pub installation: InstallStatus,
    catalog: watch::Receiver<Arc<Catalog>>,
    interfaces: Mutex<Interfaces>,
    /// Per-container locks: requests for one container run one at a time, as a DEL must not overtake its ADD.
    pub locks: ContainerLocks,
    /// The node's NICs, addresses and gateways.
    pub facts: Arc<CurrentFacts>,
    /// The reconciler's work queue and the status of its items.
    pub work: Work,
    chained: Arc<ChainedInterfaces>,
    nics: Nics,
    withheld: Mutex<withheld::Last>,
    /// The number of interfaces that existed before the agent and are not reconciled yet.
    not_reconciled: AtomicUsize,
    /// The NIC that each interface was last attached to.
    uplinks: Mutex<HashMap<Owner, Uplink>>,
    /// Held by a command that makes the first child of a NIC, and by one that checks whether it does.
    pub first_child: tokio::sync::Mutex<()>,
    /// Addresses of other plugins that are being assigned to pods at this moment.
    pub pending: PendingAddresses,
    /// What the cloud has assigned to the NICs.
    pub cloud: Arc<Cloud>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where the page for people is.
    pub page: PageStatus,
    /// Of which traces requests are a part.
    pub traces: Traces,
}

/// A set of interfaces that nobody starts to change until this is dropped.
#[derive(Debug)]
pub struct IdleInterfaces {
    /// The interfaces, in the order of [`Agent::interfaces`].
    pub interfaces: Vec<(Owner, Arc<PodNet>)>,
    /// Whether these are all interfaces that were asked for.
    pub is_complete: bool,
    _locks: Vec<ReadGuard>,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The pools' store cannot be opened.
    #[error(transparent)]
    Pool(#[from] ebbtide_ipam::pool::OpenError),
    /// The eBPF programs cannot be loaded.
    #[error(transparent)]
    Datapath(#[from] ebbtide_kernel::datapath::Error),
    /// The kernel refused a netlink request.
    #[error(transparent)]
    Netlink(#[from] ebbtide_kernel::netlink::Error),
    /// The directory of chained interfaces' records cannot be made.
    #[error("make the directory `chained` in the state directory: {0}")]
    ChainedInterfaces(std::io::Error),
}

impl Agent {
    /// Opens the store, the programs and the host's netlink socket.
    ///
    /// # Errors
    /// If one of them cannot be opened; the error says what to do.
    pub fn open(
        node_name: String,
        settings: Settings,
        directories: &Directories,
        catalog: watch::Receiver<Arc<Catalog>>,
    ) -> Result<Self, StartError> {
        let pools = Pools::open(
            &directories.state,
            ebbtide_ipam::pool::Options {
                cooldown: std::time::Duration::from_secs(settings.cooldown_seconds),
                sticky: settings.sticky_addresses,
            },
        )?;
        private::restrict_permissions(&directories.state);
        let datapath =
            Datapath::open(&directories.bpf, settings.marks(), settings.node_port_range)?;
        let host = Netlink::open("in the host")?;
        let chained =
            ChainedInterfaces::open(&directories.state).map_err(StartError::ChainedInterfaces)?;
        Ok(Self {
            node_name,
            settings,
            pools,
            host,
            datapath,
            cluster: None,
            leases: None,
            installation: InstallStatus::default(),
            catalog,
            interfaces: Mutex::default(),
            locks: ContainerLocks::default(),
            facts: Arc::default(),
            work: Work::default(),
            chained: Arc::new(chained),
            nics: Nics::new(&directories.state),
            withheld: Mutex::default(),
            not_reconciled: AtomicUsize::new(0),
            uplinks: Mutex::default(),
            first_child: tokio::sync::Mutex::default(),
            pending: PendingAddresses::default(),
            cloud: Arc::default(),
            metrics: Metrics::default(),
            page: PageStatus::default(),
            traces: Traces::default(),
        })
    }

    /// Adds what the API server provides about pods and leases.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Option<Arc<Cluster>>) -> Self {
        self.leases = cluster
            .as_ref()
            .map(|cluster| Leases::start(Arc::clone(cluster), self.pools.clone(), self.catalogs()));
        self.cluster = cluster;
        self
    }

    /// Adds what was counted before the agent was there.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Adds where spans are exported to.
    #[must_use]
    pub fn with_traces(mut self, traces: Traces) -> Self {
        self.traces = traces;
        self
    }

    /// Adds the pools that the cloud's metadata gives, as networks want them. Ends with the runtime.
    #[must_use]
    pub async fn following_cloud(mut self, state_dir: &Path) -> Self {
        let parts = Parts {
            node: self.node_name.clone(),
            settings: self.settings.clone(),
            pools: self.pools.clone(),
            cloud: Arc::clone(&self.cloud),
            facts: Arc::clone(&self.facts),
            host: self.host.clone(),
        };
        self.cloud.restore_asked_back(state_dir);
        self.catalog = follow(self.catalog, state_dir, parts).await;
        self
    }

    /// Returns the current catalog.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.borrow())
    }

    /// Returns a receiver of the catalog, to wait for changes of it.
    #[must_use]
    pub fn catalogs(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// Returns the settings, completed with the cluster's values where the administrator set none.
    #[must_use]
    pub fn settings_in(&self, catalog: &Catalog) -> Settings {
        let mut settings = self.settings.clone();
        if settings.service_cidrs.is_empty() {
            settings.service_cidrs = catalog.service_cidrs().to_vec();
        }
        settings
    }

    /// Returns the interfaces of the containers that `is_meant` accepts, without those that are being made or removed.
    pub fn idle_interfaces(&self, is_meant: impl Fn(&str) -> bool) -> IdleInterfaces {
        let mut locks: HashMap<String, Option<ReadGuard>> = HashMap::new();
        let all = || {
            let mut all = self.interfaces();
            all.retain(|(owner, _)| is_meant(&owner.container_id));
            all
        };
        for (owner, _) in all() {
            locks
                .entry(owner.container_id)
                .or_insert_with_key(|container| self.locks.try_read(container));
        }
        // Read again: what was removed before its lock was taken no longer exists.
        let mut interfaces = all();
        let all = interfaces.len();
        interfaces.retain(|(owner, _)| matches!(locks.get(&owner.container_id), Some(Some(_))));
        IdleInterfaces {
            is_complete: interfaces.len() == all,
            interfaces,
            _locks: locks.into_values().flatten().collect(),
        }
    }

    /// Returns all interfaces, ordered by their pods' names.
    #[must_use]
    pub fn interfaces(&self) -> Vec<(Owner, Arc<PodNet>)> {
        let mut all: Vec<_> = locked(&self.interfaces)
            .iter()
            .map(|(owner, net)| (owner.clone(), Arc::clone(net)))
            .collect();
        all.sort_by(|(a, a_net), (b, b_net)| {
            (&a_net.pod, &a.interface, &a.container_id).cmp(&(
                &b_net.pod,
                &b.interface,
                &b.container_id,
            ))
        });
        all
    }

    /// Returns the interfaces of a container. One that shares a veth pair comes after the one that brought it.
    #[must_use]
    pub fn interfaces_of(&self, container_id: &str) -> Vec<(Owner, Arc<PodNet>)> {
        let mut own = Vec::new();
        self.each_interface(|owner, net| {
            if owner.container_id == container_id {
                own.push((owner.clone(), Arc::clone(net)));
            }
        });
        own.sort_by(|(a, a_net), (b, b_net)| {
            let key = |net: &PodNet| net.shared_veth.is_some();
            (key(a_net), &a.interface).cmp(&(key(b_net), &b.interface))
        });
        own
    }

    /// Calls `look` for every interface, in no order: every ADD does this, and must not pay for sorting.
    pub fn each_interface(&self, mut look: impl FnMut(&Owner, &Arc<PodNet>)) {
        for (owner, net) in locked(&self.interfaces).iter() {
            look(owner, net);
        }
    }

    /// Returns the interface of `owner`, if there is one.
    #[must_use]
    pub fn interface(&self, owner: &Owner) -> Option<Arc<PodNet>> {
        locked(&self.interfaces).get(owner).cloned()
    }

    /// Records that `owner` has `net`, which is durable and about to be in the kernel.
    pub fn insert_interface(&self, owner: Owner, net: Arc<PodNet>) {
        self.work.add_container(&owner.container_id);
        locked(&self.interfaces).insert(owner, net);
    }

    /// Removes an interface from the kernel, then releases its addresses. In this order: an address that is still on a
    /// link is never free.
    ///
    /// # Errors
    /// If the kernel or the store refuses; then the addresses stay reserved.
    pub async fn detach(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        self.metrics.pods.end(&self.datapath, owner, net);
        podnet::remove(net, &self.datapath).await?;
        match net.is_chained() {
            true => self.remove_record(owner, net).await?,
            false => drop(timing::step("write to disk", self.pools.release(owner)).await?),
        }
        self.forget(owner);
        Ok(())
    }

    /// Detaches as [`Agent::detach`], on an operator's request: the addresses are not kept for the pod either.
    ///
    /// # Errors
    /// If the kernel or the store refuses; then the addresses stay reserved.
    pub async fn detach_permanently(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        self.metrics.pods.end(&self.datapath, owner, net);
        podnet::remove(net, &self.datapath).await?;
        match net.is_chained() {
            true => self.remove_record(owner, net).await?,
            false => drop(self.pools.release_permanently(owner).await?),
        }
        self.forget(owner);
        Ok(())
    }

    /// Detaches as [`Agent::detach`] an interface whose ADD failed. Its addresses need no cooldown: they were not
    /// reported to anybody, and nothing was sent from them.
    ///
    /// # Errors
    /// If the kernel or the store refuses; then the addresses stay reserved.
    pub async fn undo_add(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        podnet::remove(net, &self.datapath).await?;
        self.release_unused(owner, net).await
    }

    /// Releases as [`Agent::undo_add`] an interface whose links were not made: links of these names are not Ebbtide's.
    ///
    /// # Errors
    /// If the store refuses; then the addresses stay reserved.
    pub async fn undo_unmade_add(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        podnet::forget(net, &self.datapath)?;
        self.release_unused(owner, net).await
    }

    async fn release_unused(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        match net.is_chained() {
            true => self.remove_record(owner, net).await?,
            false => drop(self.pools.release_unused(owner).await?),
        }
        self.forget(owner);
        Ok(())
    }

    /// Removes the limit of a pod with this number, unless another interface has it, too. The lock is held: an ADD
    /// records its interface before it sets the limit.
    fn forget_limit(&self, number: u16, others: &Interfaces) {
        let has_it = |net: &Arc<PodNet>| net.number() == number && net.bandwidth().is_some();
        if !others.values().any(has_it)
            && let Err(e) = self.datapath.limits.forget(number)
        {
            // No other pod's programs look for it.
            warn!("{e}");
        }
    }

    /// Removes the interface of `owner` from memory. With the last one, the host needs nothing of Ebbtide's any more.
    fn forget(&self, owner: &Owner) {
        locked(&self.uplinks).remove(owner);
        // Its status is removed with it.
        self.work
            .enqueue_container(&owner.container_id, Scope::PLAN);
        let mut interfaces = locked(&self.interfaces);
        let former = interfaces.get(owner).cloned();
        interfaces.remove(owner);
        if let Some(pod) = former.filter(|net| net.bandwidth().is_some()) {
            self.forget_limit(pod.number(), &interfaces);
        }
        if interfaces.is_empty() {
            self.work.enqueue_node();
        }
    }

    /// Releases an interface whose namespace ended without a DEL: its runtime crashed, or never calls it.
    ///
    /// # Errors
    /// Those of [`Agent::detach`].
    pub async fn release_gone(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        self.detach(owner, net).await?;
        info!(pod = %net.pod, %owner, "its network namespace no longer exists: released");
        Ok(())
    }

    fn forward(&self, facts: &NodeFacts) {
        let wanted = forwarding(facts);
        self.nics.record_forwarding(&wanted);
        for setting in wanted {
            if let Err(e) = sysctl::write(&setting) {
                warn!("enable forwarding: {e}; pods will not reach Services");
            }
        }
    }
}

/// Returns the settings that make the node forward, in the order in which they must be written.
#[must_use]
pub fn forwarding(facts: &NodeFacts) -> Vec<Sysctl> {
    let listening = listening_for_ra(&sysctl::root().join("net/ipv6/conf"));
    node::forwarding(&listening, facts.has(Family::V6))
}

/// Returns the NICs whose `accept_ra` is 1, which ignore router advertisements once the node forwards. Empty if it
/// forwards already.
fn listening_for_ra(conf: &Path) -> Vec<String> {
    let value = |link: &str, name: &str| {
        std::fs::read_to_string(conf.join(link).join(name)).map(|text| text.trim().to_owned())
    };
    if value("all", "forwarding").is_ok_and(|forwarding| forwarding == "1") {
        return Vec::new();
    }
    let Ok(links) = std::fs::read_dir(conf) else {
        return Vec::new();
    };
    links
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|link| link != "all" && value(link, "accept_ra").is_ok_and(|ra| ra == "1"))
        .collect()
}

/// Why an interface could not be removed, or its addresses not released.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The kernel refused.
    #[error(transparent)]
    Podnet(#[from] podnet::Error),
    /// The pools' store refused.
    #[error(transparent)]
    Pool(#[from] ebbtide_ipam::pool::PoolError),
    /// The IPAM plugin that assigned the addresses failed to release them.
    #[error("release the addresses at the IPAM plugin: {0}")]
    Delegate(String),
    /// The record of a chained interface could not be written or removed.
    #[error("write the record of the interface: {0}")]
    Record(std::io::Error),
}

/// Locks `mutex`, even if it is poisoned: the guarded maps are never left half changed by a panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
