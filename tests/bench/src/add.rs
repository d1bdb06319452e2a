//! Measures ADD and DEL: one by one, many at once, many in a row.

use std::{
    path::Path,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use ebbtide_vpc::{agent::Agent, netns::Netns, workspace};
use serde_json::{Value, json};

use super::{
    contender::{Chained, Contender, Pod, Program},
    figures::{Figures, Series, Table},
    floor::Floor,
    machine::Machine,
    made_before::MadeBefore,
    testbed::{DUAL, NETWORK, NIC, PODS, SUBNET, Slave, Testbed},
    timeline::Timeline,
};

/// The directory of Debian's containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The row for executing a program that does nothing.
const TRUE: &str = "exec of /bin/true";
/// The row for Ebbtide with the peer's configuration: IPv4 alone.
const OURS: &str = "ebbtide";
/// The row for Ebbtide chained after another plugin.
const BEHIND: &str = "ebbtide, behind a macvlan";

/// The extent of a run.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// ADDs and DELs of each contender, one by one.
    pub rounds: usize,
    /// Pods at once.
    pub crowd: usize,
    /// How often that many pods are added at once.
    pub crowds: usize,
    /// ADDs in a row, without a DEL between.
    pub row: usize,
}

impl Extent {
    /// Enough for figures.
    pub const FULL: Self = Self {
        rounds: 60,
        crowd: 50,
        crowds: 4,
        row: 250,
    };
    /// Just enough to see that it works.
    pub const SHORT: Self = Self {
        rounds: 2,
        crowd: 4,
        crowds: 1,
        row: 5,
    };
}

/// Runs the benchmark.
///
/// # Errors
/// If a contender fails, or ours cannot run in this kernel.
pub fn run(extent: Extent) -> Result<Figures> {
    let machine = Machine::look();
    let testbed = Testbed::build()?;
    let mut notes = Vec::new();
    // The peers have a node of their own: on ours, their interfaces would pass Ebbtide's programs.
    let peers = Testbed::build()?;
    let data = tempfile::TempDir::with_prefix("ebbtide-bench-")?;
    let slave = testbed.slave()?;
    let mut agent = Agent::start(&testbed.node, "node", &Testbed::manifests(), "")?;
    agent.wait_ready()?;
    let mut all: Vec<Box<dyn Contender>> = vec![Box::new(Program::new(
        TRUE,
        &testbed.node,
        "/bin/true".into(),
        &Value::Null,
    ))];
    let floor = match slave {
        Slave::Ipvlan => {
            for own in ours(&agent, &testbed.node)? {
                all.push(Box::new(own));
            }
            Floor::new(&testbed.node, slave)?
        }
        Slave::Macvlan => {
            notes.push(
                "this kernel has no ipvlan (use --vm): ours comes behind a macvlan that is there before \
                 the clock starts, and makes the rest; the peer makes a macvlan and nothing else"
                    .to_owned(),
            );
            let before = MadeBefore::on(&testbed.node);
            all.push(Box::new(behind(&agent, &testbed.node, before.clone())?));
            all.push(Box::new(Floor::new(&testbed.node, slave)?));
            Floor::behind(before, &testbed.node)?
        }
    };
    let peer = reference(&peers.node, slave, data.path(), &mut notes);
    let contenders = Contenders {
        floor: floor.name(),
        peer: peer.as_ref().map(Contender::name),
        all: {
            all.extend(peer.map(|peer| Box::new(peer) as Box<dyn Contender>));
            all.push(Box::new(floor));
            all
        },
    };
    // The first pod of a node also pays for what its NICs need, and the last one's removal takes that away. Neither is
    // what an ADD costs.
    let resident = resident(&contenders)?;
    let mut tables = one_by_one(&contenders, extent.rounds)?;
    let mut timelines: Vec<Timeline> = [
        ("Inside one ADD, median of each step", "command=ADD"),
        ("Inside one DEL, median of each step", "command=DEL"),
    ]
    .into_iter()
    .filter_map(|(title, of)| Timeline::from_log(title, &agent.log(), of))
    .collect();
    for (timeline, table) in timelines.iter_mut().zip(&tables) {
        timeline.outside("exec, socket, exit", median_of_ours(table));
    }
    if timelines.is_empty() {
        notes.push(
            "no steps of an ADD are shown: the agent notes them with \
             RUST_LOG=info,ebbtide_types::timing=debug"
                .to_owned(),
        );
    }
    tables.extend(crowds(&contenders, extent.crowd, extent.crowds)?);
    tables.push(in_a_row(&contenders, extent.row)?);
    for table in &mut tables {
        table.floor = Some(contenders.floor.clone());
        table.peer = contenders.peer.clone();
    }
    resident.0.del(&resident.1)?;
    tables.push(versions(&testbed.node, slave, extent.rounds)?);
    Ok(Figures {
        name: "add".to_owned(),
        machine,
        tables,
        timelines,
        notes,
    })
}

