//! The host's NICs: what they need, given the facts, the pools and the pods; and putting it there.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use ipnet::IpNet;
use tracing::{error, warn};

use super::{Agent, locked};
use crate::{
    catalog::Catalog,
    netlink::{
        Batch,
        model::{NamespacePlan, Rule},
    },
    node::{self, HostPlan, Nic, NodeFacts, PoolNetwork},
    podnet::{PodAddress, PodNet},
};

/// What was last put on the host's NICs, and what it was made of.
#[derive(Debug, Default)]
pub(super) struct Nics {
    /// One prepares at a time.
    turn: tokio::sync::Mutex<()>,
    prepared: Mutex<Option<Prepared>>,
}

#[derive(Debug)]
struct Prepared {
    facts: Arc<NodeFacts>,
    catalog: Arc<Catalog>,
    /// The networks of the pods that were there.
    networks: BTreeSet<PodNetwork>,
    plan: Arc<HostPlan>,
}

/// A network that a pod has an address from: its pool, its subnet and its gateway behind a NIC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PodNetwork {
    master: String,
    pool: String,
    subnet: IpNet,
    gateway: Option<IpAddr>,
}

impl Agent {
    /// The host's routing for `net`'s master, with the networks of every pool behind it.
    #[must_use]
    pub fn nic_plan(&self, facts: &NodeFacts, net: &PodNet) -> NamespacePlan {
        let Some(nic) = net.master().and_then(|master| facts.nic(master)) else {
            return NamespacePlan::default();
        };
        let networks = self.networks(nic, facts, &self.in_use(Some(net)));
        node::nic_plan(nic, &networks, &self.settings)
    }

    /// What of it is not there already since [`Agent::prepare_nics`] put it there.
    #[must_use]
    pub fn missing_nic_plan(&self, facts: &Arc<NodeFacts>, net: &PodNet) -> NamespacePlan {
        let carried = self.nics().is_some_and(|plan| {
            let mut nics = plan.nics.iter();
            nics.any(|nic| Some(nic.name.as_str()) == net.master())
        });
        if carried && self.are_prepared(facts, Some(net)) {
            return NamespacePlan::default();
        }
        self.nic_plan(facts, net)
    }

    /// The networks of all pods, `net` among them.
    fn in_use(&self, net: Option<&PodNet>) -> BTreeSet<PodNetwork> {
        let catalog = self.catalog();
        locked(&self.interfaces)
            .values()
            .map(AsRef::as_ref)
            .chain(net)
            .flat_map(|net| networks_of(net, &catalog))
            .collect()
    }

    /// The networks behind a NIC: of the pools that its pods have addresses from, then of those in
    /// the catalog that the NIC itself has an address in, then what the main table's default routes
    /// say.
    fn networks(
        &self,
        nic: &Nic,
        facts: &NodeFacts,
        in_use: &BTreeSet<PodNetwork>,
    ) -> Vec<PoolNetwork> {
        let in_use = in_use.iter().filter(|network| network.master == nic.name);
        let catalog = self.catalog();
        let mut declared: Vec<_> = catalog
            .pools()
            .iter()
            .filter(|pool| pool.node_names.is_empty() || pool.node_names.contains(&self.node_name))
            .filter(|pool| {
                nic.addresses
                    .iter()
                    .any(|net| pool.subnet.contains(&net.addr()))
            })
            .map(|pool| (pool.name.clone(), pool.subnet.trunc(), pool.gateway))
            .collect();
        declared.sort();
        let pools = in_use
            .map(|network| (network.subnet, network.gateway))
            .chain(declared.into_iter().map(|(_, subnet, via)| (subnet, via)))
            .map(|(subnet, gateway)| PoolNetwork { subnet, gateway });
        let mut networks: Vec<PoolNetwork> = Vec::new();
        for network in pools.chain(node::default_networks(nic, &facts.defaults)) {
            if !networks.contains(&network) {
                networks.push(network);
            }
        }
        networks
    }

