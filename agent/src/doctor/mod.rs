//! What is wrong with this node, as far as it can be told, and what can be done about it.

mod addresses;
mod firewall;
mod kernel;
mod modules;
mod routing;
mod rp_filter;
mod settings;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{agent::Agent, catalog::Consequence, netlink::Error};

pub use kernel::too_old;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Something may come to harm.
    Warning,
    /// Pods have no network, or a wrong one.
    Serious,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, naming the thing.
    pub what: String,
    /// What can be done about it.
    pub way_out: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.way_out)
    }
}

/// Everything that can be found. The worst comes first.
///
/// # Errors
/// When the kernel does not answer.
pub async fn examine(agent: &Agent) -> Result<Vec<Finding>, Error> {
    let mut findings = configuration(agent).await?;
    findings.extend(nics_that_are_gone(agent).await?);
    findings.extend(modules::missing(agent.datapath.programs()).await);
    findings.extend(firewall::firewall(agent).await);
    findings.extend(pins(agent));
    if let Some(host) = agent.nics() {
        findings.extend(rp_filter::strict(&host.nics));
        findings.extend(settings::changed(&host.plan, agent.forwarding()));
    }
    let catalog = agent.catalog();
    let facts = agent.facts.get(&agent.host).await?;
    findings.extend(addresses::addresses(
        &facts,
        catalog.pools(),
        &agent.node_name,
    ));
    findings.extend(catalog.problems().iter().map(|problem| Finding {
        severity: match problem.consequence {
            Consequence::LeftOut => Severity::Serious,
            Consequence::FieldIgnored => Severity::Warning,
        },
        what: problem.to_string(),
        way_out: "correct the manifest; it is read again at once".to_owned(),
    }));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

/// What is wrong with the configuration on this node.
async fn configuration(agent: &Agent) -> Result<Vec<Finding>, Error> {
    let facts = agent.facts.get(&agent.host).await?;
    let foreign = agent.host.foreign().await?;
    let catalog = agent.catalog();
    let networks = catalog.networks().iter();
    let masters = networks.map(|network| (network.name.to_string(), network.master.as_str()));
    let mut findings = routing::intruders(&facts, &foreign, &agent.settings);
    findings.extend(routing::masters(&facts, masters));
    Ok(findings)
}

/// Maps that are not where the next agent looks for them.
fn pins(agent: &Agent) -> Option<Finding> {
    let missing = agent.datapath.missing_pins();
    let first = missing.first()?;
    Some(Finding {
        severity: Severity::Warning,
        what: format!(
            "{} of the maps that running pods' programs use are not pinned any more (the first: {}): the next agent \
             begins with empty ones, and flows that are under way are forgotten",
            missing.len(),
            first.display()
        ),
        way_out: "if the bpf file system was unmounted, mount it again (`mount -t bpf bpf /sys/fs/bpf`); then \
                  restart the agent at a time when that does no harm"
            .to_owned(),
    })
}

/// Interfaces that went with their NIC.
///
/// # Errors
/// When the kernel does not answer.
pub async fn nics_that_are_gone(agent: &Agent) -> Result<Vec<Finding>, Error> {
    let facts = agent.facts.get(&agent.host).await?;
    let interfaces = agent.interfaces().into_iter();
    let gone = interfaces.filter_map(|(owner, net)| {
        let master = net.master().filter(|master| facts.nic(master).is_none())?;
        Some((owner, net.pod.clone(), master.to_owned()))
    });
    Ok(gone
        .map(|(owner, pod, master)| Finding {
            severity: Severity::Serious,
            what: format!(
                "{} of pod {pod} is gone: its NIC {master} is not on this node any more",
                owner.interface
            ),
            way_out: "plug the NIC in again: the interface comes back with it; or delete the pod"
                .to_owned(),
        })
        .collect())
}

/// The agent must not start like this.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Refused(Vec<Finding>);

/// Refuses a wrong configuration, before anything is put on the node. Not while there are pods: who
/// has been running here before must not leave them alone because somebody else came.
///
/// # Errors
/// What is wrong, and the way out.
pub async fn admit(agent: &Agent) -> Result<(), Refused> {
    let findings = match configuration(agent).await {
        Ok(findings) => findings,
        Err(e) => {
            tracing::warn!("whether tables and priorities are free is not known: {e}");
            return Ok(());
        }
    };
    let (serious, rest): (Vec<_>, Vec<_>) = findings
        .into_iter()
        .partition(|finding| finding.severity == Severity::Serious);
    let running = !agent.pools.list().is_empty();
    for finding in rest.iter().chain(serious.iter().filter(|_| running)) {
        tracing::warn!("{finding}");
    }
    match serious.is_empty() || running {
        true => Ok(()),
        false => Err(Refused(serious)),
    }
}