/// Adds a pod of Ebbtide's that stays, and returns it with the contender that is to delete it.
fn resident(contenders: &Contenders) -> Result<(&dyn Contender, Pod)> {
    let mut all = contenders.all.iter();
    let ours = all.find(|one| [OURS, BEHIND].contains(&one.name().as_str()));
    let ours = ours.context("Ebbtide is a contender")?.as_ref();
    let pod = Pod::new()?;
    ours.prepare(&pod)?;
    ours.add(&pod)?;
    Ok((ours, pod))
}

/// Returns Ebbtide's median, in microseconds.
fn median_of_ours(table: &Table) -> f64 {
    let ours = table
        .rows
        .iter()
        .find(|row| [OURS, BEHIND].contains(&row.name.as_str()));
    ours.map_or(0.0, |row| row.summary().median * 1e3)
}

struct Contenders {
    all: Vec<Box<dyn Contender>>,
    /// The row that nothing can beat.
    floor: String,
    /// The row of the reference plugin, if it is installed.
    peer: Option<String>,
}

impl Contenders {
    /// Creates a table for each of these titles, with a row for each contender.
    fn tables<const N: usize>(&self, titles: [(String, &str); N]) -> [Table; N] {
        titles.map(|(title, meaning)| Table {
            title,
            meaning: meaning.to_owned(),
            unit: "ms",
            rows: self.all.iter().map(|one| Series::new(one.name())).collect(),
            floor: None,
            peer: None,
            paired: None,
        })
    }
}

/// Returns Ebbtide's plugin and agent, for one family and for both.
pub(super) fn ours(agent: &Agent, node: &Netns) -> Result<Vec<Program>> {
    [(OURS, NETWORK), ("ebbtide, IPv4 and IPv6", DUAL)]
        .into_iter()
        .map(|(name, network)| {
            let binary = workspace::BINARIES.file("ebbtide")?;
            let config = agent.plugin().config(network);
            Ok(Program::new(name, node, binary, &config))
        })
        .collect()
}

/// Returns Ebbtide's plugin and agent, chained after another plugin.
pub(super) fn behind(agent: &Agent, node: &Netns, before: MadeBefore) -> Result<Chained> {
    let binary = workspace::BINARIES.file("ebbtide")?;
    let config = json!({
        "cniVersion": "1.0.0", "name": "behind", "type": "ebbtide",
        "agentSocket": agent.plugin().socket(),
    });
    Ok(Chained::new(BEHIND, node, binary, &config, before))
}

/// Returns containernetworking's plugin for the same kind of interface, with host-local as its IPAM.
fn reference(node: &Netns, slave: Slave, data: &Path, notes: &mut Vec<String>) -> Option<Program> {
    let kind = slave.name();
    let binary = Path::new(PLUGINS).join(kind);
    if !binary.is_file() {
        notes.push(format!(
            "containernetworking's {kind} was not measured: {} is not there (Debian: \
             containernetworking-plugins)",
            binary.display()
        ));
        return None;
    }
    let name = format!("{kind} + host-local (Go)");
    notes.push(format!(
        "{name} makes the interface alone: no veth, no marks, no routing of the host; it does not sync \
         what it writes down"
    ));
    let [first, last] = PODS;
    let mut config = json!({
        "cniVersion": "1.0.0", "name": kind, "type": kind, "master": NIC,
        "ipam": {
            "type": "host-local",
            "dataDir": data,
            "ranges": [[{"subnet": SUBNET, "rangeStart": first, "rangeEnd": last}]],
        },
    });
    if slave == Slave::Ipvlan {
        config["mode"] = "l3".into();
    }
    Some(Program::new(&name, node, binary, &config))
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(milliseconds(start.elapsed()))
}

/// Lets the kernel finish removing namespaces before it is measured again.
fn settle() {
    thread::sleep(Duration::from_millis(100));
}

/// Creates a pod with everything that this contender expects there.
fn pod_for(contender: &dyn Contender) -> Result<Pod> {
    let pod = Pod::new()?;
    contender.prepare(&pod)?;
    Ok(pod)
}

