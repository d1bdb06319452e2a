//! Settings of the host that something else has changed. The agent restores them at its next comparison; what is found
//! here, it cannot write.

use ebbtide_kernel::{
    netlink::{
        model::{NamespacePlan, Sysctl},
        state::{Missing, differing_sysctls},
    },
    node::HostPlan,
};

use super::{Finding, Severity};

/// Reports settings of the NICs' plan and of `others` that have another value, and NICs that do not forward though the
/// node does.
pub(super) fn changed(host: &HostPlan, others: Vec<Sysctl>) -> Vec<Finding> {
    let of_nics = host.nics.iter().map(|nic| Sysctl {
        path: format!("net/ipv4/conf/{}/forwarding", nic.name),
        value: "1".to_owned(),
    });
    let mut all = NamespacePlan::default();
    all.sysctls
        .extend(host.plan.sysctls.iter().cloned().chain(others));
    all.sysctls.extend(of_nics);
    let differing = differing_sysctls(&all).into_iter();
    differing.filter_map(|missing| finding(&missing)).collect()
}

fn finding(missing: &Missing) -> Option<Finding> {
    // One that cannot be read disappeared with its link.
    let Missing::Sysctl(want, Some(_)) = missing else {
        return None;
    };
    Some(Finding {
        severity: Severity::Serious,
        what: format!("{missing}: packets are dropped that should pass"),
        hint: format!(
            "`sysctl -w {}={}`, and take it out of what changes it (/etc/sysctl.d)",
            want.path, want.value
        ),
    })
}
