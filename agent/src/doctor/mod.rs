//! `ebbtidectl doctor`: what is wrong with this node, as far as it can be told, and what can be done about it.

mod addresses;
mod by_gateway;
mod cloud;
mod controller;
mod culprit;
mod dry_run;
mod failing;
mod firewall;
mod hooks;
mod installation;
mod kernel;
mod marks;
mod metrics;
mod modes;
mod modules;
mod not_loaded;
mod references;
mod routing;
mod rp_filter;
mod settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ebbtide_ipam::catalog::{Catalog, Consequence};
use ebbtide_kernel::{
    netlink::Error,
    node::{HostPlan, NodeFacts, Rules},
};
use ebbtide_types::Family;
use serde::{Deserialize, Serialize};

use crate::{
    agent::{Agent, forwarding},
    host_root::HostRoot,
};

pub use dry_run::{DryRun, dry_run};
pub use firewall::may_have_nft;
pub use kernel::too_old;

/// How severe a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Something may be harmed.
    Warning,
    /// Pods have no network, or a wrong one.
    Serious,
}

/// A problem that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How severe it is.
    pub severity: Severity,
    /// The problem, naming the object.
    pub what: String,
    /// What can be done about it.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.hint)
    }
}

/// Returns all findings, the most severe first.
///
/// # Errors
/// If the kernel does not answer.
pub async fn examine(agent: &Agent) -> Result<Vec<Finding>, Error> {
    let mut findings = configuration(agent).await?;
    findings.extend(of_the_node(agent).await?);
    findings.extend(modules::missing(agent.datapath.programs()).await);
    findings.extend(firewall::firewall(agent).await);
    findings.extend(pins(agent));
    findings.extend(installation::missing(agent.installation.fault()));
    findings.extend(metrics::unserved(agent.metrics.listening.fault()));
    let facts = agent.facts.get(&agent.host).await?;
    findings.extend(without_ipv6(agent, &facts));
    findings.extend(agent.refused_on_nics().into_iter().map(refused));
    findings.extend(failing::failing(agent.work.failing()));
    if let Some(host) = agent.nics() {
        findings.extend(rp_filter::strict(
            &host.nics,
            ebbtide_kernel::node::is_strict,
        ));
        let datapath = Some(&agent.datapath);
        findings.extend(hooks::shared(&agent.host, datapath, &host).await?);
        let routes = agent.host.routes_by_gateways().await?;
        findings.extend(by_gateway::not_followed(&host.nics, &routes, |nic| {
            host.gateways(nic.ifindex, &agent.settings)
        }));
        if *host != HostPlan::default() {
            findings.extend(settings::changed(&host, forwarding(&facts)));
            let foreign = agent.host.foreign_rules().await?;
            let (base, in_front) = agent.preceding_rules(&facts, &foreign);
            findings.extend(routing::in_front(base, &in_front));
            let rules = Rules {
                settings: &agent.settings,
                base,
                foreign: &foreign,
            };
            findings.extend(marks::shared(rules.values(), &host.nics));
            for family in Family::BOTH {
                if agent.host.are_ours_behind_local(family).await? {
                    findings.push(routing::behind_local(family, &foreign));
                }
            }
        }
    }
    let catalog = agent.catalog();
    let wanted = modes::wanted(&facts, &catalog);
    let looked = tokio::task::spawn_blocking(move || modes::of_others(&wanted)).await;
    findings.extend(looked.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())));
    findings.extend(addresses::missing_gateways(
        &facts,
        catalog.pools(),
        &agent.node_name,
    ));
    findings.extend(references::dangling(
        &catalog,
        &agent.node_name,
        &agent.classified_links(&facts),
    ));
    findings.extend(manifests(&catalog));
    findings.extend(controller::absent(agent).await);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

/// Reports a part of the node's own network that the kernel refused.
fn refused(what: String) -> Finding {
    Finding {
        severity: Severity::Serious,
        what: format!("the kernel refuses what replies by a NIC need, or its pods: {what}"),
        hint: "see whether the gateway and the addresses of this NIC's pools are right, and what of others is in the \
                  way (`ip route show table all`); it is tried again every half minute"
            .to_owned(),
    }
}

/// Reports problems of the manifests.
fn manifests(catalog: &Catalog) -> impl Iterator<Item = Finding> {
    catalog.problems().iter().map(|problem| Finding {
        severity: match problem.consequence {
            Consequence::LeftOut => Severity::Serious,
            Consequence::FieldIgnored | Consequence::Narrowed => Severity::Warning,
        },
        what: problem.to_string(),
        hint: "correct the manifest; it is read again at once".to_owned(),
    })
}

/// Reports conflicts of this node's configuration.
async fn configuration(agent: &Agent) -> Result<Vec<Finding>, Error> {
    let facts = agent.facts.get(&agent.host).await?;
    let links = agent.classified_links(&facts);
    let tables = routing::tables(&links, &agent.settings);
    let foreign = agent.host.foreign(&tables).await?;
    let catalog = agent.catalog();
    let networks = catalog.networks().iter();
    let masters = networks.map(|network| (network.name.to_string(), network.master.as_str()));
    let mut findings = routing::conflicts(&links, &foreign, &agent.settings);
    findings.extend(routing::masters(&facts, masters));
    Ok(findings)
}