fn one_by_one(contenders: &Contenders, rounds: usize) -> Result<Vec<Table>> {
    let all = &contenders.all;
    let [mut adds, mut dels] = contenders.tables([
        (
            "ADD, one by one".to_owned(),
            "Wall time from starting the plugin to its end; contenders take turns.",
        ),
        (
            "DEL, one by one".to_owned(),
            "Wall time from starting the plugin to its end. A link's removal waits for the kernel's RCU.",
        ),
    ]);
    // The first call of each reads it from the disk, and is not counted.
    for round in 0..=rounds {
        for (number, contender) in all.iter().enumerate() {
            let pod = pod_for(contender.as_ref())?;
            let add = timed(|| contender.add(&pod))?;
            let del = timed(|| contender.del(&pod))?;
            drop(pod);
            settle();
            if round > 0 {
                adds.rows[number].values.push(add);
                dels.rows[number].values.push(del);
            }
        }
    }
    Ok(vec![adds, dels])
}

/// Measures the execution of a plugin that has nothing to do.
fn versions(node: &Netns, slave: Slave, rounds: usize) -> Result<Table> {
    let config = json!({"cniVersion": "1.0.0"});
    let program = |name: &str, binary| Program::new(name, node, binary, &config);
    let peer = Path::new(PLUGINS).join(slave.name());
    let peer_name = format!("{} (Go)", slave.name());
    let mut all = vec![
        program(TRUE, "/bin/true".into()),
        program(OURS, workspace::BINARIES.file("ebbtide")?),
    ];
    if peer.is_file() {
        all.push(program(&peer_name, peer.clone()));
    }
    let mut table = Table::new(
        "VERSION",
        "Wall time from starting the plugin to its end, when it has nothing to do but to say its versions.",
        "ms",
    );
    table.floor = Some(TRUE.to_owned());
    table.paired = Some(TRUE.to_owned());
    table.peer = peer.is_file().then_some(peer_name);
    table.rows = all.iter().map(|one| Series::new(one.name())).collect();
    let pod = Pod::new()?;
    // The first call of each reads it from the disk, and is not counted.
    for round in 0..=rounds * 4 {
        for (one, row) in all.iter().zip(&mut table.rows) {
            let took = timed(|| one.version(&pod))?;
            if round > 0 {
                row.values.push(took);
            }
        }
    }
    Ok(table)
}

fn crowds(contenders: &Contenders, size: usize, crowds: usize) -> Result<Vec<Table>> {
    let all = &contenders.all;
    let [mut adds, mut dels, mut whole] = contenders.tables([
        (
            format!("ADD, {size} at once"),
            "Wall time of each of the ADDs that start at the same moment.",
        ),
        (
            format!("DEL, {size} at once"),
            "Wall time of each of the DELs that start at the same moment.",
        ),
        (
            format!("{size} ADDs at once, all of them"),
            "Wall time until the last one has ended.",
        ),
    ]);
    for _ in 0..crowds {
        for (number, contender) in all.iter().enumerate() {
            let pods: Vec<Pod> = (0..size)
                .map(|_| pod_for(contender.as_ref()))
                .collect::<Result<_>>()?;
            let (each, together) = at_once(&pods, |pod| contender.add(pod))?;
            adds.rows[number].values.extend(each);
            whole.rows[number].values.push(together);
            let (each, _) = at_once(&pods, |pod| contender.del(pod))?;
            dels.rows[number].values.extend(each);
            drop(pods);
            settle();
        }
    }
    Ok(vec![adds, dels, whole])
}

/// Runs `work` for all pods at once. Returns how long each took, and all together.
pub(super) fn at_once(
    pods: &[Pod],
    work: impl Fn(&Pod) -> Result<()> + Sync,
) -> Result<(Vec<f64>, f64)> {
    let barrier = Barrier::new(pods.len() + 1);
    let (work, barrier) = (&work, &barrier);
    thread::scope(|scope| {
        let threads: Vec<_> = pods
            .iter()
            .map(|pod| {
                scope.spawn(move || {
                    barrier.wait();
                    timed(|| work(pod))
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let each = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a caller panicked"))?)
            .collect::<Result<_>>()?;
        Ok((each, milliseconds(start.elapsed())))
    })
}

fn in_a_row(contenders: &Contenders, count: usize) -> Result<Table> {
    let [mut table] = contenders.tables([(
        format!("ADD, {count} in a row"),
        "Wall time of each ADD; the pods stay, so the last ones find a full node.",
    )]);
    for (number, contender) in contenders.all.iter().enumerate() {
        let mut pods = Vec::new();
        for _ in 0..count {
            let pod = pod_for(contender.as_ref())?;
            let took = timed(|| contender.add(&pod))?;
            table.rows[number].values.push(took);
            pods.push(pod);
        }
        let name = contender.name();
        for chunk in pods.chunks(25) {
            at_once(chunk, |pod| contender.del(pod))
                .with_context(|| format!("removing the pods of {name}"))?;
        }
        drop(pods);
        settle();
    }
    Ok(table)
}
