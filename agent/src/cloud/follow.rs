//! Follows the metadata service, and publishes catalogs with the pools that it gives.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ebbtide_cloud::{
    Dmi, Endpoint, Provider, ReadError, Reading, Service,
    ledger::{Change, Ledger},
    saved::Saved,
};
use ebbtide_ipam::{
    catalog::{Catalog, DerivedNote, publish},
    pool::Pools,
};
use ebbtide_kernel::{
    netlink::Netlink,
    node::{CurrentFacts, NodeFacts},
};
use ebbtide_types::settings::Settings;
use ipnet::IpNet;
use tokio::{sync::watch, time::sleep};
use tracing::{debug, info, warn};

use super::{
    Cloud,
    derive::{Derived, derive},
};

/// How long the service is asked more often after something changed.
const HURRY: Duration = Duration::from_secs(60);
/// The pause between reads then.
const HURRIED: Duration = Duration::from_secs(2);
/// The least pause between two reads, whoever asks.
const LEAST: Duration = Duration::from_millis(500);
/// How long a NIC is followed that no declared network wants, after the latest request that found no address. It stays as
/// long as pods have addresses of it.
const REQUESTED: Duration = Duration::from_secs(3600);
/// The longest pause after failures.
const MOST: Duration = Duration::from_secs(300);

/// The parts of the agent that the follower needs.
pub(crate) struct Parts {
    /// The node's name.
    pub(crate) node: String,
    /// The administrator's settings.
    pub(crate) settings: Settings,
    /// Who has which address.
    pub(crate) pools: Pools,
    /// Shared with the rest of the agent.
    pub(crate) cloud: Arc<Cloud>,
    /// The node's links.
    pub(crate) facts: Arc<CurrentFacts>,
    /// The host's netlink socket.
    pub(crate) host: Netlink,
}

/// Returns a receiver of `declared`'s catalogs with the pools that the metadata gives. Ends with the runtime.
///
/// The first one has what was usable before the agent's restart. An agent whose networks do not want the metadata asks nobody.
pub(crate) async fn follow(
    declared: watch::Receiver<Arc<Catalog>>,
    state_dir: &Path,
    parts: Parts,
) -> watch::Receiver<Arc<Catalog>> {
    let provider = Provider::find(parts.settings.cloud, &Dmi::read(Path::new("/sys")));
    let (saved, history) = Saved::load(state_dir);
    let ledger = match history {
        Ok(ledger) => ledger.unwrap_or_default(),
        Err(e) => {
            warn!("{e}");
            Ledger::default()
        }
    };
    {
        let mut state = parts.cloud.state();
        state.provider = Some(provider.clone().map_err(|e| e.to_string()));
        state.ledger = ledger.clone();
    }
    let first = Arc::clone(&declared.borrow());
    let (sender, receiver) = watch::channel(first);
    let mut follower = Follower {
        declared,
        sender,
        saved: Some(saved),
        ledger,
        parts,
        start: Instant::now(),
        facts: None,
    };
    if let Ok(provider) = provider {
        follower.publish(provider).await;
    }
    tokio::spawn(follower.run(provider.map_err(|e| e.to_string())));
    receiver
}

struct Follower {
    declared: watch::Receiver<Arc<Catalog>>,
    sender: watch::Sender<Arc<Catalog>>,
    /// None while a thread writes.
    saved: Option<Saved>,
    ledger: Ledger,
    parts: Parts,
    start: Instant,
    /// The node as it was when the ledger was last published.
    facts: Option<Arc<NodeFacts>>,
}

