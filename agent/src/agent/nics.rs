//! The host's part of the datapath on its NICs: plans it from the facts, the pools and the pods, and applies it.
//! Without pods nothing is needed, and nothing is there.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use ebbtide_ipam::catalog::Catalog;
use ebbtide_kernel::{
    datapath,
    netlink::{
        self, Netlink,
        foreign::ForeignRule,
        model::{NamespacePlan, Sysctl, host_net},
    },
    node::{self, Classification, HostPlan, Nic, NicNetworks, NodeFacts, Routed, Rules, Values},
    podnet::PodNet,
};
use ebbtide_types::Family;
use tracing::{error, info, warn};

use super::{
    Agent, forwarding_backup,
    interfaces::addresses,
    locked, qdiscs_made,
    rule_base::RuleBase,
    sysctl_backup::SysctlBackup,
    view::{PodNetwork, View},
};

/// The state last applied to the host's NICs, and its inputs.
#[derive(Debug)]
pub(super) struct Nics {
    /// Serialises preparations.
    lock: tokio::sync::Mutex<()>,
    prepared: Mutex<Option<Prepared>>,
    rule_base: RuleBase,
    state: PathBuf,
    sysctl_backup: SysctlBackup,
    /// Whether forwarding was enabled since there are pods.
    forwards: AtomicBool,
    /// Why the last preparation failed, if it did.
    failure: Mutex<Option<String>>,
}

impl Nics {
    pub(super) fn new(state: &Path) -> Self {
        Self {
            lock: tokio::sync::Mutex::default(),
            prepared: Mutex::default(),
            rule_base: RuleBase::default(),
            state: state.to_owned(),
            sysctl_backup: SysctlBackup::open(state),
            forwards: AtomicBool::new(false),
            failure: Mutex::default(),
        }
    }

    /// Records how the node forwards, before these settings are written.
    pub(super) fn record_forwarding(&self, wanted: &[Sysctl]) {
        forwarding_backup::record(&self.state, wanted);
    }

    /// Records at which NICs the plan's filters need a queueing discipline that is not there yet.
    async fn record_new_qdiscs(
        &self,
        plan: &HostPlan,
        facts: &NodeFacts,
        host: &Netlink,
    ) -> Result<(), netlink::Error> {
        // With TCX the programs of NICs are no filters.
        if datapath::has_tcx() {
            return Ok(());
        }
        let hooks = host.tc_hooks().await?;
        let filters = plan.plan.filters.iter();
        let links = filters.filter_map(|filter| facts.nic(&filter.link));
        let new = links.filter(|nic| !hooks.are_at(nic.ifindex));
        let new = new.map(|nic| (nic.ifindex, nic.name.clone())).collect();
        qdiscs_made::record(&self.state, new);
        Ok(())
    }
}

#[derive(Debug)]
struct Prepared {
    facts: Arc<NodeFacts>,
    catalog: Arc<Catalog>,
    /// The networks of the pods at that time.
    networks: BTreeSet<PodNetwork>,
    /// The families in which the node took addresses of pods for its own.
    held: BTreeSet<Family>,
    plan: Arc<HostPlan>,
    /// The parts of it that the kernel refused. They are tried again.
    refused: Vec<String>,
    /// Whether the host has no more than this: a failed attempt may have added something.
    is_whole: bool,
}

impl Agent {
    /// Returns the plan of the host's routing for `net`'s master.
    #[must_use]
    pub fn nic_plan(&self, facts: &NodeFacts, net: &PodNet) -> NamespacePlan {
        let catalog = self.catalog();
        let base = self.nics.rule_base.base();
        let rules = Rules {
            settings: &self.settings,
            base: base.unwrap_or(self.settings.rule_priority),
            foreign: &[],
        };
        let facts = &*self.without_pods(facts);
        let mut plan = match self.nic_of(facts, net) {
            Some(nic) => {
                let behind =
                    self.view(&catalog)
                        .nic_networks(nic, facts, &self.in_use(facts, Some(net)));
                node::nic_plan(nic, &behind, rules)
            }
            None => NamespacePlan::default(),
        };
        plan.rules.extend(node::pods_rules(facts, rules));
        plan
    }

