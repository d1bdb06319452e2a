//! Asks the API server for what the page shows, and keeps what it said last.

use std::{collections::BTreeMap, thread, time::Instant};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    super::{
        AGENTS,
        at_once::some_at_once,
        cluster::{Cluster, ENDPOINTS, EVENTS, Kind, NETWORKS, NODES, PODS, POOLS, Which},
    },
    rows::{self, rows},
    view::{ClusterView, Rows, view},
};

/// The Events of Ebbtide's agents and controllers.
const OURS: Which<'_> = Which::Having("reportingComponent=ebbtide");

/// How many pods with an address of another's are looked at.
const SUSPECTS: usize = 32;

/// What the API server said last.
#[derive(Debug)]
pub(super) struct Known {
    cluster: Cluster,
    rows: Rows,
    /// When each kind was answered last, and why it was not since.
    parts: BTreeMap<&'static str, Part>,
}

#[derive(Debug, Default)]
struct Part {
    at: Option<Instant>,
    fault: Option<String>,
}

/// A kind of objects that the API server did not return.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) what: &'static str,
    pub(super) why: String,
    /// When it did last.
    pub(super) since: Option<Instant>,
}

impl Known {
    /// Knows nothing yet of this cluster.
    pub(super) fn of(cluster: Cluster) -> Self {
        Self {
            cluster,
            rows: Rows::default(),
            parts: BTreeMap::new(),
        }
    }

    /// Asks for everything. What is not answered stays as it was. Blocks.
    pub(super) fn ask(&mut self) {
        let (cluster, agents) = (&self.cluster, Some(self.cluster.agents.as_str()));
        thread::scope(|scope| {
            macro_rules! ask {
                ($($field:ident: $kind:expr, $namespace:expr, $which:expr, $read:expr;)*) => {
                    $(let $field = scope.spawn(|| list(cluster, $kind, $namespace, $which, $read));)*
                    $({
                        let part = self.parts.entry($kind.plural()).or_default();
                        part.keep(&mut self.rows.$field, $field.join());
                    })*
                };
            }
            ask! {
                nodes: NODES, None, Which::All, rows::node;
                agents: PODS, agents, Which::Labelled(AGENTS), rows::agent;
                pools: POOLS, None, Which::All, rows::pool;
                networks: NETWORKS, None, Which::All, rows::network;
                endpoints: ENDPOINTS, None, Which::All, rows::endpoint;
                events: EVENTS, None, OURS, rows::event;
            }
        });
        self.look_at_suspects();
    }

    /// Looks whether the pods live that have an address of another's. Of one that cannot be looked at, what was seen last
    /// holds; without that it counts as living.
    fn look_at_suspects(&mut self) {
        let suspects: Vec<String> = self.rows.suspects().into_iter().take(SUSPECTS).collect();
        let looks = some_at_once(&suspects, |pod| look(&self.cluster, pod));
        let seen = suspects.into_iter().zip(looks).filter_map(|(pod, look)| {
            let before = || self.rows.pods.get(&pod).cloned();
            let now = look.ok().or_else(before)?;
            Some((pod, now))
        });
        self.rows.pods = seen.collect();
    }

    /// Whether anything was ever answered.
    pub(super) fn is_something(&self) -> bool {
        self.parts.values().any(|part| part.at.is_some())
    }

    pub(super) fn view(&self) -> ClusterView {
        view(&self.rows)
    }

    /// Returns what was not answered.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let fault = |(what, part): (&&'static str, &Part)| {
            Some(Fault {
                what,
                why: part.fault.clone()?,
                since: part.at,
            })
        };
        self.parts.iter().filter_map(fault).collect()
    }
}

impl Part {
    fn keep<T>(
        &mut self,
        rows: &mut Option<Vec<T>>,
        answer: thread::Result<anyhow::Result<Vec<T>>>,
    ) {
        match answer {
            Ok(Ok(answer)) => {
                *rows = Some(answer);
                self.at = Some(Instant::now());
                self.fault = None;
            }
            Ok(Err(e)) => self.fault = Some(format!("{e:#}")),
            Err(_) => self.fault = Some("the thread that asked has panicked".to_owned()),
        }
    }
}

fn list<T>(
    cluster: &Cluster,
    kind: Kind,
    namespace: Option<&str>,
    which: Which<'_>,
    read: fn(&Value) -> T,
) -> anyhow::Result<Vec<T>> {
    let list = cluster.get(kind, namespace, which)?;
    Ok(rows(&list, read))
}

/// Returns a pod, or that there is none.
fn look(cluster: &Cluster, pod: &str) -> anyhow::Result<Option<rows::PodRow>> {
    let (namespace, name) = pod.split_once('/').context("a pod without a namespace")?;
    let field = format!("metadata.name={name}");
    let list = cluster.get(PODS, Some(namespace), Which::Having(&field))?;
    Ok(rows(&list, rows::pod).into_iter().next())
}
