//! Random histories: pods come and go, agents' words are late or lost, leaders are paused with requests on their way, EC2
//! is late, throttles, and does what it seemed to refuse. Whatever happens, nothing is taken that a pod has, no NIC gets
//! more than it may have, and once all is quiet, each NIC has what people want.

use proptest::prelude::*;

use super::*;

mod world;

use world::{Chance, Ec2, Node, Store};

/// The seconds between two rounds.
const STEP: u64 = 5;

/// How long after its signature's time a request may be carried out: AWS' five minutes, with a clock that is as much ahead.
const LATEST: u64 = 590;

fn settings(by: By) -> Settings {
    Settings {
        warm: BTreeMap::from([(Family::V4, if by == By::Address { 2 } else { 1 })]),
        by,
        max_per_nic: None,
        slack: 1,
        idle: Duration::from_secs(60),
    }
}

/// A request of whoever was the leader, on its way to EC2.
struct OnItsWay {
    at: u64,
    nic: usize,
    action: Action,
}

struct History {
    chance: Chance,
    by: By,
    now: u64,
    ec2: Ec2,
    nodes: Vec<Node>,
    stores: Vec<Store>,
    planner: Planner,
    seen: BTreeMap<String, Seen>,
    /// What the leader's watch has told it.
    views: Vec<Store>,
    on_their_way: Vec<OnItsWay>,
    wild: bool,
    /// How often EC2 had to say that a NIC is full.
    full: u32,
}

impl History {
    fn new(seed: u64, by: By) -> Self {
        let nodes = vec![Node::new(0), Node::new(1)];
        let stores: Vec<Store> = nodes.iter().map(|_| Store::default()).collect();
        Self {
            chance: Chance::new(seed),
            by,
            now: 0,
            ec2: Ec2::new(by, nodes.len()),
            nodes,
            views: stores.clone(),
            stores,
            planner: Planner::new(settings(by), Duration::ZERO),
            seen: BTreeMap::new(),
            on_their_way: Vec::new(),
            wild: true,
            full: 0,
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.learn(&self.ec2, self.now, &mut self.chance, self.wild);
            if self.wild {
                node.pods(self.now, &mut self.chance);
            }
            node.serve(self.now);
            // The agent sees what is asked, and its words reach the API server, sooner or later.
            if !self.wild || self.chance.one_in(3) {
                node.hear(&self.stores[number].asked, self.now);
            }
            if !self.wild || self.chance.one_in(3) {
                self.stores[number].told = Some(node.tell(self.now));
            }
        }
        self.deliver();
        if self.wild && self.chance.one_in(60) {
            // Another leader, which knows nothing. What the last one sent is on its way still.
            let now = Duration::from_secs(self.now + self.chance.below(20));
            self.planner = Planner::new(settings(self.by), now);
            self.seen.clear();
        }
        self.round();
        for (number, node) in self.nodes.iter().enumerate() {
            let had = self.ec2.had(number);
            assert!(had.slots(Family::V4) <= world::LIMIT, "{had:?}");
            for address in node.pod_addresses() {
                let has = had.blocks.iter().any(|block| block.contains(&address));
                assert!(has, "{} s: a pod has {address}, its NIC does not", self.now);
            }
        }
    }

    fn facts(&mut self) -> BTreeMap<String, NodeFacts> {
        for (view, store) in self.views.iter_mut().zip(&self.stores) {
            if !self.wild || !self.chance.one_in(4) {
                *view = store.clone();
            }
        }
        let facts = |(number, view): (usize, &Store)| {
            let facts = NodeFacts {
                instance: Some(world::instance(number)),
                limits: Some(Limits {
                    v4: world::LIMIT,
                    v6: 0,
                }),
                report: view.report().ok_or(Unreadable::Nothing),
            };
            (world::name(number), facts)
        };
        self.views.iter().enumerate().map(facts).collect()
    }