    /// Returns the part of [`Agent::nic_plan`] that [`Agent::prepare_nics`] has not applied already.
    #[must_use]
    pub fn missing_nic_plan(&self, facts: &Arc<NodeFacts>, net: &PodNet) -> NamespacePlan {
        match self.are_prepared(facts, Some(net)) {
            true => NamespacePlan::default(),
            false => self.nic_plan(facts, net),
        }
    }

    /// Returns the role of each link of the node, and the reason for it.
    #[must_use]
    pub fn classified_links(&self, facts: &NodeFacts) -> Vec<(Nic, Classification)> {
        let catalog = self.catalog();
        let known = self.view(&catalog).known(&self.in_use(facts, None));
        node::classify_all(facts, &known, &self.settings.nics)
    }

    /// Returns the node as the catalog sees it.
    fn view<'a>(&'a self, catalog: &'a Catalog) -> View<'a> {
        View {
            catalog,
            node_name: &self.node_name,
            allowed: &self.settings.foreign_subnets,
        }
    }

    /// Returns the networks of all pods, including `net`.
    fn in_use(&self, facts: &NodeFacts, net: Option<&PodNet>) -> BTreeSet<PodNetwork> {
        let catalog = self.catalog();
        let view = self.view(&catalog);
        locked(&self.interfaces)
            .values()
            .map(AsRef::as_ref)
            .chain(net)
            .filter_map(|net| Some((net, self.nic_of(facts, net)?)))
            .flat_map(|(net, nic)| view.networks_of(net, nic))
            .collect()
    }

