//! What somebody wipes from the host comes back, and the log says what it was.
//!
//! systemd-networkd, NetworkManager, nm-cloud-setup and people remove rules and routes that they do
//! not know; the kernel itself drops a NIC's routes when the NIC goes down. Nobody tells the agent,
//! so it listens to the kernel's announcements, and compares plan and kernel when something went.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::SocketAddr,
};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::{
    agent::Agent,
    netlink::{
        Batch, Error, Netlink,
        model::NamespacePlan,
        state::{Missing, NamespaceState},
    },
    node::NodeFacts,
};

/// Wiping comes in bursts; one comparison serves a whole burst.
const SETTLE: Duration = Duration::from_millis(200);

/// Between two looks without being told: neighbour entries go without a word, since listening to
/// every neighbour of a busy node would cost more than a look now and then.
const LOOK: Duration = Duration::from_secs(30);

/// Between two repairs, however often somebody wipes.
const PAUSE: Duration = Duration::from_secs(1);

type Announcements = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Watches the host until the process ends.
pub async fn watch(agent: Arc<Agent>) {
    loop {
        match listen() {
            Ok(announcements) => repair_when_told(&agent, announcements).await,
            Err(e) => warn!("what is wiped from the host will not be seen: {e}"),
        }
        // The socket overran or could not be opened: whatever was missed is found by looking.
        sleep(PAUSE).await;
        repair(&agent).await;
    }
}

fn listen() -> io::Result<Announcements> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
        MulticastGroup::Tc,
    ];
    let (connection, _handle, announcements) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    Ok(announcements)
}

async fn repair_when_told(agent: &Agent, mut announcements: Announcements) {
    loop {
        match timeout(LOOK, announcements.next()).await {
            Ok(None) => return,
            Ok(Some((announcement, _))) if !is_suspicious(&announcement) => continue,
            Ok(Some(_)) | Err(_) => {}
        }
        // Let the burst pass; what was announced meanwhile is covered by the comparison after it.
        sleep(SETTLE).await;
        while let Some(Some(_)) = announcements.next().now_or_never() {}
        repair(agent).await;
        sleep(PAUSE).await;
    }
}

/// Whether something may be gone now: an object was deleted, or a link changed its state.
fn is_suspicious(announcement: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage as Message;
    matches!(
        &announcement.payload,
        NetlinkPayload::InnerMessage(
            Message::DelRule(_)
                | Message::DelRoute(_)
                | Message::DelAddress(_)
                | Message::NewAddress(_)
                | Message::NewLink(_)
                | Message::DelLink(_)
                | Message::DelQueueDiscipline(_)
                | Message::DelTrafficFilter(_)
        )
    )
}

async fn repair(agent: &Agent) {
    match put_back(agent).await {
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

/// Compares the host with the plans of all interfaces and puts back what can be.
async fn put_back(agent: &Agent) -> Result<Vec<Missing>, Error> {
    let host: &Netlink = &agent.host;
    let interfaces = agent.interfaces();
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    let facts = NodeFacts::read(host).await?;
    // A NIC that was plugged in, an address that came: another plan, applied as a whole.
    agent.prepare_nics(&facts).await;
    let mut plan = NamespacePlan::default();
    if let Some(nics) = agent.nics().await {
        plan.routes.extend_from_slice(&nics.plan.routes);
        plan.rules.extend_from_slice(&nics.plan.rules);
        plan.filters.extend_from_slice(&nics.plan.filters);
    }
    let mut masters = BTreeMap::new();
    for (_, net) in &interfaces {
        masters.entry(net.ipvlan.master.as_str()).or_insert(net);
        plan.neighbours.extend_from_slice(&net.in_host.neighbours);
        plan.routes.extend_from_slice(&net.in_host.routes);
        plan.filters.extend_from_slice(&net.in_host.filters);
    }
    for net in masters.into_values() {
        let nic = agent.nic_plan(&facts, net);
        plan.routes.extend(nic.routes);
        plan.rules.extend(nic.rules);
    }
    without_repetition(&mut plan);
    let state = NamespaceState::read(host, &plan).await?;
    let mut batch = Batch::default();
    let mut put_back = Vec::new();
    // A link that is down takes no routes: its coming up is announced, and then is the time. One
    // that is not there belongs to a pod that is just being made, or removed.
    let usable = |link: &str| state.links.get(link).filter(|l| l.up).map(|l| l.ifindex);
    for missing in state.missing(&plan) {
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
            Missing::Filter(filter) => {
                let program = agent.datapath.program(&filter.program);
                match (usable(&filter.link), program) {
                    (Some(index), Some(program)) => batch.add_filter(filter, index, program),
                    _ => continue,
                }
            }
            Missing::Sysctl(..) | Missing::Address(_) => continue,
        }
        put_back.push(missing);
    }
    for failure in batch.run_all(host).await {
        // Its link went meanwhile; or the kernel says why not, and the next look tries again.
        debug!("{failure}");
    }
    Ok(put_back)
}
