//! Reconciles the interfaces of one container: whether its namespace still exists, whether its plan is what the node
//! and the manifests require now, and whether something in the pod has changed it.

use std::{sync::Arc, time::Duration};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::{
    netlink::netns::Evidence,
    node::NodeFacts,
    podnet::{self, ForeignRouting, PodNet},
};
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::{
    Action, Failure, Key, Outcome, RESYNC, Reconciler, Scope,
    events::{is_guarded, is_held, is_open_to_foreign},
};
use crate::{agent::Drift, metrics::Place};

/// The cooldown after an inspection of a pod that found nothing, however often events occur: other plugins' pods cause
/// them as well.
const COOLDOWN: Duration = Duration::from_secs(1);

/// Whether an inspection found something that was changed in the pod.
type Found = bool;

/// The result of reconciling an interface.
enum Inspection {
    /// Its namespace no longer existed.
    Released,
    /// It is in the desired state. `changed`: something in the pod had changed it.
    There { changed: Found },
}

/// Compares all interfaces of a container, and repairs them. A failure of one does not affect the others.
pub(super) async fn reconcile(
    reconciler: &Reconciler,
    key: &Key,
    id: &str,
    scope: Scope,
) -> Result<Outcome, Failure> {
    let agent = &reconciler.agent;
    let (_lock, facts) = match reconciler.running.take(key) {
        Some((lock, facts)) => (lock, Some(facts)),
        // Its lock may be held for long, for instance while an IPAM plugin does not answer.
        None => match agent.locks.try_write(id) {
            Some(lock) => (lock, None),
            None => {
                if scope.guard {
                    revert_changes_meanwhile(reconciler, id).await;
                }
                return Ok(Outcome::Busy);
            }
        },
    };
    let interfaces = agent.interfaces_of(id);
    if interfaces.is_empty() {
        return Ok(Outcome::Done(Action::await_change()));
    }
    let facts = match facts {
        Some(facts) => facts,
        None => {
            let unknown = |e| Failure::new(format!("cannot be inspected: {e}"));
            agent.facts.get(&agent.host).await.map_err(unknown)?
        }
    };
    let mut failure = None;
    let (mut found, mut is_there) = (false, false);
    for (owner, net) in interfaces {
        let item = Item {
            reconciler,
            owner: &owner,
            facts: &facts,
        };
        match item.reconcile(net, scope).await {
            Ok(Inspection::Released) => {}
            Ok(Inspection::There { changed }) => {
                found |= changed;
                is_there = true;
            }
            Err(first) => drop(failure.get_or_insert(first)),
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if !is_there {
        return Ok(Outcome::Done(Action::await_change()));
    }
    let cooldown = match scope.is_inside() && !found {
        true => COOLDOWN,
        false => Duration::ZERO,
    };
    Ok(Outcome::Done(
        Action::requeue(RESYNC).with_cooldown(cooldown),
    ))
}

/// Removes foreign addresses and modes from a pod at once, even while a command holds its container's lock: that
/// changes nothing of Ebbtide's. A failure is repeated with the rest.
async fn revert_changes_meanwhile(reconciler: &Reconciler, id: &str) {
    let agent = &reconciler.agent;
    let Ok(facts) = agent.facts.get(&agent.host).await else {
        return;
    };
    for (_, net) in agent.interfaces_of(id) {
        if is_guarded(&net) {
            let taken = &reconciler.taken;
            let reverted = taken.revert_changes(&net, &agent.host, &facts).await;
            drop(reverted.inspect_err(|e| debug!(pod = %net.pod, "{e}")));
        }
    }
}

/// An interface that is being reconciled.
struct Item<'a> {
    reconciler: &'a Reconciler,
    owner: &'a Owner,
    facts: &'a Arc<NodeFacts>,
}

impl Item<'_> {
    async fn reconcile(&self, net: Arc<PodNet>, scope: Scope) -> Result<Inspection, Failure> {
        let agent = &self.reconciler.agent;
        if !self.is_there(&net).await? {
            let released = agent.release_gone(self.owner, &net).await;
            released.map_err(|e| self.failure(&net, format!("could not be released: {e}")))?;
            return Ok(Inspection::Released);
        }
        // An interface that was removed with its NIC returns with it: `ebbtidectl status` names it, and the NIC's
        // return is an event. If the NIC was renamed, the interface works on.
        let is_without_nic = agent.is_without_nic(&net, self.facts);
        if is_without_nic && agent.nic_of(self.facts, &net).is_none() {
            return Ok(Inspection::There { changed: false });
        }
        // First and by itself: beside a foreign default route the whole plan is refused, again and again.
        let followed = match scope.foreign {
            true => self.follow_foreign().await,
            false => Ok(false),
        };
        let net = agent.interface(self.owner).unwrap_or(net);
        if !is_without_nic {
            self.follow_node(&net, scope).await?;
        }
        let mut changed = followed?;
        if scope.guard && is_held(&net) {
            changed |= self.guard().await?;
        }
        Ok(Inspection::There { changed })
    }

    /// Whether its namespace still exists, by evidence alone: if it cannot be inspected, the interface stays.
    async fn is_there(&self, net: &Arc<PodNet>) -> Result<bool, Failure> {
        let looked = Arc::clone(net);
        // Blocking: whoever made the namespace chose its file system.
        let evidence = spawn_blocking(move || looked.namespace()).await;
        match evidence.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())) {
            Ok(Evidence::Present(_)) => Ok(true),
            Ok(Evidence::Gone) => Ok(false),
            Err(e) => Err(self.failure(
                net,
                format!("its network namespace cannot be examined: {e}"),
            )),
        }
    }

    /// Applies the current plan to the interface, if it has changed.
    async fn follow_node(&self, net: &Arc<PodNet>, scope: Scope) -> Result<(), Failure> {
        let agent = &self.reconciler.agent;
        let drift = agent.drift(self.owner, net, self.facts);
        if drift.is_none() && !scope.apply {
            return Ok(());
        }
        let new = agent.replanned(net, self.facts);
        self.apply_plan(net, new, "cannot be reconciled with the node")
            .await?;
        match drift {
            Some(Drift::Plan | Drift::Nic) => {
                info!(pod = %net.pod, interface = self.owner.interface, "reconciled after a change of the node");
            }
            Some(Drift::Unknown) | None => {}
        }
        Ok(())
    }

    /// Removes addresses and modes that the pod may not have, and attaches programs again that were detached.
    async fn guard(&self) -> Result<Found, Failure> {
        let agent = &self.reconciler.agent;
        let Some(net) = agent.interface(self.owner) else {
            return Ok(false);
        };
        let reverted = match is_guarded(&net) {
            true => {
                let taken = &self.reconciler.taken;
                let reverted = taken.revert_changes(&net, &agent.host, self.facts).await;
                let cannot = "cannot undo an address or a mode that was set in the pod";
                self.unless_gone(&net, reverted, cannot)?
            }
            false => Some(false),
        };
        let Some(reverted) = reverted else {
            return Ok(false);
        };
        let is_attached = podnet::is_attached(&net).await;
        let is_attached =
            self.unless_gone(&net, is_attached, "cannot look for Ebbtide's eBPF programs")?;
        if is_attached != Some(false) {
            return Ok(reverted);
        }
        let new = agent.replanned(&net, self.facts);
        self.apply_plan(&net, new, "cannot attach the eBPF programs again")
            .await?;
        let what = format!("{}'s programs were detached", net.pod);
        agent.metrics.events.repaired(Place::Pod, "program", what);
        warn!(
            pod = %net.pod,
            interface = self.owner.interface,
            "the eBPF programs, with the spoof guard and the limit of its bandwidth, were detached from the pod's \
             interface: repaired; only a pod with CAP_NET_ADMIN can do that"
        );
        Ok(true)
    }

    /// Adapts the plan to what else is in the pod and may route its replies. What was found once counts for good.
    ///
    /// Anything foreign requires the reply rule: without it a reply follows the routing table, and may leave by a link
    /// that has no program of Ebbtide's.
    ///
    /// Foreign rules that route by marks, as those of transparent proxies do, require that the programs follow the pod's
    /// connections. The kernel gives an accepted socket the *whole* mark of its SYN (`tcp_fwmark_accept`), including the
    /// part that a proxy has set and routes by (`TPROXY --tproxy-mark`). The proxy's replies would follow its own rule
    /// back into the pod.
    async fn follow_foreign(&self) -> Result<Found, Failure> {
        let agent = &self.reconciler.agent;
        let Some(net) = agent
            .interface(self.owner)
            .filter(|net| is_open_to_foreign(net))
        else {
            return Ok(false);
        };
        let found = ForeignRouting::read(&net).await;
        let cannot = "cannot look for foreign links and rules";
        let Some(found) = self.unless_gone(&net, found, cannot)? else {
            return Ok(false);
        };
        let mut following = PodNet::clone(&net);
        let Some(spec) = &mut following.spec else {
            return Ok(false);
        };
        let (takes_marks, had_rule) = (spec.accept_marks, spec.reply_rule);
        spec.accept_marks &= !found.by_mark;
        spec.reply_rule = Some(had_rule == Some(true) || found.any);
        let (is_marked, has_rule) = (takes_marks && found.by_mark, spec.reply_rule);
        if !is_marked && has_rule == had_rule {
            return Ok(false);
        }
        let new = agent.replanned(&following, self.facts);
        let applied = agent.apply_difference(self.owner, &net, new, self.facts);
        applied.await.map_err(|e| {
            let what = "cannot adapt its replies to what else routes them";
            self.failure(&net, format!("{what}: {e}"))
        })?;
        if is_marked {
            info!(
                pod = %net.pod,
                interface = self.owner.interface,
                "the pod has foreign routing rules by mark: its TCP replies use the flow table from \
                 now on, not marks on its sockets"
            );
        }
        if has_rule == Some(true) && had_rule == Some(false) {
            info!(
                pod = %net.pod,
                interface = self.owner.interface,
                "the pod has a foreign link, default route or routing rule: its replies have a rule \
                 from now on"
            );
        }
        Ok(true)
    }

    async fn apply_plan(&self, net: &Arc<PodNet>, new: PodNet, what: &str) -> Result<(), Failure> {
        let put = self
            .reconciler
            .agent
            .apply_plan(self.owner, net, new, self.facts);
        put.await
            .map_err(|e| self.failure(net, format!("{what}: {e}")))
    }

    /// Returns what was found in the pod; `None` if it has just ended, which the next comparison finds.
    fn unless_gone<T>(
        &self,
        net: &PodNet,
        found: Result<T, podnet::Error>,
        cannot: &str,
    ) -> Result<Option<T>, Failure> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(podnet::Error::NamespaceGone(_)) => Ok(None),
            Err(e) => Err(self.failure(net, format!("{cannot}: {e}"))),
        }
    }

    fn failure(&self, net: &PodNet, error: String) -> Failure {
        Failure::of_interface(&net.pod, &self.owner.interface, error)
    }
}