    /// Puts the programs, tables and rules on the host's NICs that make replies leave by the NIC
    /// their request came in on, and takes away what earlier facts had asked for. Does nothing if
    /// nothing has changed since the last time; `net` is the pod that this is for, if one is.
    pub async fn prepare_nics(&self, facts: &Arc<NodeFacts>, net: Option<&PodNet>) {
        if self.are_prepared(facts, net) {
            return;
        }
        let _turn = self.nics.turn.lock().await;
        if self.are_prepared(facts, net) {
            return;
        }
        let last = self.nics();
        let steer = match facts.nic(node::STEER) {
            Some(link) if link.up && last.is_some() => Some(link.ifindex),
            _ => node::steer(&self.host).await,
        };
        let catalog = self.catalog();
        let in_use = self.in_use(net);
        let known = self.datapath.host.marks();
        let networks = |nic: &Nic| self.networks(nic, facts, &in_use);
        let plan = node::host_plan(facts, networks, &known, steer, &self.settings);
        let plan = match last {
            Some(last) if *last == plan => last,
            last => {
                self.say_which_have_no_mark(&plan);
                if let Err(e) = node::apply(&plan, steer, facts, &self.host, &self.datapath).await {
                    error!("replies may leave by another NIC than the request's: {e}");
                    return;
                }
                let gone = last.as_deref().map(|last| without(last, &plan));
                self.delete_rules(gone.unwrap_or_default()).await;
                Arc::new(plan)
            }
        };
        *locked(&self.nics.prepared) = Some(Prepared {
            facts: Arc::clone(facts),
            catalog,
            networks: in_use,
            plan,
        });
    }

    /// Whether the NICs were prepared for these facts, the manifests as they are, and `net`.
    fn are_prepared(&self, facts: &Arc<NodeFacts>, net: Option<&PodNet>) -> bool {
        let catalog = self.catalog();
        locked(&self.nics.prepared).as_ref().is_some_and(|last| {
            Arc::ptr_eq(&last.facts, facts)
                && Arc::ptr_eq(&last.catalog, &catalog)
                && net.is_some_and(|net| {
                    networks_of(net, &catalog).all(|network| last.networks.contains(&network))
                })
        })
    }

    fn say_which_have_no_mark(&self, plan: &HostPlan) {
        for nic in plan.nics.iter().filter(|nic| nic.mark == 0) {
            warn!(
                nic = nic.name,
                "nicMarks has too few bits for it: what comes in here is answered by the routing \
                 table, and put right at the NIC's egress"
            );
        }
    }

    /// Routes go with their link; rules that name one stay, and would catch the next link of that
    /// name.
    async fn delete_rules(&self, rules: Vec<Rule>) {
        let mut batch = Batch::default();
        for rule in &rules {
            batch.delete_rule(rule);
        }
        for failure in batch.run_all(&self.host).await {
            warn!("{failure}");
        }
    }

    /// What was last put on the host's NICs.
    #[must_use]
    pub fn nics(&self) -> Option<Arc<HostPlan>> {
        let prepared = locked(&self.nics.prepared);
        prepared.as_ref().map(|last| Arc::clone(&last.plan))
    }
}

/// The gateway of an address: as its pool declares it now; of a pool that is gone, as it was. One that
/// the pod itself names stays.
pub(super) fn gateway_now(net: &PodNet, own: &PodAddress, catalog: &Catalog) -> Option<IpAddr> {
    let spec = net.spec.as_ref();
    let is_named = spec.is_some_and(|spec| spec.gateway_for(own.address.addr()).is_some());
    let mut pools = catalog.pools().iter();
    let declared = pools.find(|pool| pool.name == own.pool && !net.is_guest());
    match declared.filter(|_| !is_named) {
        Some(pool) => pool.gateway,
        None => own.gateway,
    }
}

fn networks_of<'a>(net: &'a PodNet, catalog: &'a Catalog) -> impl Iterator<Item = PodNetwork> + 'a {
    net.addresses.iter().filter_map(|own| {
        Some(PodNetwork {
            master: net.master()?.to_owned(),
            pool: own.pool.clone(),
            subnet: own.address.trunc(),
            gateway: gateway_now(net, own, catalog),
        })
    })
}

/// The rules that `last` has and `plan` has not.
fn without(last: &HostPlan, plan: &HostPlan) -> Vec<Rule> {
    let rules = last.plan.rules.iter();
    rules
        .filter(|rule| !plan.plan.rules.contains(rule))
        .cloned()
        .collect()
}