    fn round(&mut self) {
        let facts = self.facts();
        let now = Duration::from_secs(self.now);
        let mut plan = self.planner.plan(&facts, &self.seen, now);
        if !(plan.look.is_empty() || self.wild && self.chance.one_in(5)) {
            for id in &plan.look {
                let nic = self.ec2.describe(id, self.now, &mut self.chance, self.wild);
                self.seen.insert(id.clone(), Seen { at: now, nic });
            }
            plan = self.planner.plan(&facts, &self.seen, now);
        }
        for action in plan.actions {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let number = |name: &str| world::number(name);
        match &action {
            Action::Ask { node, asked } => {
                let number = number(node);
                // As a conditional write: not if the agent wrote meanwhile.
                if self.views[number] == self.stores[number] {
                    self.stores[number].asked = asked.clone();
                    self.views[number].asked = asked.clone();
                }
            }
            Action::Assign { nic, node, .. } => {
                let (nic, number) = (nic.clone(), number(node));
                self.send(&nic, number, action);
            }
            Action::Unassign {
                node,
                nic,
                family,
                blocks,
            } => {
                let (nic, number) = (nic.clone(), number(node));
                let Some(report) = self.stores[number].report() else {
                    return;
                };
                let blocks: Vec<IpNet> = blocks
                    .iter()
                    .filter(|block| may_take(&report, &nic, block))
                    .copied()
                    .collect();
                if blocks.is_empty() {
                    return;
                }
                let action = Action::Unassign {
                    node: node.clone(),
                    nic: nic.clone(),
                    family: *family,
                    blocks,
                };
                self.send(&nic, number, action);
            }
        }
    }

    /// Sends a request, which is carried out now, or later without a word, or never.
    fn send(&mut self, nic: &str, number: usize, action: Action) {
        let now = Duration::from_secs(self.now);
        if self.wild && self.chance.one_in(4) {
            if self.chance.one_in(2) {
                let at = self.now + self.chance.below(LATEST);
                self.on_their_way.push(OnItsWay {
                    at,
                    nic: number,
                    action,
                });
            }
            self.planner.record(nic, Outcome::Unknown, now);
            return;
        }
        let outcome = self.execute(number, &action);
        self.planner.record(nic, outcome, now);
    }

    fn deliver(&mut self) {
        let due: Vec<OnItsWay> = self
            .on_their_way
            .extract_if(.., |one| one.at <= self.now)
            .collect();
        for one in due {
            self.execute(one.nic, &one.action);
        }
    }

    fn execute(&mut self, number: usize, action: &Action) -> Outcome {
        match action {
            Action::Assign { amount, .. } => {
                if self.wild && self.chance.one_in(10) {
                    return Outcome::Refused;
                }
                match self.ec2.assign(number, *amount, self.now, &mut self.chance) {
                    Some(given) => Outcome::Given(given),
                    None => {
                        self.full += 1;
                        Outcome::Refused
                    }
                }
            }
            Action::Unassign { blocks, .. } => {
                // EC2 refuses to take from a NIC what another one has by now.
                let had = &self.ec2.had(number).blocks;
                let taken: Vec<IpNet> = blocks
                    .iter()
                    .filter(|block| had.contains(block))
                    .copied()
                    .collect();
                for node in &self.nodes {
                    node.assert_nobody_has(&taken, self.now);
                }
                self.ec2.unassign(number, blocks, self.now);
                Outcome::Taken(blocks.clone())
            }
            Action::Ask { .. } => Outcome::Refused,
        }
    }

    /// Lets everything become quiet, and checks that each NIC has what people want.
    fn end(&mut self) {
        self.wild = false;
        for _ in 0..(2 * 3600 / STEP) {
            self.step();
        }
        let size = self.by.size(Family::V4);
        for (number, node) in self.nodes.iter().enumerate() {
            let report = self.stores[number].report().expect("it told");
            let demand = Demand::of(&report, &report.told.nics[0], Family::V4).expect("sets");
            let had = self.ec2.had(number);
            let full = had.slots(Family::V4) == world::LIMIT;
            let warm = u128::from(settings(self.by).warm(Family::V4)) * size;
            let free = demand.free.len();
            assert!(
                full || free >= warm,
                "{free} of {warm} free, and room for more"
            );
            assert!(full || node.waiting == 0, "{} wait", node.waiting);
            let surplus = demand.surplus(warm, self.by);
            let slack = u128::from(settings(self.by).slack) * size;
            assert!(
                free <= warm + slack || surplus.is_empty(),
                "{free} free, and {surplus} could be given back: {:#?}",
                report
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 1000 }))]

    #[test]
    fn nothing_that_a_pod_has_is_taken_no_limit_is_passed_and_in_the_end_all_is_as_wanted(
        seed in any::<u64>(), prefix in any::<bool>(), steps in 100_usize..800,
    ) {
        let mut history = History::new(seed, if prefix { By::Prefix } else { By::Address });
        for _ in 0..steps {
            history.step();
        }
        history.end();
    }

    #[test]
    fn where_requests_are_carried_out_or_refused_at_once_no_nic_is_asked_to_have_too_much(
        seed in any::<u64>(), prefix in any::<bool>(),
    ) {
        let mut history = History::new(seed, if prefix { By::Prefix } else { By::Address });
        for step in 0..400 {
            // Pods and words as in the wild; requests are not.
            history.wild = false;
            for node in &mut history.nodes {
                node.pods(history.now, &mut history.chance);
            }
            if step % 50 == 49 {
                let now = Duration::from_secs(history.now);
                history.planner = Planner::new(settings(history.by), now);
            }
            history.step();
        }
        prop_assert_eq!(history.full, 0);
    }
}
