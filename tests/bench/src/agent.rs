//! Measures the agent itself: memory, time until it is ready, and CPU at rest, with a growing number of pods.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ebbtide_vpc::others_routes::OthersRoutes;
use ebbtide_vpc::{agent::Agent, netns::Netns, patience::PATIENCE, snapshot::ip};
use nix::unistd::{SysconfVar, sysconf};

use super::{
    add::{at_once, behind, milliseconds, ours},
    contender::{Contender, Pod},
    figures::{Figures, Series, Table},
    machine::Machine,
    made_before::MadeBefore,
    testbed::{NIC, Slave, Testbed},
};

/// The extent of a run.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The numbers of pods, ascending.
    pub pods: &'static [usize],
    /// Restarts at each number of pods.
    pub restarts: usize,
    /// How long the CPU at rest is measured.
    pub rest: Duration,
    /// The numbers of foreign routes, ascending.
    pub others: &'static [u32],
    /// Repairs at each number of foreign routes.
    pub repairs: usize,
}

impl Extent {
    /// Enough for figures.
    pub const FULL: Self = Self {
        pods: &[0, 250, 1000],
        restarts: 7,
        rest: Duration::from_secs(40),
        others: &[0, 200_000],
        repairs: 7,
    };
    /// Just enough to see that it works.
    pub const SHORT: Self = Self {
        pods: &[0, 3],
        restarts: 1,
        rest: Duration::from_millis(200),
        others: &[0, 100],
        repairs: 1,
    };
}

/// Runs the benchmark.
///
/// # Errors
/// If an ADD fails.
pub fn run(extent: Extent) -> Result<Figures> {
    let machine = Machine::look();
    let testbed = Testbed::build()?;
    let mut agent = Agent::start(&testbed.node, "node", &Testbed::manifests(), "")?;
    agent.wait_ready()?;
    let mut notes = Vec::new();
    let plugin: Box<dyn Contender> = match testbed.slave()? {
        Slave::Ipvlan => {
            let mut ours = ours(&agent, &testbed.node)?.into_iter();
            Box::new(ours.next().context("there is a plugin")?)
        }
        Slave::Macvlan => {
            notes.push(
                "this kernel has no ipvlan (use --vm): the pods have a macvlan that was there before, with an \
                 address of somebody else's"
                    .to_owned(),
            );
            let before = MadeBefore::on(&testbed.node);
            Box::new(behind(&agent, &testbed.node, before)?)
        }
    };
    let mut tables = [
        (
            "resident memory",
            "Pages of the process in memory, after some rest; the largest share is code.",
            "MB",
        ),
        ("private memory", "Pages that it alone has: what it adds to the node.", "MB"),
        (
            "ready after a restart",
            "From starting the process to the first connection to its socket: new pods can come.",
            "ms",
        ),
        (
            "running pods reconciled",
            "From starting the process until it says that every pod has been looked at and put right.",
            "ms",
        ),
        ("CPU at rest", "Of one CPU, while nobody asks for anything.", "%"),
        (
            "ADD while they come",
            "Wall time of each ADD, 25 at once, up to that number of pods.",
            "ms",
        ),
    ]
    .map(|(title, meaning, unit)| Table::new(title, meaning, unit));
    let mut pods = Vec::new();
    for &count in extent.pods {
        let adds = crowd(plugin.as_ref(), &mut pods, count)?;
        let rest = at_rest(&agent, extent.rest)?;
        let memory = (0..3).map(|_| memory(&agent)).collect::<Result<Vec<_>>>()?;
        let (mut ready, mut taken_over) = (Vec::new(), Vec::new());
        for _ in 0..extent.restarts {
            agent.kill()?;
            let [first, all] = restart(&mut agent)?;
            ready.push(first);
            taken_over.push(all);
        }
        let values = [
            memory.iter().map(|memory| memory.0).collect(),
            memory.iter().map(|memory| memory.1).collect(),
            ready,
            taken_over,
            vec![rest],
            adds,
        ];
        for (table, values) in tables.iter_mut().zip(values) {
            if !values.is_empty() {
                table.rows.push(Series {
                    name: format!("ebbtide, {count} pods"),
                    values,
                });
            }
        }
    }
    let few = pods.split_off(pods.len().min(FEW));
    for chunk in few.chunks(25) {
        at_once(chunk, |pod| plugin.del(pod))?;
    }
    let mut tables = Vec::from(tables);
    tables.extend(existing_interfaces(&agent, &testbed.node, extent)?);
    at_once(&pods, |pod| plugin.del(pod))?;
    Ok(Figures {
        name: "agent".to_owned(),
        machine,
        tables,
        timelines: Vec::new(),
        notes,
    })
}

/// The number of pods while foreign routes are measured.
const FEW: usize = 3;

