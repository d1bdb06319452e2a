//! What somebody wipes from the host comes back, and the log says what it was.
//!
//! systemd-networkd, NetworkManager, nm-cloud-setup and people remove rules and routes that they do
//! not know; the kernel itself drops a NIC's routes when the NIC goes down. Nobody tells the agent,
//! so it listens to the kernel's announcements, and compares plan and kernel when something went.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::{
    agent::{Agent, forwarding},
    netlink::{
        Batch, Error, Netlink,
        announcement::Announcements,
        hooks::TcHooks,
        model::NamespacePlan,
        state::{Missing, differing_sysctls},
        sysctl,
    },
    node::{Attention, Interest, NodeFacts},
};

/// Wiping comes in bursts; one comparison serves a whole burst.
const SETTLE: Duration = Duration::from_millis(200);

/// Between two looks without being told: neighbour entries go without a word, since listening to
/// every neighbour of a busy node would cost more than a look now and then.
const LOOK: Duration = Duration::from_secs(30);

/// Between two repairs, however often somebody wipes.
const PAUSE: Duration = Duration::from_secs(1);

/// What each comparison is told under, at level debug, with how much the kernel answered.
const LOOKS: &str = "ebbtide_agent::looks";

/// Watches the host until the process ends.
pub async fn watch(agent: Arc<Agent>) {
    loop {
        match Announcements::listen() {
            Ok(announcements) => {
                agent.facts.listen(true);
                repair_when_told(&agent, announcements).await;
                agent.facts.listen(false);
            }
            Err(e) => warn!("what is wiped from the host will not be seen: {e}"),
        }
        // The socket could not be opened: whatever was missed is found by looking.
        sleep(PAUSE).await;
        repair(&agent, None).await;
    }
}