/// Reports maps that are not pinned where the next agent looks for them.
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
        hint: "if the bpf file system was unmounted, mount it again (`mount -t bpf bpf /sys/fs/bpf`); then \
                  restart the agent at a time when that does no harm"
            .to_owned(),
    })
}

/// Reports foreign changes to the node that harm pods, or that withhold addresses from them.
///
/// # Errors
/// If the kernel does not answer.
pub async fn of_the_node(agent: &Agent) -> Result<Vec<Finding>, Error> {
    let facts = agent.facts.get(&agent.host).await?;
    let mut findings = nics_that_are_gone(agent, &facts);
    let catalog = agent.catalog();
    let routes = agent.host.local_routes().await?;
    let rules = agent.host.foreign_rules().await?;
    let culprits = move || culprit::Culprits::read(HostRoot::get(), &rules);
    let culprits = tokio::task::spawn_blocking(culprits).await;
    let mut pods = BTreeMap::new();
    agent.each_interface(|_, net| {
        let taken = net.ips().into_iter().filter(|ip| facts.takes(*ip));
        pods.extend(taken.map(|ip| (ip, net.pod.clone())));
    });
    let mut lost = BTreeSet::new();
    for address in pods.keys() {
        if agent.host.is_local(*address).await.unwrap_or(false) {
            lost.insert(*address);
        }
    }
    let taken = addresses::Taken {
        facts: &facts,
        routes: &routes,
        lost: &lost,
        pods: &pods,
        culprits: &culprits.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())),
    };
    let pod_of = |address| pod_of(agent, address);
    findings.extend(addresses::addresses(
        &taken,
        catalog.pools(),
        &agent.node_name,
        pod_of,
    ));
    findings.extend(addresses::local_routes(&taken));
    findings.extend(cloud::cloud(&agent.cloud_report().await?));
    Ok(findings)
}

/// Returns the pod that has an address.
fn pod_of(agent: &Agent, address: IpAddr) -> Option<String> {
    let status = agent.pools.lookup(address);
    if let Some(reservation) = status.reservation {
        return Some(reservation.pod.to_string());
    }
    let holder = status.holder?;
    let net = agent.interface(&holder);
    Some(net.map_or(holder.container_id, |net| net.pod.clone()))
}

/// Reports interfaces whose NIC was removed or renamed.
fn nics_that_are_gone(agent: &Agent, facts: &NodeFacts) -> Vec<Finding> {
    let interfaces = agent.interfaces().into_iter();
    let missing = interfaces.filter_map(|(owner, net)| {
        let master = net.master().filter(|master| facts.nic(master).is_none())?;
        let now = agent.nic_of(facts, &net).map(|nic| nic.name.clone());
        Some((owner, net.pod.clone(), master.to_owned(), now))
    });
    missing
        .map(|(owner, pod, master, now)| match now {
            Some(now) => Finding {
                severity: Severity::Warning,
                what: format!(
                    "the NIC {master} of pod {pod} ({}) is called {now} now: the pod goes on, and new pods of \
                     networks whose master is {master} fail",
                    owner.interface
                ),
                hint: format!(
                    "name {now} as the master in the networks' manifests, or give the NIC its name back: `ip link \
                     set {now} name {master}`"
                ),
            },
            None => Finding {
                severity: Severity::Serious,
                what: format!(
                    "{} of pod {pod} is gone: its NIC {master} is not on this node any more",
                    owner.interface
                ),
                hint: "plug the NIC in again: the interface comes back with it; or delete the pod"
                    .to_owned(),
            },
        })
        .collect()
}

/// Reports NICs with pods that have IPv6, where IPv6 is off.
fn without_ipv6(agent: &Agent, facts: &NodeFacts) -> Vec<Finding> {
    let mut pods: BTreeMap<String, usize> = BTreeMap::new();
    for (_, net) in agent.interfaces() {
        let nic = agent.nic_of(facts, &net).filter(|nic| !nic.ipv6);
        if let Some(nic) = nic.filter(|_| net.ips().iter().any(IpAddr::is_ipv6)) {
            *pods.entry(nic.name.clone()).or_default() += 1;
        }
    }
    pods.into_iter()
        .map(|(nic, pods)| Finding {
            severity: Severity::Serious,
            what: format!("IPv6 is off on {nic}: {pods} pod interface(s) there have IPv6 addresses that cannot be reached"),
            hint: format!(
                "turn it on (`sysctl -w net.ipv6.conf.{nic}.disable_ipv6=0`; with `ipv6.disable=1` on the kernel's \
                 command line there is none), or name no IPv6 pools for its networks"
            ),
        })
        .collect()
}

/// The findings for which the agent must not start.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Refused(Vec<Finding>);

/// Refuses a wrong configuration, before anything is applied to the node. If there are pods, it only logs: a running
/// agent must not abandon them because of a conflict that came later.
///
/// # Errors
/// The serious findings, with their hints.
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
