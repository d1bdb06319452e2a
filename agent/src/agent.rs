//! The agent's parts put together, and what it does before it is ready.

mod before;
mod chained;
mod declared;
mod drift;
mod leaving;
mod locks;
mod nic_modes;
mod nics;
mod pending;
mod place;
mod records;
mod running;
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
pub use leaving::{LeaveError, Left, leave};
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
    install::Standing,
    reconcile::{Scope, Work},
};

/// Where the agent keeps what.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Survives reboots: the addresses.
    pub state: PathBuf,
    /// On a bpf file system: the pinned maps.
    pub bpf: PathBuf,
}

/// Everything a request needs.
#[derive(Debug)]
pub struct Agent {
    /// This node's name, as pools know it.
    pub node_name: String,
    /// The administrator's settings.
    pub settings: Settings,
    /// The addresses.
    pub pools: Pools,
    /// The host's netlink.
    pub host: Netlink,
    /// The programs.
    pub datapath: Datapath,
    /// What the API server says, where there is one.
    pub cluster: Option<Arc<Cluster>>,
    /// This node's share of pools that nodes share, where there is an API server.
    pub leases: Option<Arc<Leases>>,
    /// Whether the host's runtime finds the plugin.
    pub installation: Standing,
    catalog: watch::Receiver<Arc<Catalog>>,
    interfaces: Mutex<HashMap<Owner, Arc<PodNet>>>,
    /// Requests for one container go one after the other: a DEL must not overtake its ADD.
    pub locks: ContainerLocks,
    /// The node's NICs, addresses and gateways.
    pub facts: CurrentFacts,
    /// What is to be reconciled, and what could not be.
    pub work: Work,
    chained: Arc<ChainedInterfaces>,
    nics: Nics,
    withheld: Mutex<withheld::Last>,
    /// Interfaces that were there before the agent, and that it has not looked at yet.
    not_reconciled: AtomicUsize,
    /// The NIC that each interface was last put on.
    uplinks: Mutex<HashMap<Owner, Uplink>>,
    /// Held by who makes the first child of a NIC, and by who looks whether that is so.
    pub first_child: tokio::sync::Mutex<()>,
    /// Addresses of others that pods are being given at this moment.
    pub pending: PendingAddresses,
}

