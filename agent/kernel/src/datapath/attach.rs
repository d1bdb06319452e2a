//! Attaches the programs of the host, as TCX links where the kernel has them and as tc filters elsewhere, and tells what
//! is attached.

use tracing::warn;

use super::{Datapath, Error, Programs};
use crate::netlink::{
    self, Batch, Netlink,
    hooks::TcHooks,
    model::{Filter, NamespacePlan},
    state::NamespaceState,
};

/// A NIC without an egress hook: a foreign queueing discipline `ingress` occupies its only place for filters, and the
/// kernel has no TCX (before 6.6).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} has a foreign qdisc `ingress`, which has no egress hook: source-NIC enforcement cannot \
     be attached, so packets with another NIC's address leave by {0}"
)]
pub struct NoHook(pub String);

impl Datapath {
    /// Attaches a program in the host, or replaces an older one, without a gap: at a NIC at once by a TCX link, if the
    /// kernel has TCX, and otherwise as a tc filter with `batch`.
    ///
    /// # Errors
    /// If a foreign queueing discipline occupies the program's hook.
    pub fn attach_in_host(
        &self,
        batch: &mut Batch,
        hooks: &TcHooks,
        programs: &Programs,
        filter: &Filter,
        ifindex: u32,
    ) -> Result<(), NoHook> {
        let is_taken = hooks.are_taken_for(filter, ifindex);
        if self.nic_links.uses_link(filter) {
            match self.nic_links.attach(programs, filter, ifindex) {
                Ok(()) => {
                    // An older agent, without TCX links, left a tc filter. In a qdisc `ingress`, with one list for both
                    // directions, deleting it would delete the filter of the other direction.
                    if !is_taken {
                        batch.delete_filter(filter, ifindex);
                    }
                    return Ok(());
                }
                Err(e) => warn!("attach {filter} by a TCX link: {e}; it is a tc filter instead"),
            }
        }
        if is_taken {
            return Err(NoHook(filter.link.clone()));
        }
        if let Some(program) = programs.fd(&filter.program) {
            batch.add_filter(filter, ifindex, program);
        }
        Ok(())
    }

    /// Reads the host's state of the objects in `plan`, programs at TCX included, and of `links` besides.
    ///
    /// # Errors
    /// If the kernel refuses to answer.
    pub async fn state_of_host(
        &self,
        host: &Netlink,
        plan: &NamespacePlan,
        links: &[&str],
    ) -> Result<NamespaceState, netlink::Error> {
        let mut state = NamespaceState::read_with(host, plan, links).await?;
        let by_link = plan.filters.iter().filter(|filter| {
            let link = state.links.get(&filter.link);
            link.is_some_and(|link| self.nic_links.has(filter, link.ifindex))
        });
        state.found.filters.extend(by_link.cloned());
        Ok(state)
    }

    /// Whether a foreign queueing discipline occupies this program's hook in the host, and no TCX link holds the
    /// program.
    #[must_use]
    pub fn has_no_hook(&self, hooks: &TcHooks, filter: &Filter, ifindex: u32) -> bool {
        hooks.are_taken_for(filter, ifindex) && !self.nic_links.has(filter, ifindex)
    }

    /// Describes the foreign programs that see a NIC's packets before this program, and can keep them from it.
    ///
    /// # Errors
    /// If the kernel refuses to answer.
    pub async fn preceding_programs(
        &self,
        host: &Netlink,
        filter: &Filter,
        ifindex: u32,
    ) -> Result<Vec<String>, netlink::Error> {
        if self.nic_links.has(filter, ifindex) {
            return Ok(self.nic_links.preceding_programs(filter, ifindex));
        }
        let filters = host.preceding_filters(ifindex, filter.direction).await?;
        Ok(filters.iter().map(ToString::to_string).collect())
    }

    /// Whether this host program is attached by a TCX link, not as a tc filter.
    #[must_use]
    pub fn is_by_link(&self, filter: &Filter, ifindex: u32) -> bool {
        self.nic_links.has(filter, ifindex)
    }

    /// Detaches Ebbtide's TCX links from former NICs: from all but `nics`.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn retain_nics(&self, nics: &[u32]) -> Result<(), Error> {
        self.nic_links.retain(nics)
    }
}
