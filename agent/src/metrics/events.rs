//! What is counted where it happens.

use ebbtide_kernel::{netlink::state::Missing, podnet::Reverted};
use ebbtide_plugin::cni::code;
use ebbtide_types::timing;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::repairs::{Recent, RepairCount, RepairLine, Repairs};

/// The bounds of a request's duration, in seconds: from one that finds nothing to do, to one that waits for an IPAM plugin.
const REQUEST: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The bounds of a step's duration, in seconds.
const STEP: [f64; 10] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// The commands of CNI. Others, which are refused, are counted together.
const COMMANDS: [&str; 5] = ["ADD", "DEL", "CHECK", "STATUS", "GC"];

/// The codes that a command ends with as a rule: they are told from the start, since nobody sees the growth of a series
/// that begins with one.
const USUAL: [(&str, &[u32]); 5] = [
    (
        "ADD",
        &[
            0,
            code::IO_FAILURE,
            code::INVALID_NETWORK_CONFIG,
            code::TRY_AGAIN_LATER,
            code::NO_ADDRESS,
            code::KERNEL,
        ],
    ),
    ("DEL", &[0, code::TRY_AGAIN_LATER, code::KERNEL]),
    ("CHECK", &[0, code::UNKNOWN_CONTAINER, code::CHECK_FAILED]),
    ("STATUS", &[0, code::NOT_AVAILABLE]),
    ("GC", &[0]),
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    command: &'static str,
    result: &'static str,
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Command {
    command: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Step {
    command: &'static str,
    step: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Repair {
    place: &'static str,
    object: &'static str,
}

/// Where something was repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the host's namespace.
    Node,
    /// In a pod's.
    Pod,
}

impl Place {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pod => "pod",
        }
    }

    /// What is repaired there, by name.
    const fn objects(self) -> &'static [&'static str] {
        match self {
            Self::Node => &["rule", "route", "neighbour", "program", "sysctl", "link"],
            Self::Pod => &["address", "mode", "program"],
        }
    }
}

type Timed<S> = Family<S, Histogram, fn() -> Histogram>;

/// The counters of what happens. All clones share them.
#[derive(Clone, Debug)]
pub struct Events {
    requests: Family<Request, Counter>,
    durations: Timed<Command>,
    steps: Timed<Step>,
    repairs: Family<Repair, Counter>,
    recent: Recent,
    conflicts: Counter,
}

impl Default for Events {
    fn default() -> Self {
        let events = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(REQUEST)),
            steps: Family::new_with_constructor(|| Histogram::new(STEP)),
            repairs: Family::default(),
            recent: Recent::default(),
            conflicts: Counter::default(),
        };
        for (command, codes) in USUAL {
            for code in codes {
                drop(events.requests.get_or_create(&request(command, *code)));
            }
        }
        for place in [Place::Node, Place::Pod] {
            for object in place.objects() {
                drop(events.repairs.get_or_create(&Repair {
                    place: place.name(),
                    object,
                }));
            }
        }
        events
    }
}

/// Returns the command's name, of those that there are.
fn known(command: &str) -> &'static str {
    let mut known = COMMANDS.into_iter();
    known.find(|known| *known == command).unwrap_or("other")
}

fn request(command: &str, code: u32) -> Request {
    Request {
        command: known(command),
        result: if code == 0 { "success" } else { "failure" },
        code,
    }
}

impl Events {
    /// Counts a CNI command that ended with `code`, zero for success. `took` has its steps, and the command itself last.
    pub fn command(&self, command: &str, code: u32, took: &[timing::Step]) {
        self.requests.get_or_create(&request(command, code)).inc();
        let command = known(command);
        let Some((whole, steps)) = took.split_last() else {
            return;
        };
        let whole = whole.took.as_secs_f64();
        let labels = Command { command };
        self.durations.get_or_create(&labels).observe(whole);
        for timing::Step { name, took, .. } in steps {
            let labels = Step {
                command,
                step: name,
            };
            self.steps
                .get_or_create(&labels)
                .observe(took.as_secs_f64());
        }
    }

    /// Counts an object of the host's that was missing and is there again.
    pub fn restored(&self, missing: &Missing) {
        self.repaired(Place::Node, object(missing), missing.to_string());
    }

    /// Counts what a pod had changed, and has back.
    pub fn reverted(&self, pod: &str, reverted: &Reverted) {
        for (address, link) in &reverted.addresses {
            let what = format!("{pod} had {address} on {link}");
            self.repaired(Place::Pod, "address", what);
        }
        if let Some(mode) = reverted.mode {
            let what = format!("{pod} had set its NIC's ipvlan mode to {mode}");
            self.repaired(Place::Pod, "mode", what);
        }
    }

    /// Counts a repair of an object, by its kind. `what` says how it was found, for people.
    pub fn repaired(&self, place: Place, object: &'static str, what: String) {
        let labels = Repair {
            place: place.name(),
            object,
        };
        self.repairs.get_or_create(&labels).inc();
        self.recent.add(place.name(), object, what);
    }

    /// Returns the last repairs, the latest first.
    #[must_use]
    pub fn last_repairs(&self) -> Vec<RepairLine> {
        self.recent.all()
    }

    /// Returns what was repaired since the start, and the last of it by name.
    #[must_use]
    pub fn repairs(&self) -> Repairs {
        let mut counts = Vec::new();
        for place in [Place::Node, Place::Pod] {
            let place_name = place.name();
            for object in place.objects() {
                let counter = self.repairs.get_or_create(&Repair {
                    place: place_name,
                    object,
                });
                counts.push(RepairCount {
                    place: place_name.to_owned(),
                    object: (*object).to_owned(),
                    count: counter.get(),
                });
            }
        }
        Repairs {
            counts,
            recent: self.recent.all(),
        }
    }

    /// Counts an address that the node got while a pod was given it.
    pub fn conflicted(&self) {
        self.conflicts.inc();
    }

    /// Adds the counters to what is told.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ebbtide_cni_requests",
            "CNI commands by result, and by the code of the CNI specification (0: success)",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "ebbtide_cni_request_duration",
            "How long CNI commands took, the agent's part",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register_with_unit(
            "ebbtide_cni_step_duration",
            "How long the steps of CNI commands took",
            Unit::Seconds,
            self.steps.clone(),
        );
        registry.register(
            "ebbtide_repairs",
            "What something else had removed or changed, and was put back, by the kind of object",
            self.repairs.clone(),
        );
        registry.register(
            "ebbtide_address_conflicts",
            "Addresses that the node got while a pod was given them: the pod got others",
            self.conflicts.clone(),
        );
    }
}

/// Returns the kind of an object, by name.
const fn object(missing: &Missing) -> &'static str {
    match missing {
        Missing::Sysctl(..) => "sysctl",
        Missing::Address(_) => "address",
        Missing::Neighbour(_) => "neighbour",
        Missing::Route(_) => "route",
        Missing::Rule(_) => "rule",
        Missing::Filter(_) => "program",
        Missing::Queue(_) => "qdisc",
        Missing::Link(..) => "link",
    }
}
