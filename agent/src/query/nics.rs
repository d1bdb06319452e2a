//! `ebbtidectl nics`: each link of the node, its role, and the reason for it.

use ebbtide_kernel::{
    datapath::HostNic,
    netlink::Error,
    node::{Classification, Nic, Role, Rules, nic_table},
};
use ebbtide_types::settings::Settings;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::agent::Agent;

/// A line of `ebbtidectl nics`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NicLine {
    /// The link's name.
    pub name: String,
    /// The link's kind, as `ip -d link` shows it; empty for hardware.
    pub kind: String,
    /// Its addresses, without link-local ones.
    pub addresses: Vec<IpNet>,
    /// Its role: `nic` (replies leave by it), `node` (its addresses are the node's) or `others`.
    pub taken_for: String,
    /// The reason for its role.
    pub why: String,
    /// The number of pods' interfaces on it.
    pub pods: usize,
    /// Its routing table, while the node has pods.
    pub table: Option<u32>,
    /// Its bits of the mark, while the node has pods; zero if there were not enough.
    pub mark: Option<u32>,
    /// Whether it filters reverse paths strictly.
    pub strict: bool,
}

impl NicLine {
    /// Makes a line from what is known of a link without an agent.
    #[must_use]
    pub fn new(nic: Nic, taken: Classification) -> Self {
        Self {
            strict: ebbtide_kernel::node::is_strict(&nic.name),
            name: nic.name,
            kind: nic.kind.unwrap_or_default(),
            addresses: nic.addresses,
            taken_for: match taken.role {
                Role::Nic => "nic",
                Role::Node => "node",
                Role::Others => "others",
            }
            .to_owned(),
            why: taken.why,
            pods: 0,
            table: None,
            mark: None,
        }
    }
}

pub(super) async fn nics(agent: &Agent) -> Result<Vec<NicLine>, Error> {
    let facts = agent.facts.get(&agent.host).await?;
    let settings: &Settings = &agent.settings;
    let prepared = agent.nics();
    let interfaces = agent.interfaces();
    let mut prepared_nics = prepared.iter().flat_map(|plan| &plan.nics);
    let without_mark = match prepared_nics.any(|nic| nic.mark == 0) {
        true => why_without_mark(agent).await?,
        false => String::new(),
    };
    let lines = agent
        .classified_links(&facts)
        .into_iter()
        .map(|(nic, taken)| {
            let pods = interfaces
                .iter()
                .filter(|(_, net)| net.master() == Some(nic.name.as_str()));
            let ifindex = nic.ifindex;
            let known = prepared
                .iter()
                .flat_map(|plan| &plan.nics)
                .find(|known| known.ifindex == ifindex);
            NicLine {
                pods: pods.count(),
                table: known.map(|_| nic_table(settings, ifindex)),
                mark: known.map(|known| known.mark),
                ..NicLine::new(nic, with_reason(taken, known, &without_mark))
            }
        });
    Ok(lines.collect())
}

/// Returns why a NIC has no mark.
async fn why_without_mark(agent: &Agent) -> Result<String, Error> {
    let foreign = agent.host.foreign_rules().await?;
    let rules = Rules {
        settings: &agent.settings,
        base: agent.settings.rule_priority,
        foreign: &foreign,
    };
    Ok(match rules.values().blocking_rule() {
        Some(rule) => format!("foreign rules match all free values of nicMarks (`{rule}`)"),
        None => "nicMarks has too few bits".to_owned(),
    })
}

fn with_reason(
    taken: Classification,
    known: Option<&HostNic>,
    without_mark: &str,
) -> Classification {
    match known.is_some_and(|known| known.mark == 0) {
        true => Classification {
            why: format!("{}; no mark: {without_mark}", taken.why),
            ..taken
        },
        false => taken,
    }
}