/// Measures what foreign routes cost the agent: at rest, and while they come and go.
fn existing_interfaces(agent: &Agent, node: &Netns, extent: Extent) -> Result<Vec<Table>> {
    let others = OthersRoutes::over(node, NIC)?;
    let mut tables = [
        ("CPU at rest beside others' routes", "Of one CPU, while nobody asks for anything.", "%"),
        (
            "CPU while others' routes come and go",
            "Of the agent, for all of them to go and to come again.",
            "ms",
        ),
        (
            "resident memory beside others' routes",
            "Pages of the process in memory, after they came and went.",
            "MB",
        ),
        (
            "repair beside others' routes",
            "From the end of `ip route flush table 7700` until the pods' routes are there again; the agent waits 200 ms \
             for more to be wiped.",
            "ms",
        ),
    ]
    .map(|(title, meaning, unit)| Table::new(title, meaning, unit));
    let mut there = 0;
    for &count in extent.others {
        others.add(there..count)?;
        there = count;
        let rest = at_rest(agent, extent.rest)?;
        let before = ticks(agent)?;
        others.delete(0..count)?;
        others.add(0..count)?;
        // Lets the agent finish what is queued.
        thread::sleep(Duration::from_secs(2).min(extent.rest));
        let churn = (ticks(agent)? - before) * 1e3;
        let memory = (0..3)
            .map(|_| Ok(memory(agent)?.0))
            .collect::<Result<_>>()?;
        let repairs = (0..extent.repairs)
            .map(|_| repair(node))
            .collect::<Result<_>>()?;
        for (table, values) in tables
            .iter_mut()
            .zip([vec![rest], vec![churn], memory, repairs])
        {
            table.rows.push(Series {
                name: format!("ebbtide, {count} routes of others"),
                values,
            });
        }
    }
    others.delete(0..there)?;
    Ok(tables.into())
}

/// Removes the pods' routes, and returns how long they are missing.
fn repair(node: &Netns) -> Result<f64> {
    let show = || ip(node, &["route", "show", "table", "7700"]);
    let before = show()?;
    // The agent pauses for a second between repairs, and the previous one must be over.
    thread::sleep(Duration::from_millis(1500));
    ip(node, &["route", "flush", "table", "7700"])?;
    let start = Instant::now();
    while show()? != before {
        anyhow::ensure!(
            start.elapsed() < PATIENCE,
            "the pods' routes do not come back"
        );
        thread::sleep(Duration::from_millis(2));
    }
    Ok(milliseconds(start.elapsed()))
}

/// Adds pods until there are `count`; returns how long each ADD took.
fn crowd(plugin: &dyn Contender, pods: &mut Vec<Pod>, count: usize) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    while pods.len() < count {
        let size = (count - pods.len()).min(25);
        let new: Vec<Pod> = (0..size).map(|_| Pod::new()).collect::<Result<_>>()?;
        new.iter().try_for_each(|pod| plugin.prepare(pod))?;
        all.extend(at_once(&new, |pod| plugin.add(pod))?.0);
        pods.extend(new);
    }
    Ok(all)
}

fn process(agent: &Agent) -> Result<u32> {
    agent.process_id().context("the agent does not run")
}

/// Returns the resident and the private memory, in MB (proc(5): smaps_rollup, or statm if that does not exist).
fn memory(agent: &Agent) -> Result<(f64, f64)> {
    let process = process(agent)?;
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))
        .or_else(|_| fs::read_to_string(format!("/proc/{process}/status")))
        .context("reading the agent's memory")?;
    let kilobytes = |names: &[&str]| -> f64 {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, value)| value.split_whitespace().next()?.parse::<f64>().ok())
            .sum()
    };
    let resident = kilobytes(&["Rss", "VmRSS"]);
    let private = kilobytes(&["Private_Clean", "Private_Dirty", "RssAnon"]);
    Ok((resident / 1e3, private / 1e3))
}

/// Returns the CPU time that the agent has used, in seconds.
fn ticks(agent: &Agent) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/stat", process(agent)?))?;
    // The name may contain spaces; utime and stime are the 14th and 15th field (proc(5)).
    let (_, rest) = text.rsplit_once(')').context("stat has no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let [user, system] = [11, 12].map(|number| fields.get(number).copied().unwrap_or("0"));
    let a_second = sysconf(SysconfVar::CLK_TCK)?.context("ticks in a second")? as f64;
    Ok((user.parse::<f64>()? + system.parse::<f64>()?) / a_second)
}

/// Returns the share of one CPU that the agent used during `time`, in percent.
fn at_rest(agent: &Agent, time: Duration) -> Result<f64> {
    let before = ticks(agent)?;
    thread::sleep(time);
    Ok((ticks(agent)? - before) / time.as_secs_f64() * 100.0)
}

/// Restarts the agent. Returns the time until it answers, and the time until it has looked at every pod.
fn restart(agent: &mut Agent) -> Result<[f64; 2]> {
    // The socket of the killed agent still exists, but nobody listens on it.
    let start = Instant::now();
    agent.launch()?;
    agent.wait_listening()?;
    let ready = milliseconds(start.elapsed());
    agent.wait_ready()?;
    Ok([ready, milliseconds(start.elapsed())])
}
