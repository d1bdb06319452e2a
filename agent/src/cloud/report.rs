//! What `ebbtidectl cloud` shows: what the metadata says, what pods may have of it, and what not, and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::SystemTime,
};

use ebbtide_kernel::node::NodeFacts;
use ebbtide_types::Mac;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Cloud, derive::link_of};

/// The cloud as the agent knows it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudReport {
    /// The cloud's name; `null` without one.
    pub cloud: Option<String>,
    /// Why there is none.
    pub why_none: Option<String>,
    /// Where its metadata service is.
    pub endpoint: Option<String>,
    /// The links whose metadata networks or pods want. Nobody is asked while there is none.
    pub wanted: Vec<String>,
    /// When it was last read whole, in seconds since 1970.
    pub last_read: Option<u64>,
    /// Why it could not be read the last time.
    pub error: Option<String>,
    /// How often on end it could not be read.
    pub failures: u32,
    /// The NICs that it tells of.
    pub nics: Vec<CloudNicLine>,
    /// What it tells that no pod can have, with the reasons.
    pub left_out: Vec<String>,
    /// What the cloud controller asks back, if it ever asked for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_back: Option<AskedBackLine>,
}

/// What the cloud controller asks back, as sets in text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedBackLine {
    /// What it asks back: no new pod gets it.
    pub asked: String,
    /// What of it no pod has: the controller may take it away from the NIC.
    pub surrendered: String,
    /// What it asked back before: nobody gets it for twenty minutes.
    pub kept: String,
    /// Why it is not known what it asks back now: what it asked before stays valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// A NIC as the cloud tells it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudNicLine {
    /// The cloud's name of it; empty where there is none.
    pub id: String,
    /// Its MAC.
    pub mac: Mac,
    /// The link that it is on this node; `null` if there is none.
    pub link: Option<String>,
    /// Whether the cloud does not tell of it any more.
    pub is_gone: bool,
    /// Its primary addresses, which are the node's.
    pub primary: Vec<IpAddr>,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
    /// Its gateways, as told or by convention.
    pub gateways: Vec<IpAddr>,
    /// What was assigned to it.
    pub blocks: Vec<BlockLine>,
}

/// An address or a prefix that was assigned to a NIC.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockLine {
    /// It; an address is a prefix of one.
    pub block: IpNet,
    /// Whether pods may have it.
    pub state: BlockState,
    /// Why not; empty if they may.
    pub why: String,
    /// The pods that have an address of it.
    pub pods: Vec<String>,
}

/// Whether pods may have what was assigned to a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockState {
    /// Pods may have it.
    Usable,
    /// The cloud does not tell it any more: who has it keeps it, and nobody else gets it.
    Held,
    /// It is told, and not believed yet.
    Waiting,
}

impl Cloud {
    /// Reports what is known. `pods` are the pods by their addresses.
    #[must_use]
    pub fn report(
        &self,
        facts: &NodeFacts,
        wanted: Vec<String>,
        pods: &BTreeMap<IpAddr, String>,
    ) -> CloudReport {
        let state = self.state().clone();
        // Those of requests, too: a network that is only in a CNI configuration is declared nowhere.
        let wanted: BTreeSet<String> = wanted
            .into_iter()
            .chain(state.requested.into_keys())
            .collect();
        let (cloud, why_none) = match state.provider {
            Some(Ok(provider)) => (Some(provider.to_string()), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let line = |block: IpNet, state, why: String| BlockLine {
            block,
            state,
            why,
            pods: pods
                .iter()
                .filter(|(address, _)| block.contains(*address))
                .map(|(address, pod)| format!("{pod} ({address})"))
                .collect(),
        };
        let ledger = &state.ledger;
        let nics = ledger.nics().map(|(mac, nic)| {
            let usable = ledger.usable(mac).into_iter();
            let usable = usable.map(|block| line(block, BlockState::Usable, String::new()));
            let held = ledger.held(mac).into_iter();
            let held = held.map(|held| {
                let why = format!("not told for {} s", held.absent_for);
                line(held.block, BlockState::Held, why)
            });
            let waiting = ledger.waiting(mac).into_iter();
            let waiting =
                waiting.map(|one| line(one.block, BlockState::Waiting, one.reason.to_string()));
            CloudNicLine {
                id: nic.id.clone(),
                mac,
                link: link_of(facts, mac).map(|link| link.name.clone()),
                is_gone: nic.is_gone,
                primary: nic.primary.clone(),
                subnets: nic.subnets.clone(),
                gateways: nic.gateways.clone(),
                blocks: usable.chain(held).chain(waiting).collect(),
            }
        });
        let (error, failures) = state.failed.unzip();
        let asked_back = (!state.withheld.is_empty()).then(|| AskedBackLine {
            asked: state.asked_back.asked.to_string(),
            surrendered: state.asked_back.surrendered.to_string(),
            kept: state.asked_back.kept.to_string(),
            unknown: state.asked_back.unknown.clone(),
        });
        CloudReport {
            nics: nics.collect(),
            endpoint: Some(state.endpoint).filter(|_| cloud.is_some()),
            cloud,
            why_none,
            wanted: wanted.into_iter().collect(),
            last_read: state.last_read.and_then(|at| {
                let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
                Some(since.as_secs())
            }),
            error,
            failures: failures.unwrap_or(0),
            asked_back,
            left_out: state.left_out.iter().map(ToString::to_string).collect(),
        }
    }
}