impl Follower {
    async fn run(mut self, provider: Result<Provider, String>) {
        let provider = match provider {
            Ok(provider) => provider,
            Err(why) => return self.without_cloud(&why).await,
        };
        let endpoint = self.parts.settings.metadata_endpoint.as_deref();
        let endpoint = match endpoint.map(str::parse::<Endpoint>).transpose() {
            Ok(endpoint) => endpoint,
            Err(e) => return self.without_cloud(&e.to_string()).await,
        };
        let mut service = Service::new(provider, endpoint);
        self.parts.cloud.state().endpoint = service.endpoint().to_string();
        let mut failures = 0;
        let mut hurried_until = Instant::now();
        // The service said when it may be asked again.
        let mut not_before = Instant::now();
        let mut etag: Option<String> = None;
        let cloud = Arc::clone(&self.parts.cloud);
        loop {
            if self.wanted().is_empty() {
                tokio::select! {
                    changed = self.declared.changed() => if changed.is_err() { return },
                    () = cloud.hurried() => {}
                    () = self.sender.closed() => return,
                }
                let number = cloud.begin();
                hurried_until = Instant::now() + HURRY;
                self.publish(provider).await;
                if self.wanted().is_empty() {
                    // Nobody is asked, so nobody is waited for.
                    cloud.end(number);
                }
                continue;
            }
            let began = Instant::now();
            let in_a_hurry = began < hurried_until || self.is_waiting();
            // A service that can tell of changes is asked to, unless somebody waits for an answer. What is new has to be
            // told once more, which is no change.
            let known = etag.take().filter(|_| !in_a_hurry && service.can_follow());
            let number = cloud.begin();
            let read = {
                let asked = async {
                    match &known {
                        None => service.read().await,
                        Some(known) => service.follow(Some(known)).await,
                    }
                };
                tokio::pin!(asked);
                loop {
                    tokio::select! {
                        read = &mut asked => break Some(read),
                        // A service that hangs must not keep what people declare.
                        changed = self.declared.changed() => {
                            if changed.is_err() { return }
                            self.publish(provider).await;
                        }
                        () = cloud.hurried(), if known.is_some() => break None,
                        () = self.sender.closed() => return,
                    }
                }
            };
            let Some(read) = read else {
                hurried_until = Instant::now() + HURRY;
                // A link may have another name.
                self.publish(provider).await;
                continue;
            };
            let pause = match read {
                Ok(reading) => {
                    failures = 0;
                    etag.clone_from(&reading.etag);
                    self.take(reading).await;
                    // The next read of a service that can tell of changes waits for one.
                    if in_a_hurry || self.is_waiting() || service.can_follow() {
                        HURRIED
                    } else {
                        self.interval()
                    }
                }
                Err(e) => {
                    failures += 1;
                    self.failed(&e, failures);
                    if matches!(e, ReadError::Torn) {
                        // Something changes at this moment.
                        hurried_until = hurried_until.max(began + HURRY);
                    }
                    not_before = began + e.pause().unwrap_or_default().min(MOST);
                    backoff(self.interval(), failures, began < hurried_until)
                }
            };
            self.publish(provider).await;
            cloud.end(number);
            let mut until = not_before.max(began + pause.max(LEAST));
            loop {
                let left = until.saturating_duration_since(Instant::now());
                tokio::select! {
                    () = sleep(left) => break,
                    () = cloud.hurried() => {
                        let now = Instant::now();
                        hurried_until = now + HURRY;
                        until = until.min(not_before.max(now + LEAST));
                        // A link may have another name, whatever the service says.
                        self.publish(provider).await;
                    }
                    changed = self.declared.changed() => {
                        if changed.is_err() { return }
                        self.publish(provider).await;
                    }
                    () = self.sender.closed() => return,
                }
            }
        }
    }

    /// Publishes what is declared, where there is no cloud to ask.
    async fn without_cloud(mut self, why: &str) {
        self.parts.cloud.state().provider = Some(Err(why.to_owned()));
        let mut has_warned = false;
        loop {
            let declared = Arc::clone(&self.declared.borrow_and_update());
            let links = declared.metadata_links();
            if !links.is_empty() && !has_warned {
                has_warned = true;
                let links: Vec<&str> = links.into_iter().collect();
                warn!(
                    "networks on {} want the addresses that the cloud assigned: {why}",
                    links.join(", ")
                );
            }
            let note = DerivedNote {
                link: String::new(),
                reason: why.to_owned(),
                more: String::new(),
            };
            publish(&self.sender, declared.with_derived(&[], &[note]));
            tokio::select! {
                changed = self.declared.changed() => if changed.is_err() { return },
                () = self.sender.closed() => return,
                // Somebody waits for a read that will not be.
                () = self.parts.cloud.hurried() => {
                    let number = self.parts.cloud.begin();
                    self.parts.cloud.end(number);
                }
            }
        }
    }

    /// Returns the links whose metadata is wanted.
    fn wanted(&self) -> BTreeSet<String> {
        let declared = self.declared.borrow();
        let links = declared.metadata_links().into_iter().map(str::to_owned);
        let mut wanted: BTreeSet<String> = links.collect();
        let mut state = self.parts.cloud.state();
        let is_late = |at: &Instant| at.elapsed() >= REQUESTED;
        if state.requested.values().any(is_late) {
            let used = self.used_links();
            let is_wanted = |link: &String, at: &mut Instant| !is_late(at) || used.contains(link);
            state.requested.retain(is_wanted);
        }
        wanted.extend(state.requested.keys().cloned());
        wanted
    }

    /// Returns the links of which pods have addresses.
    fn used_links(&self) -> BTreeSet<String> {
        let snapshot = self.parts.pools.snapshot();
        let published = self.sender.borrow();
        let used = published.pools().iter().filter(|pool| {
            let pods = snapshot.pools.get(&pool.name);
            pods.is_some_and(|pods| !pods.is_empty())
        });
        used.filter_map(|pool| pool.derived_of().map(str::to_owned))
            .collect()
    }

    /// Whether something is told that is not believed yet and could be soon.
    fn is_waiting(&self) -> bool {
        let nics = self.ledger.nics();
        nics.flat_map(|(mac, _)| self.ledger.waiting(mac))
            .any(|waiting| {
                waiting
                    .reason
                    .seconds_left()
                    .is_some_and(|left| left <= HURRY.as_secs())
            })
    }