    /// Returns the NIC that an interface is on: by the name that it was made with or, if the NIC was renamed since, by
    /// its index.
    #[must_use]
    pub fn nic_of<'a>(&self, facts: &'a NodeFacts, net: &PodNet) -> Option<&'a Nic> {
        let name = net.master()?;
        facts.nic(name).or_else(|| {
            let addresses = net.ips();
            let mut known = addresses
                .iter()
                .filter_map(|ip| self.datapath.host.nic_of(*ip));
            let index = known.next()?;
            facts.nics.iter().find(|nic| nic.ifindex == index)
        })
    }

    /// Returns the facts that plans are made of: what is a pod's is no address of the node's, though a link of the node
    /// has it as well (ec2-net-utils puts it there). Neither is what pods may get beside the link's own.
    #[must_use]
    pub fn without_pods<'a>(&self, facts: &'a NodeFacts) -> Cow<'a, NodeFacts> {
        let catalog = self.catalog();
        // Locked anew each time: nobody waits while pools are searched.
        let is_pods = |address| locked(&self.interfaces).have(address);
        let is_of_a_pool = |address| {
            let mut pools = catalog.pools().iter();
            pools.any(|pool| pool.declared.contains(address))
        };
        let spare = facts.spare(|address| is_pods(address) || is_of_a_pool(address));
        let without = facts.without(is_pods);
        if spare.is_empty() {
            return without.map_or(Cow::Borrowed(facts), Cow::Owned);
        }
        let mut without = without.unwrap_or_else(|| facts.clone());
        without.not_its_own.extend(spare);
        Cow::Owned(without)
    }

    /// Returns the families in which the node takes addresses of pods, including `net`, for its own.
    fn held(&self, facts: &NodeFacts, net: Option<&PodNet>) -> BTreeSet<Family> {
        let new: Vec<IpAddr> = net.into_iter().flat_map(addresses).collect();
        let interfaces = locked(&self.interfaces);
        let on_links = facts.own_addresses().map(|(own, _)| own);
        let on_links = on_links.filter(|own| interfaces.have(*own) || new.contains(own));
        let by_routes = facts.local.iter().filter(|net| {
            interfaces.have_within(net) || new.iter().any(|address| net.contains(address))
        });
        let by_routes = by_routes.map(Family::of_net);
        on_links.map(Family::of).chain(by_routes).collect()
    }

    /// Returns the lowest IPv4 address of the pods on a NIC.
    fn a_pod_on(&self, facts: &NodeFacts, nic: &Nic) -> Option<Ipv4Addr> {
        let interfaces = locked(&self.interfaces);
        let on_it = |net: &&Arc<PodNet>| {
            let own = self.nic_of(facts, net);
            own.is_some_and(|own| own.ifindex == nic.ifindex)
        };
        let addresses = interfaces.values().filter(on_it).flat_map(|net| net.ips());
        let v4 = addresses.filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        v4.min()
    }

    /// Whether any interface needs the host's part, including `net`.
    fn is_needed(&self, net: Option<&PodNet>) -> bool {
        net.is_some() || !locked(&self.interfaces).is_empty()
    }

    /// Applies the programs, tables and rules to the host's NICs that make replies leave by the NIC their request came
    /// in on, and removes what earlier facts required. Does nothing if nothing has changed since the last time; `net`
    /// is the new pod's plan, if there is one. Without any pod, everything is removed.
    pub async fn prepare_nics(&self, facts: &Arc<NodeFacts>, net: Option<&PodNet>) {
        if self.are_prepared(facts, net) {
            return;
        }
        let _lock = self.nics.lock.lock().await;
        if self.are_prepared(facts, net) {
            return;
        }
        let catalog = self.catalog();
        let in_use = self.in_use(facts, net);
        let held = self.held(facts, net);
        let done = match self.is_needed(net) {
            true => {
                if net.is_none() {
                    self.forward_once(facts);
                }
                self.apply_to_nics(facts, &in_use, &held).await
            }
            false => self.remove_from_nics().await.map(|plan| (plan, Vec::new())),
        };
        match done {
            Ok((plan, refused)) => {
                let known = self.refused_on_nics();
                for refusal in refused.iter().filter(|refusal| !known.contains(refusal)) {
                    error!("replies may leave by another NIC than the request's: {refusal}");
                }
                *locked(&self.nics.failure) = None;
                *locked(&self.nics.prepared) = Some(Prepared {
                    facts: Arc::clone(facts),
                    catalog,
                    networks: in_use,
                    held,
                    plan,
                    refused,
                    is_whole: true,
                });
            }
            Err(e) => {
                let failure = locked(&self.nics.failure).replace(e.to_string());
                if failure != Some(e.to_string()) {
                    error!("replies may leave by another NIC than the request's: {e}");
                }
                if let Some(last) = locked(&self.nics.prepared).as_mut() {
                    last.is_whole = false;
                }
            }
        }
    }

    /// Removes from the NICs what a failed ADD added, and leaves what existing pods need.
    pub async fn restore_nics(&self) {
        let facts = match self.facts.get(&self.host).await {
            Ok(facts) => facts,
            Err(e) => {
                error!("remove what a failed ADD added to the NICs: {e}; it is tried again");
                return self.work.enqueue_node();
            }
        };
        let in_use = self.in_use(&facts, None);
        let is_needed = self.is_needed(None);
        let is_as_needed = locked(&self.nics.prepared).as_ref().is_some_and(|last| {
            let is_idle = *last.plan == HostPlan::default();
            last.is_whole && last.networks == in_use && is_idle != is_needed
        });
        if !is_as_needed {
            self.prepare_nics(&facts, None).await;
        }
    }

    /// Enables forwarding for the first pod once it is made. Not earlier: a failed ADD leaves the node as it was.
    pub async fn enable_forwarding(&self) {
        if self.nics.forwards.load(Ordering::Relaxed) {
            return;
        }
        match self.facts.get(&self.host).await {
            Ok(facts) => self.forward_once(&facts),
            Err(e) => {
                error!("enable forwarding for the first pod: {e}; it is tried again");
                self.work.enqueue_node();
            }
        }
    }

    /// Enables forwarding, unless that was done since there are pods.
    fn forward_once(&self, facts: &NodeFacts) {
        if !self.nics.forwards.swap(true, Ordering::Relaxed) {
            self.forward(facts);
        }
    }

    async fn apply_to_nics(
        &self,
        facts: &Arc<NodeFacts>,
        in_use: &BTreeSet<PodNetwork>,
        held: &BTreeSet<Family>,
    ) -> Result<(Arc<HostPlan>, Vec<String>), node::HostError> {
        let facts = &*self.without_pods(facts);
        let last = self.nics().filter(|last| **last != HostPlan::default());
        let redirect_device = match node::find_redirect_device(&self.host).await {
            Some(redirect_device) => Some(redirect_device),
            None => node::redirect_device(&self.host).await,
        };
        let foreign = self.host.foreign_rules().await?;
        let catalog = self.catalog();
        let view = self.view(&catalog);
        let behind = |nic: &Nic| NicNetworks {
            a_pod: self.a_pod_on(facts, nic),
            ..view.nic_networks(nic, facts, in_use)
        };
        let known = view.known(in_use);
        let routed = self.routed(facts, in_use);
        let preferred = self.settings.rule_priority;
        let rule_base = &self.nics.rule_base;
        let rules = Rules {
            settings: &self.settings,
            base: rule_base.update(preferred, &foreign, &routed, Instant::now()),
            foreign: &foreign,
        };
        let marks = self.datapath.host.marks();
        let strict = node::strict_rp_filters();
        let mut plan = node::host_plan(
            facts,
            &known,
            behind,
            &marks,
            redirect_device,
            strict,
            rules,
        );
        plan.plan.rules.extend(node::local_rules(held, rules));
        let is_whole = self.refused_on_nics().is_empty() && self.are_whole();
        if let Some(last) = last.filter(|last| is_whole && **last == plan) {
            return Ok((last, Vec::new()));
        }
        log_nics_without_mark(&plan, rules.values());
        log_moved_marks(&marks, &plan);
        let pods = self.pods_rules();
        self.nics.sysctl_backup.record(&plan.plan.sysctls);
        let recorded = self.nics.record_new_qdiscs(&plan, facts, &self.host);
        recorded.await?;
        let applied = node::apply(
            &plan,
            redirect_device,
            facts,
            &pods,
            &self.host,
            &self.datapath,
        );
        let refused = applied.await?.iter().map(ToString::to_string).collect();
        Ok((Arc::new(plan), refused))
    }

    pub(super) async fn remove_from_nics(&self) -> Result<Arc<HostPlan>, node::HostError> {
        self.nics.forwards.store(false, Ordering::Relaxed);
        match self.nics() {
            Some(last) if *last == HostPlan::default() && self.are_whole() => Ok(last),
            _ => {
                let pods = self.pods_rules();
                node::remove(&pods, &self.host, &self.datapath).await?;
                self.nics.sysctl_backup.restore();
                Ok(Arc::default())
            }
        }
    }

    /// Returns what Ebbtide routes in the host; `in_use` are the networks of all pods.
    fn routed(&self, facts: &NodeFacts, in_use: &BTreeSet<PodNetwork>) -> Routed {
        let catalog = self.catalog();
        let mut routed = self
            .view(&catalog)
            .routed(facts, in_use, &self.settings.nics);
        // Pods with another plugin's addresses are in no pool's subnet.
        let interfaces = locked(&self.interfaces);
        let alone = interfaces.values().flat_map(|net| net.ips());
        routed.pods.extend(alone.map(host_net));
        routed
    }

    /// Returns the priority at which Ebbtide's rules begin, and the foreign rules before it that catch Ebbtide's
    /// traffic, in lookup order.
    #[must_use]
    pub fn preceding_rules(
        &self,
        facts: &NodeFacts,
        foreign: &[ForeignRule],
    ) -> (u32, Vec<ForeignRule>) {
        let routed = self.routed(facts, &self.in_use(facts, None));
        let base = self.nics.rule_base.base();
        let base = base.unwrap_or(self.settings.rule_priority);
        let rules = node::preceding_rules(base, foreign, &routed).cloned();
        (base, rules.collect())
    }

    /// Returns the pods' own part of Ebbtide's routing in the host.
    fn pods_rules(&self) -> node::Pods {
        let interfaces = locked(&self.interfaces);
        let rules = interfaces
            .values()
            .flat_map(|net| net.in_host.rules.iter().cloned());
        node::Pods {
            tables: [self.settings.host_table, self.settings.held_table()],
            rules: rules.collect(),
        }
    }

    /// Whether the NICs were prepared for these facts, the current manifests and `net`.
    fn are_prepared(&self, facts: &Arc<NodeFacts>, net: Option<&PodNet>) -> bool {
        let catalog = self.catalog();
        locked(&self.nics.prepared).as_ref().is_some_and(|last| {
            Arc::ptr_eq(&last.facts, facts)
                && Arc::ptr_eq(&last.catalog, &catalog)
                && *last.plan != HostPlan::default()
                && last.refused.is_empty()
                && last.is_whole
                && net.is_some_and(|net| {
                    let view = self.view(&catalog);
                    let nic = self.nic_of(facts, net);
                    let networks = nic.map_or_else(Vec::new, |nic| view.networks_of(net, nic));
                    let mut networks = networks.iter();
                    networks.all(|network| last.networks.contains(network))
                        && held(facts, net).all(|family| last.held.contains(&family))
                })
        })
    }

    /// Returns what the kernel refused of the NICs' plan, in words. The rest was applied.
    #[must_use]
    pub fn refused_on_nics(&self) -> Vec<String> {
        let prepared = locked(&self.nics.prepared);
        prepared
            .as_ref()
            .map_or_else(Vec::new, |last| last.refused.clone())
    }

    /// Returns why the host's NICs are not in the desired state.
    #[must_use]
    pub fn nic_failures(&self) -> Vec<String> {
        let mut trouble = self.refused_on_nics();
        trouble.extend(locked(&self.nics.failure).clone());
        trouble
    }

    /// Whether the host has no more than the plan that was last applied to its NICs.
    fn are_whole(&self) -> bool {
        let prepared = locked(&self.nics.prepared);
        prepared.as_ref().is_none_or(|last| last.is_whole)
    }

    /// Returns the plan that was last applied to the host's NICs.
    #[must_use]
    pub fn nics(&self) -> Option<Arc<HostPlan>> {
        let prepared = locked(&self.nics.prepared);
        prepared.as_ref().map(|last| Arc::clone(&last.plan))
    }
}