/// Interfaces that nobody begins to change before this is dropped.
#[derive(Debug)]
pub struct AtRest {
    /// As [`Agent::interfaces`] has them.
    pub interfaces: Vec<(Owner, Arc<PodNet>)>,
    /// Whether these are all that are meant.
    pub are_all: bool,
    _locks: Vec<ReadGuard>,
}

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The pools' store.
    #[error(transparent)]
    Pool(#[from] ebbtide_ipam::pool::OpenError),
    /// The programs.
    #[error(transparent)]
    Datapath(#[from] ebbtide_kernel::datapath::Error),
    /// The kernel.
    #[error(transparent)]
    Netlink(#[from] ebbtide_kernel::netlink::Error),
    /// The records of interfaces without a pool.
    #[error("make the directory `chained` in the state directory: {0}")]
    ChainedInterfaces(std::io::Error),
}

impl Agent {
    /// Opens the store, the programs and the host's netlink.
    ///
    /// # Errors
    /// When one of them cannot be had; the error says what to do.
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
        private::narrow(&directories.state);
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
            installation: Standing::default(),
            catalog,
            interfaces: Mutex::default(),
            locks: ContainerLocks::default(),
            facts: CurrentFacts::default(),
            work: Work::default(),
            chained: Arc::new(chained),
            nics: Nics::new(&directories.state),
            withheld: Mutex::default(),
            not_reconciled: AtomicUsize::new(0),
            uplinks: Mutex::default(),
            first_child: tokio::sync::Mutex::default(),
            pending: PendingAddresses::default(),
        })
    }

    /// With what the API server says of pods.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Option<Arc<Cluster>>) -> Self {
        self.leases = cluster
            .as_ref()
            .map(|cluster| Leases::start(Arc::clone(cluster), self.pools.clone(), self.catalogs()));
        self.cluster = cluster;
        self
    }

    /// The catalog as it is now.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.borrow())
    }

    /// The catalog, for who waits for another one.
    #[must_use]
    pub fn catalogs(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// The settings, with what the cluster tells where the administrator does not.
    #[must_use]
    pub fn settings_in(&self, catalog: &Catalog) -> Settings {
        let mut settings = self.settings.clone();
        if settings.service_cidrs.is_empty() {
            settings.service_cidrs = catalog.service_cidrs().to_vec();
        }
        settings
    }

    /// Of the interfaces of such containers, those that nobody is making or removing.
    pub fn interfaces_at_rest(&self, is_meant: impl Fn(&str) -> bool) -> AtRest {
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
        // What was removed before the lock came is not there any more.
        let mut interfaces = all();
        let all = interfaces.len();
        interfaces.retain(|(owner, _)| matches!(locks.get(&owner.container_id), Some(Some(_))));
        AtRest {
            are_all: interfaces.len() == all,
            interfaces,
            _locks: locks.into_values().flatten().collect(),
        }
    }

    /// All interfaces, in the order of their pods' names.
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

    /// The interfaces of a container. One that shares a pair comes after the one that brought it.
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

    /// Looks at every interface, in no order: what every ADD does must not sort them.
    pub fn each_interface(&self, mut look: impl FnMut(&Owner, &Arc<PodNet>)) {
        for (owner, net) in locked(&self.interfaces).iter() {
            look(owner, net);
        }
    }

    /// The interface of `owner`, if there is one.
    #[must_use]
    pub fn interface(&self, owner: &Owner) -> Option<Arc<PodNet>> {
        locked(&self.interfaces).get(owner).cloned()
    }

    /// Notes that `owner` has `net`: it is durable, and about to be in the kernel.
    pub fn note(&self, owner: Owner, net: Arc<PodNet>) {
        self.work.add_container(&owner.container_id);
        locked(&self.interfaces).insert(owner, net);
    }

    /// Takes an interface out of the kernel, then gives its addresses back. In this order: an
    /// address that is still on a link is never free.
    ///
    /// # Errors
    /// When the kernel or the store refuses; then the addresses stay taken.
    pub async fn detach(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        podnet::remove(net, &self.datapath).await?;
        match net.is_chained() {
            true => self.dismiss(owner, net).await?,
            false => drop(timing::step("write to disk", self.pools.release(owner)).await?),
        }
        self.forget(owner);
        Ok(())
    }

    /// As [`Agent::detach`], because a person wants it: the addresses do not wait for the pod either.
    ///
    /// # Errors
    /// When the kernel or the store refuses; then the addresses stay taken.
    pub async fn detach_for_good(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        podnet::remove(net, &self.datapath).await?;
        match net.is_chained() {
            true => self.dismiss(owner, net).await?,
            false => drop(self.pools.release_for_good(owner).await?),
        }
        self.forget(owner);
        Ok(())
    }

    /// As [`Agent::detach`], for an interface whose ADD failed: nobody was told its addresses and
    /// nothing was sent from them, so they need no rest.
    ///
    /// # Errors
    /// When the kernel or the store refuses; then the addresses stay taken.
    pub async fn abandon(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        podnet::remove(net, &self.datapath).await?;
        self.give_back_unused(owner, net).await
    }

    /// As [`Agent::abandon`], where no link was made: what has the names of this interface's is others'.
    ///
    /// # Errors
    /// When the store refuses; then the addresses stay taken.
    pub async fn abandon_unmade(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        podnet::forget(net, &self.datapath)?;
        self.give_back_unused(owner, net).await
    }

    async fn give_back_unused(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        match net.is_chained() {
            true => self.dismiss(owner, net).await?,
            false => drop(self.pools.release_unused(owner).await?),
        }
        self.forget(owner);
        Ok(())
    }

    /// Notes that `owner` has nothing any more. The last one leaves a host that needs nothing of ours.
    fn forget(&self, owner: &Owner) {
        locked(&self.uplinks).remove(owner);
        // Its status goes with it.
        self.work.name_container(&owner.container_id, Scope::PLAN);
        let mut interfaces = locked(&self.interfaces);
        interfaces.remove(owner);
        if interfaces.is_empty() {
            self.work.name_node();
        }
    }

    /// Releases an interface whose namespace ended without a DEL: its runtime crashed, or never calls it.
    ///
    /// # Errors
    /// As [`Agent::detach`]'s.
    pub async fn release_gone(&self, owner: &Owner, net: &PodNet) -> Result<(), DetachError> {
        self.detach(owner, net).await?;
        info!(pod = %net.pod, %owner, "its namespace is gone: released");
        Ok(())
    }

    fn forward(&self, facts: &NodeFacts) {
        for setting in forwarding(facts) {
            if let Err(e) = sysctl::write(&setting) {
                warn!("pods will not reach Services: {e}");
            }
        }
    }
}

/// What makes the node forward, in the order in which it is to be set.
#[must_use]
pub fn forwarding(facts: &NodeFacts) -> Vec<Sysctl> {
    let listening = listening_for_ra(&sysctl::root().join("net/ipv6/conf"));
    node::forwarding(&listening, facts.has(Family::V6))
}

/// NICs whose `accept_ra` is 1: those that stop listening once the node forwards. None if it
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

/// An interface could not be removed, or its addresses not given back.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The kernel's part.
    #[error(transparent)]
    Podnet(#[from] podnet::Error),
    /// The store's part.
    #[error(transparent)]
    Pool(#[from] ebbtide_ipam::pool::PoolError),
    /// The IPAM plugin that gave the addresses.
    #[error("give the addresses back: {0}")]
    Delegate(String),
    /// A record of an interface without a pool.
    #[error("write down the interface: {0}")]
    Record(std::io::Error),
}

/// What was being changed when a thread panicked is a map of values: it is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
