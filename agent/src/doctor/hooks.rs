//! Conflicts over the hooks on the node's NICs, which other programs use, too.

use ebbtide_kernel::{
    datapath::{self, Datapath, NoHook},
    netlink::{Error, Netlink, hooks::TcHooks, model::Filter},
    node::HostPlan,
};

use super::{Finding, Severity};

/// Reports programs of the plan that cannot be attached, or that run behind foreign ones. Without a `datapath`, the
/// programs that this would apply to.
///
/// # Errors
/// If the kernel does not answer.
pub(super) async fn shared(
    host: &Netlink,
    datapath: Option<&Datapath>,
    plan: &HostPlan,
) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    let hooks = host.tc_hooks().await?;
    for filter in &plan.plan.filters {
        let mut nics = plan.nics.iter();
        let Some(nic) = nics.find(|nic| nic.name == filter.link) else {
            continue;
        };
        let place = Place {
            filter,
            ifindex: nic.ifindex,
        };
        let finding = match datapath {
            Some(datapath) => place.now(host, datapath, &hooks).await?,
            // A TCX link is attached in front of all others, and needs no queueing discipline.
            None if datapath::has_tcx() => None,
            None => place.to_be(host, &hooks).await?,
        };
        findings.extend(finding);
    }
    Ok(findings)
}

/// A hook of a NIC, and the program that belongs there.
struct Place<'p> {
    filter: &'p Filter,
    ifindex: u32,
}

impl Place<'_> {
    async fn now(
        &self,
        host: &Netlink,
        datapath: &Datapath,
        hooks: &TcHooks,
    ) -> Result<Option<Finding>, Error> {
        let Self { filter, ifindex } = *self;
        if datapath.has_no_hook(hooks, filter, ifindex) {
            return Ok(Some(taken(&filter.link)));
        }
        let others = datapath.preceding_programs(host, filter, ifindex).await?;
        Ok(behind(filter, &others))
    }

    async fn to_be(&self, host: &Netlink, hooks: &TcHooks) -> Result<Option<Finding>, Error> {
        let Self { filter, ifindex } = *self;
        if hooks.are_taken_for(filter, ifindex) {
            return Ok(Some(taken(&filter.link)));
        }
        let others = host.preceding_filters(ifindex, filter.direction).await?;
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        Ok(behind(filter, &others))
    }
}

fn taken(nic: &str) -> Finding {
    Finding {
        severity: Severity::Serious,
        what: NoHook(nic.to_owned()).to_string(),
        hint: format!(
            "let its owner use `clsact`, which takes the same filters (`tc qdisc add dev {nic} clsact`; what was \
             `parent ffff:` is `ingress` then): the agent does the rest within half a minute. Kernels from 6.6 on need \
             neither"
        ),
    }
}

fn behind(filter: &Filter, others: &[String]) -> Option<Finding> {
    let Filter {
        link: nic,
        direction,
        ..
    } = filter;
    (!others.is_empty()).then(|| Finding {
        severity: Severity::Warning,
        what: format!(
            "at {nic} ({direction}) others see packets before ebbtide: {}; what they let through for good or take away \
             (TC_ACT_OK, `action ok`, a redirection) ebbtide does not see",
            others.join(", ")
        ),
        hint: "see that they pass on what they have no word on (TC_ACT_UNSPEC, `action continue`), or put them \
                  behind ebbtide's: a tc filter with a greater pref than 235, a TCX link attached last"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use ebbtide_kernel::netlink::model::Direction;

    use super::*;

    #[test]
    fn who_is_in_front_is_named_and_nobody_is_no_finding() {
        let others = ["tc filter flower (pref 1)", "tc filter u32 (pref 50)"];
        let filter = Filter {
            link: "ens5".to_owned(),
            direction: Direction::Ingress,
            program: "any".to_owned(),
            only_from: None,
        };
        let finding = behind(&filter, &others.map(str::to_owned));
        for part in others.iter().chain(&["ens5", "ingress"]) {
            assert!(finding.as_ref().is_some_and(|f| f.what.contains(part)));
        }
        assert_eq!(behind(&filter, &[]), None);
    }
}