/// The families in which the node takes an address of this pod for its own.
fn held(facts: &NodeFacts, net: &PodNet) -> impl Iterator<Item = Family> {
    let held = addresses(net).filter(|ip| facts.takes(*ip));
    held.map(Family::of)
}

fn log_nics_without_mark(plan: &HostPlan, values: Values<'_>) {
    const WITHOUT: &str = "replies to what comes in here follow the routing table; source-NIC enforcement at the egress corrects them";
    for nic in plan.nics.iter().filter(|nic| nic.mark == 0) {
        let nic = &nic.name;
        match values.blocking_rule() {
            Some(rule) => warn!(
                nic,
                "foreign rules match all free values of nicMarks (the first: {rule}): {WITHOUT}"
            ),
            None => warn!(nic, "nicMarks has too few bits for it: {WITHOUT}"),
        }
    }
}

/// Logs the NICs whose mark has changed; `before` has their marks by interface index.
fn log_moved_marks(before: &[(u32, u32)], plan: &HostPlan) {
    for nic in plan.nics.iter().filter(|nic| nic.mark != 0) {
        let mut before = before.iter();
        let had = before.find(|(index, mark)| *index == nic.ifindex && *mark != 0);
        if let Some((_, mark)) = had.filter(|(_, mark)| *mark != nic.mark) {
            info!(
                nic = nic.name,
                "its mark changed from {mark:#x} to {:#x}: a foreign rule matches the old one, \
                 or nicMarks was changed",
                nic.mark
            );
        }
    }
}
