//! An address that is assigned to a NIC while the demonstration runs, on its way into a pod.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    lab::Lab,
    metadata::Cloud,
    plan::{Family, Plan},
    pod::Pod,
};
use ipnet::IpNet;
use serde::Serialize;

use super::cloud::families;

/// The NIC that has no address to spare.
const NODE: &str = "master";
const NIC: &str = "ens6";
/// The pod that waits for one.
const POD: &str = "f";
/// How often the agent is asked.
const PAUSE: Duration = Duration::from_millis(600);
/// The longest time until the pod has its address.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, with the times since the assignment in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Arrival {
    /// The pod.
    pub pod: String,
    /// The NIC, with its node.
    pub nic: String,
    /// What was assigned.
    pub addresses: Vec<IpAddr>,
    /// What the runtime was answered before.
    pub refused: String,
    /// When the agent knew of it.
    pub told: f64,
    /// When the agent believed it.
    pub usable: f64,
    /// When the pod had it.
    pub ready: f64,
}

/// Leaves one address for pods to the NIC, of each of these families: that of the pod `c`.
pub(super) fn leave_one(plan: &mut Plan, families: &[Family]) {
    let nics = plan.nodes.iter_mut().flat_map(|node| &mut node.nics);
    for nic in nics.filter(|nic| nic.node == NODE && nic.name == NIC) {
        for family in families {
            let subnet = match family {
                Family::V4 => &mut nic.v4,
                Family::V6 => &mut nic.v6,
            };
            subnet.secondary.truncate(1);
        }
    }
}

/// An assignment that is followed.
#[derive(Debug)]
pub(super) struct Followed<'a> {
    lab: &'a Lab,
    addresses: Vec<IpAddr>,
    refused: String,
    begin: Instant,
    looked: Instant,
    told: Option<Duration>,
    usable: Option<Duration>,
    pod: Option<(Pod, Duration)>,
}

impl<'a> Followed<'a> {
    /// Lets a pod find that the NIC has no address left, and assigns one of each family that the cloud tells.
    pub(super) fn begin(lab: &'a Lab, cloud: Cloud) -> Result<Self> {
        let refused = match lab.pod(NODE, NIC, POD) {
            Ok(pod) => bail!("{NODE}/{NIC} has addresses left: {:?}", pod.addresses),
            Err(error) => error.root_cause().to_string(),
        };
        // The last ones of the NIC in the plan that all others use.
        let whole = Plan::default();
        let nic = whole.node(NODE).and_then(|node| node.nic(NIC));
        let nic = nic.with_context(|| format!("the plan has no NIC {NODE}/{NIC}"))?;
        let last = |family: &Family| nic.subnet(*family).secondary.last().copied();
        let addresses: Vec<IpAddr> = families(cloud).iter().filter_map(last).collect();
        for address in &addresses {
            lab.vpc.assign(NODE, NIC, *address)?;
        }
        let begin = Instant::now();
        Ok(Self {
            lab,
            addresses,
            refused,
            begin,
            looked: begin,
            told: None,
            usable: None,
            pod: None,
        })
    }

    /// Looks whether the agent believes it, unless it has just been looked at, and creates the pod as soon as it does.
    pub(super) fn look(&mut self) -> Result<()> {
        if self.pod.is_some() || self.looked.elapsed() < PAUSE {
            return Ok(());
        }
        let states = self.states()?;
        self.looked = Instant::now();
        let since = self.begin.elapsed();
        if states.iter().all(Option::is_some) {
            self.told.get_or_insert(since);
        }
        if states
            .iter()
            .all(|state| state.as_deref() == Some("usable"))
        {
            self.usable = Some(since);
            let pod = self.lab.pod(NODE, NIC, POD)?;
            self.pod = Some((pod, self.begin.elapsed()));
        }
        Ok(())
    }

    /// Waits until the pod has it.
    pub(super) fn wait(mut self) -> Result<(Pod, Arrival)> {
        loop {
            self.look()?;
            let (Some((pod, ready)), Some(told), Some(usable)) =
                (self.pod.take(), self.told, self.usable)
            else {
                if self.begin.elapsed() > PATIENCE {
                    bail!(
                        "the agent does not believe {:?} after {PATIENCE:?}\n{}",
                        self.addresses,
                        self.lab.logs()
                    );
                }
                thread::sleep(PAUSE);
                continue;
            };
            let arrival = Arrival {
                pod: pod.name.clone(),
                nic: format!("{NODE}/{NIC}"),
                addresses: self.addresses,
                refused: self.refused,
                told: told.as_secs_f64(),
                usable: usable.as_secs_f64(),
                ready: ready.as_secs_f64(),
            };
            return Ok((pod, arrival));
        }
    }

    /// Returns the state of each address, if the agent knows of it.
    fn states(&self) -> Result<Vec<Option<String>>> {
        let mut agents = self.lab.agents();
        let agent = agents.find(|agent| agent.node() == NODE);
        let agent = agent.with_context(|| format!("there is no agent on {NODE}"))?;
        let report = agent.control_json(&["cloud"])?;
        let nics = report["nics"].as_array().into_iter().flatten();
        let blocks: Vec<_> = nics
            .filter(|nic| nic["link"] == NIC)
            .flat_map(|nic| nic["blocks"].as_array().into_iter().flatten())
            .collect();
        let state = |address: &IpAddr| {
            let text = IpNet::from(*address).to_string();
            let block = blocks.iter().find(|block| block["block"] == text)?;
            block["state"].as_str().map(str::to_owned)
        };
        Ok(self.addresses.iter().map(state).collect())
    }
}
