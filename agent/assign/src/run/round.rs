//! One round: facts, plan, descriptions where the plan wants them, and what is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use ebbtide_kube::Cluster;
use tracing::{info, warn};

use super::{Proof, Types, news, nodes::Nodes};
use crate::{
    ec2::{Ec2, Ec2Error},
    plan::{Note, Plan, Planner, Seen, Settings},
    throttle::Throttle,
};

/// The longest time that a round waits for its turn; what is left is done in the next one.
const PATIENCE: Duration = Duration::from_secs(2);

/// The state of a controller from the time that it is elected.
pub(super) struct Round {
    pub(super) cluster: Arc<Cluster>,
    pub(super) ec2: Arc<Ec2>,
    pub(super) nodes: Nodes,
    pub(super) planner: Planner,
    pub(super) seen: BTreeMap<String, Seen>,
    pub(super) proof: Proof,
    pub(super) dry_run: bool,
    types: Types,
    throttle: Throttle,
    start: Instant,
    notes: BTreeSet<Note>,
    /// What was last said of each node in a dry run.
    pub(super) said: BTreeMap<String, String>,
}

impl Round {
    /// Returns the state at the election. Without a proof it is a dry run.
    pub(super) fn new(
        cluster: &Arc<Cluster>,
        ec2: Arc<Ec2>,
        settings: Settings,
        provider: &'static str,
        proof: Proof,
    ) -> Self {
        let start = Instant::now();
        let dry_run = proof.is_none();
        let mut planner = Planner::new(settings, Duration::ZERO);
        // It asks for nothing, so nobody can have asked before it.
        if dry_run {
            planner = planner.settled();
        }
        Self {
            cluster: Arc::clone(cluster),
            ec2,
            nodes: Nodes::new(provider),
            planner,
            seen: BTreeMap::new(),
            proof,
            dry_run,
            types: Types::new(),
            throttle: Throttle::default(),
            start,
            notes: BTreeSet::new(),
            said: BTreeMap::new(),
        }
    }

    /// Returns the time since the election.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Does one.
    pub(super) async fn do_one(&mut self) {
        self.nodes.refresh(&self.cluster.client).await;
        self.ask_types().await;
        let mut plan = self.plan();
        if !plan.look.is_empty() && self.look(&plan).await {
            plan = self.plan();
        }
        self.tell(plan.notes).await;
        for action in plan.actions {
            self.carry_out(action).await;
        }
    }

    fn plan(&mut self) -> Plan {
        let facts = self.nodes.facts(&self.types);
        let now = self.now();
        let told = facts.values().flat_map(|facts| &facts.report);
        let nics: BTreeSet<&str> = told
            .flat_map(|report| report.told.nics.iter().map(|nic| nic.id.as_str()))
            .collect();
        self.seen.retain(|nic, _| nics.contains(nic.as_str()));
        self.planner.plan(&facts, &self.seen, now)
    }

    /// Asks EC2 for the limits of instance types that are not known yet.
    async fn ask_types(&mut self) {
        let unknown: BTreeSet<String> = self
            .nodes
            .types()
            .filter(|name| !self.types.contains_key(*name))
            .map(str::to_owned)
            .collect();
        for name in unknown {
            if !self.may_ask().await {
                return;
            }
            let limits = self.ec2.limits(&name).await;
            match self.answered(limits) {
                Ok(limits) => {
                    if limits.is_none() {
                        warn!(
                            "EC2 does not know the instance type {name}: nothing is asked for its nodes"
                        );
                    }
                    self.types.insert(name, limits);
                }
                Err(e) => return warn!("{e}"),
            }
        }
    }

    /// Lets EC2 describe what the plan wants to know. True if it did.
    async fn look(&mut self, plan: &Plan) -> bool {
        let mut done = false;
        let nics: Vec<String> = plan.look.iter().cloned().collect();
        for some in nics.chunks(crate::ec2::PAGE) {
            if !self.may_ask().await {
                return done;
            }
            let at = self.now();
            let described = self.ec2.describe(some).await;
            match self.answered(described) {
                Ok(described) => {
                    let mut found: BTreeMap<String, _> = described
                        .into_iter()
                        .map(|nic| (nic.id.clone(), nic))
                        .collect();
                    for id in some {
                        let nic = found.remove(id);
                        self.seen.insert(id.clone(), Seen { at, nic });
                    }
                    done = true;
                }
                Err(e) => {
                    warn!("{e}");
                    return done;
                }
            }
        }
        done
    }

    /// Waits for this request's turn. False if that takes too long.
    pub(super) async fn may_ask(&mut self) -> bool {
        let end = self.now() + PATIENCE;
        loop {
            let now = self.now();
            match self.throttle.take(now) {
                Ok(()) => return true,
                Err(wait) if now + wait > end => return false,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Records what an answer says about the pace.
    pub(super) fn answered<T>(&mut self, answer: Result<T, Ec2Error>) -> Result<T, Ec2Error> {
        match &answer {
            Err(error) if error.is_general() => {
                let now = self.now();
                self.throttle.refused(now, chance());
                if let Some(pause) = self.throttle.paused(now) {
                    info!("EC2 is asked again in {} s", pause.as_secs() + 1);
                }
            }
            _ => self.throttle.answered(),
        }
        answer
    }

    /// Says what a person should know, once.
    async fn tell(&mut self, notes: BTreeSet<Note>) {
        for note in news(&mut self.notes, notes) {
            warn!(node = note.node, "{}", note.text);
            let about = self.nodes.reference(&note.node);
            let action = short(&format!("Look {}", note.text));
            let events = &self.cluster.events;
            events
                .warn(&about, "CloudAddresses", &action, &note.text)
                .await;
        }
    }
}

/// Cuts a text to what the API server takes as the action of an Event.
pub(super) fn short(text: &str) -> String {
    text[..text.floor_char_boundary(120)].to_owned()
}

/// Returns a random number from 0 to 1.
fn chance() -> f64 {
    // Seeded by the system for each process, and different each time.
    let number = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(number).unwrap_or(0)) / f64::from(u32::MAX)
}