/// Ends when the socket does. Everything that is announced is heard at once, also while something
/// is being repaired: who makes an interface meanwhile must not act on what has changed.
async fn repair_when_told(agent: &Agent, mut announcements: Announcements) {
    let attention = Attention::to_all(announcements.routes());
    let told = &agent.look_again;
    let mut manifests = agent.catalogs();
    let listening = async {
        while let Some(announcement) = announcements.next().await {
            let news = agent.facts.hear(&announcement);
            if news || attention.is_drawn_by(&announcement) {
                told.notify_one();
            }
        }
    };
    let repairing = async {
        // After a start every pod is being put right in any case.
        let _or_not = timeout(LOOK, agent.all_taken_over()).await;
        loop {
            repair(agent, Some(&attention)).await;
            sleep(PAUSE).await;
            let other_manifests = manifests.changed();
            let _long_silence = timeout(LOOK, async {
                tokio::select! {
                    () = told.notified() => {}
                    _ = other_manifests => {}
                }
            })
            .await;
            // Let the burst pass.
            sleep(SETTLE).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = repairing => {}
    }
}

async fn repair(agent: &Agent, attention: Option<&Attention>) {
    match put_back(agent, attention).await {
        Ok(missing) => {
            for object in missing {
                warn!("{object} in the host: put back; something on this node removes it");
            }
        }
        Err(e) => warn!("what is missing in the host could not be put back: {e}"),
    }
}

/// Two plans may name the same object: a NIC's table is in the NIC's and in its pods'.
fn without_repetition(plan: &mut NamespacePlan) {
    plan.routes.sort();
    plan.routes.dedup();
    plan.rules.sort();
    plan.rules.dedup();
    plan.filters.sort();
    plan.filters.dedup();
}

/// Writes the settings that have other values, and gives those.
fn settings(facts: &NodeFacts, plan: &NamespacePlan) -> Vec<Missing> {
    let mut all = NamespacePlan::default();
    all.sysctls.extend(forwarding(facts));
    all.sysctls.extend_from_slice(&plan.sysctls);
    let mut differing = differing_sysctls(&all);
    differing.retain(|missing| match missing {
        // One that cannot be read went with its link.
        Missing::Sysctl(want, Some(_)) => match sysctl::write(want) {
            Ok(()) => true,
            Err(e) => {
                debug!("{e}");
                false
            }
        },
        _ => false,
    });
    differing
}

/// Compares the host with the plans of all interfaces and puts back what can be. Attention is turned to what they depend
/// on.
async fn put_back(agent: &Agent, attention: Option<&Attention>) -> Result<Vec<Missing>, Error> {
    let host: &Netlink = &agent.host;
    let facts = agent.facts.get(host).await?;
    agent.withhold(&facts, &agent.catalog());
    // A NIC that was plugged in, an address that came: another plan, applied as a whole.
    agent.prepare_nics(&facts, None).await;
    agent.renew_pods(&facts).await;
    // Half of what is being made looks like something that was wiped.
    let at_rest = agent.interfaces_at_rest();
    if !at_rest.are_all {
        agent.look_again.notify_one();
    }
    let turn_to = |interest| {
        if let Some(attention) = attention {
            attention.turn_to(interest);
        }
    };
    let interfaces = &at_rest.interfaces;
    if interfaces.is_empty() {
        turn_to(Interest::default());
        return Ok(Vec::new());
    }
    let mut plan = NamespacePlan::default();
    if let Some(nics) = agent.nics() {
        plan.routes.extend_from_slice(&nics.plan.routes);
        plan.rules.extend_from_slice(&nics.plan.rules);
        plan.filters.extend_from_slice(&nics.plan.filters);
        plan.sysctls.extend_from_slice(&nics.plan.sysctls);
    }
    for (_, net) in interfaces {
        plan.neighbours.extend_from_slice(&net.in_host.neighbours);
        plan.routes.extend_from_slice(&net.in_host.routes);
        plan.rules.extend_from_slice(&net.in_host.rules);
        plan.filters.extend_from_slice(&net.in_host.filters);
    }
    without_repetition(&mut plan);
    let before = host.received().await;
    let state = agent.datapath.state_of_host(host, &plan, &[]).await?;
    turn_to(Interest::of(&plan, &state.links));
    let mut batch = Batch::default();
    let mut put_back = settings(&facts, &plan);
    let mut revived = Vec::new();
    for (_, net) in interfaces {
        let Some(veth) = &net.veth else { continue };
        let Some(link) = state.links.get(&veth.host_name) else {
            continue;
        };
        if let Some(what) = link.differs(veth.mtu, Some(veth.host_mac)) {
            batch.put_right(link, veth.mtu, Some(veth.host_mac));
            batch.set_up(&link.name, link.ifindex, None);
            revived.push(link.name.clone());
            put_back.push(Missing::Link(link.name.clone(), what));
        }
    }
    // A link that is down takes no routes: its coming up is announced, and then is the time. One
    // that is not there went with its pod.
    let usable = |link: &str| {
        let found = state.links.get(link)?;
        (found.up || revived.contains(&found.name)).then_some(found.ifindex)
    };
    let missing = state.missing(&plan);
    let read = host.received().await - before;
    let (messages, bytes) = (read.messages, read.bytes);
    debug!(
        target: LOOKS,
        missing = missing.len(),
        messages,
        bytes,
        "the host was compared with the plans"
    );
    let hooks = match missing.is_empty() {
        true => TcHooks::default(),
        false => host.tc_hooks().await?,
    };
    for missing in missing {
        match &missing {
            Missing::Rule(rule) => batch.add_rule(rule),
            Missing::Route(route) => match usable(&route.link) {
                Some(index) => batch.add_route(route, index),
                None => continue,
            },
            Missing::Neighbour(neighbour) => match usable(&neighbour.link) {
                Some(index) => batch.add_neighbour(neighbour, index),
                None => continue,
            },
            Missing::Filter(filter) => match usable(&filter.link) {
                Some(index) => {
                    let programs = agent.datapath.programs();
                    let datapath = &agent.datapath;
                    let attached =
                        datapath.attach_in_host(&mut batch, &hooks, &programs, filter, index);
                    if attached.is_err() {
                        continue;
                    }
                }
                None => continue,
            },
            Missing::Sysctl(..) | Missing::Address(_) | Missing::Link(..) => continue,
        }
        put_back.push(missing);
    }
    for failure in batch.run_all(host).await {
        // Its link went meanwhile; or the kernel says why not, and the next look tries again.
        debug!("{failure}");
    }
    Ok(put_back)
}