    /// Returns the interval between reads, with jitter: nodes that started together must not ask together.
    fn interval(&self) -> Duration {
        let seconds = self.parts.settings.metadata_seconds;
        let whole = Duration::from_secs(seconds);
        let nanos = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        whole.mul_f64(0.9 + 0.2 * f64::from(nanos % 1000) / 1000.0)
    }

    /// Takes a whole reading into the ledger, durably.
    async fn take(&mut self, reading: Reading) {
        let in_use = self.addresses_in_use();
        let uses = |block: &IpNet| in_use.iter().any(|address| block.contains(address));
        let now = self.start.elapsed().as_secs();
        let changes = self.ledger.observe(now, &reading.view, &uses);
        for change in &changes {
            tell(change, &uses);
        }
        self.save().await;
        let mut state = self.parts.cloud.state();
        state.last_read = Some(SystemTime::now());
        state.failed = None;
        for left_out in &reading.left_out {
            if !state.left_out.contains(left_out) {
                info!("the cloud's metadata: {left_out}");
            }
        }
        state.left_out = reading.left_out;
        state.ledger = self.ledger.clone();
    }

    /// Writes the ledger before anybody gets what is in it.
    async fn save(&mut self) {
        let Some(mut saved) = self.saved.take() else {
            return;
        };
        let ledger = self.ledger.clone();
        let written = tokio::task::spawn_blocking(move || {
            let stored = saved.store(&ledger);
            (saved, stored)
        });
        match written.await {
            Ok((saved, stored)) => {
                self.saved = Some(saved);
                if let Err(e) = stored {
                    warn!(
                        "write what the cloud told: {e}; after a restart the agent does not know it"
                    );
                }
            }
            Err(e) => warn!("write what the cloud told: {e}"),
        }
    }

    fn failed(&self, error: &ReadError, failures: u32) {
        let text = error.to_string();
        let mut state = self.parts.cloud.state();
        let is_known = state
            .failed
            .as_ref()
            .is_some_and(|(known, _)| *known == text);
        if is_known {
            debug!("read the cloud's metadata: {text}");
        } else {
            warn!("read the cloud's metadata: {text}; what was known before stays valid");
        }
        state.failed = Some((text, failures));
    }

    fn addresses_in_use(&self) -> Vec<std::net::IpAddr> {
        let snapshot = self.parts.pools.snapshot();
        let of_pools = snapshot.pools.into_values();
        of_pools
            .flat_map(std::collections::BTreeMap::into_keys)
            .collect()
    }

    /// Publishes the declared catalog with the pools of what is believed now.
    async fn publish(&mut self, provider: Provider) {
        let declared = Arc::clone(&self.declared.borrow_and_update());
        let wanted = self.wanted();
        if wanted.is_empty() {
            publish(&self.sender, declared.with_derived(&[], &[]));
            return;
        }
        match self.parts.facts.get(&self.parts.host).await {
            Ok(facts) => self.facts = Some(facts),
            Err(e) => warn!("read the node's links: {e}; they are taken to be as before"),
        }
        let Some(facts) = &self.facts else {
            let note = DerivedNote::not_read("the node's links cannot be read");
            publish(&self.sender, declared.with_derived(&[], &[note]));
            return;
        };
        let Derived {
            nics,
            mut notes,
            soon,
        } = derive(&self.parts.node, provider, &self.ledger, facts, &wanted);
        self.parts.cloud.state().soon = soon;
        if self.ledger.nics().next().is_none() {
            let state = self.parts.cloud.state();
            let why = state.failed.as_ref().map_or("", |(why, _)| why.as_str());
            notes = vec![DerivedNote::not_read(why)];
        }
        publish(&self.sender, declared.with_derived(&nics, &notes));
    }
}

/// Returns the pause after so many failures on end: twice as long each time.
fn backoff(interval: Duration, failures: u32, in_a_hurry: bool) -> Duration {
    let first = if in_a_hurry { HURRIED } else { interval };
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1).min(10));
    first.saturating_mul(factor).min(MOST.max(interval))
}

/// Writes a change into the log.
fn tell(change: &Change, uses: &impl Fn(&IpNet) -> bool) {
    match change {
        Change::Held { block, .. } if uses(block) => warn!(
            "the cloud's metadata: {change}; a pod has it, and keeps it: if the cloud took it away, the pod is not reached any \
             more, and has to be replaced"
        ),
        Change::NicGone { .. } => warn!("the cloud's metadata: {change}"),
        change => info!("the cloud's metadata: {change}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_fails_is_asked_less_often_but_still() {
        let interval = Duration::from_secs(30);
        for (failures, in_a_hurry, seconds) in [
            (1, false, 30),
            (2, false, 60),
            (4, false, 240),
            (5, false, 300),
            (1_000, false, 300),
            (1, true, 2),
            (3, true, 8),
        ] {
            let pause = backoff(interval, failures, in_a_hurry);
            assert_eq!(pause.as_secs(), seconds, "{failures}, {in_a_hurry}");
        }
        let slow = Duration::from_secs(3600);
        assert_eq!(
            backoff(slow, 3, false),
            slow,
            "never more often than is set"
        );
    }
}
