//! What an agent would change on this node, before there is one.

use std::path::Path;

use ebbtide_ipam::catalog::Catalog;
use ebbtide_kernel::{
    datapath::{HostNic, is_on_bpffs},
    netlink::{
        Error, Netlink,
        model::Sysctl,
        state::{Missing, differing_sysctls},
    },
    node::{self, NodeFacts, REDIRECT_DEVICE, Rules},
};
use ebbtide_types::settings::Settings;
use serde::{Deserialize, Serialize};

use crate::{agent::View, query::NicLine};

use super::{Finding, Severity, hooks, modes, routing};

/// Where bpf file systems are mounted.
const BPF_DIR: &str = "/sys/fs/bpf";

/// What an agent would do on this node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// The role of each link.
    pub links: Vec<NicLine>,
    /// What the host gets with the first pod, each as a line. All of it is removed with the last pod, except the
    /// settings below `net/*/conf/all` and `net/ipv4/ip_forward`, which others may rely on by then.
    pub with_the_first_pod: Vec<String>,
    /// What would keep the agent from starting, or pods from having a network.
    pub findings: Vec<Finding>,
}

/// Inspects the calling thread's namespace and changes nothing.
///
/// # Errors
/// If the kernel does not answer.
pub async fn dry_run(
    settings: &Settings,
    catalog: &Catalog,
    node_name: &str,
) -> Result<DryRun, Error> {
    let host = Netlink::open("in the host")?;
    let facts = NodeFacts::read(&host).await?;
    let view = View {
        catalog,
        node_name,
        allowed: &settings.foreign_subnets,
    };
    let to_be = view.expected_networks(&facts);
    let known = view.known(&to_be);
    let taken = node::classify_all(&facts, &known, &settings.nics);
    let tables = routing::tables(&taken, settings);
    let foreign = host.foreign(&tables).await?;
    let routed = view.routed(&facts, &to_be, &settings.nics);
    let preferred = settings.rule_priority;
    let base = node::preceding_base(preferred, None, &foreign.rules, &routed)
        .or_else(|| node::free_priorities(preferred, &foreign.rules));
    let rules = Rules {
        settings,
        base: base.unwrap_or(preferred),
        foreign: &foreign.rules,
    };
    let behind = |nic: &node::Nic| view.nic_networks(nic, &facts, &to_be);
    let plan = node::host_plan(
        &facts,
        &known,
        behind,
        &[],
        None,
        node::strict_rp_filters(),
        rules,
    );
    let mut sysctls = crate::agent::forwarding(&facts);
    sysctls.extend_from_slice(&plan.plan.sysctls);
    let mut lines = settings_lines(sysctls);
    lines.push(format!(
        "link {REDIRECT_DEVICE} (dummy): the redirect device"
    ));
    lines.extend(plan.nics.iter().map(nic_line));
    lines.extend(plan.plan.routes.iter().map(ToString::to_string));
    lines.extend(plan.plan.rules.iter().map(ToString::to_string));
    lines.extend(plan.plan.filters.iter().map(ToString::to_string));
    let networks = catalog.networks().iter();
    let masters = networks.map(|network| (network.name.to_string(), network.master.as_str()));
    let mut findings = routing::conflicts(&taken, &foreign, settings);
    let in_front: Vec<_> = node::preceding_rules(rules.base, &foreign.rules, &routed)
        .cloned()
        .collect();
    findings.extend(routing::in_front(rules.base, &in_front));
    findings.extend(super::marks::shared(rules.values(), &plan.nics));
    findings.extend(hooks::shared(&host, None, &plan).await?);
    findings.extend(routing::masters(&facts, masters));
    findings.extend(modes::of_others(&modes::wanted(&facts, catalog)));
    findings.extend(super::references::dangling(catalog, node_name, &taken));
    findings.extend(super::manifests(catalog));
    findings.extend(of_the_kernel().await);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let links = taken.into_iter();
    Ok(DryRun {
        links: links.map(|(nic, taken)| NicLine::new(nic, taken)).collect(),
        with_the_first_pod: lines,
        findings,
    })
}

/// Reports what would keep an agent from starting on this kernel, and what pods would lack.
async fn of_the_kernel() -> Vec<Finding> {
    let serious = |what: String, hint: &str| Finding {
        severity: Severity::Serious,
        what,
        hint: hint.to_owned(),
    };
    let mut findings = Vec::new();
    let release = nix::sys::utsname::uname();
    let release = release.map_or_else(
        |_| String::new(),
        |names| names.release().to_string_lossy().into_owned(),
    );
    if let Some(old) = super::too_old(&release) {
        let what = format!("{old}: the agent does not start");
        findings.push(serious(what, "use a newer kernel"));
    }
    if !is_on_bpffs(Path::new(BPF_DIR)) {
        findings.push(serious(
            format!("no bpf file system is mounted at {BPF_DIR}: the agent does not start"),
            "`mount -t bpf bpf /sys/fs/bpf`; with --bpf-dir the agent uses another place",
        ));
    }
    findings.extend(super::not_loaded::missing(&release).await);
    findings
}

/// Returns the settings that have other values now, each as a line.
fn settings_lines(sysctls: Vec<Sysctl>) -> Vec<String> {
    let plan = ebbtide_kernel::netlink::model::NamespacePlan {
        sysctls,
        ..Default::default()
    };
    let differing = differing_sysctls(&plan).into_iter();
    differing
        .map(|missing| match missing {
            Missing::Sysctl(want, Some(found)) => format!("{want} (now {found})"),
            other => other.to_string(),
        })
        .collect()
}

fn nic_line(nic: &HostNic) -> String {
    format!("mark {:#x} for replies by {}", nic.mark, nic.name)
}
