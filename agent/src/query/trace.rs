//! `ebbtidectl trace`: reports live what each program does with a pod's packets.
//!
//! Tracing programs replace the usual ones in the filters without a gap. The usual ones are restored at the end,
//! whatever causes it: the time is over, the requested number of lines was sent, the reader has left, or the agent is
//! stopped. If the agent is killed, the next one attaches its own programs, and until then the tracing ones report
//! nothing once their time is over.

mod line;

use std::{collections::BTreeSet, time::Duration};

use ebbtide_kernel::{
    datapath::{self, Programs, TraceRequest, Tracer},
    netlink::{Batch, Netlink, hooks::TcHooks, model::Filter, netns::Evidence},
    podnet::PodNet,
};
use ebbtide_plugin::wire::{Response, Trace};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, interval, interval_at},
};
use tracing::{debug, warn};

use super::{Agent, refuse, select};

use line::Names;
pub use line::TraceLine;

/// Held by the only trace: a hook has one program.
static TRACING: Mutex<()> = Mutex::const_new(());

/// The interval at which new events are read.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The interval at which the tracing programs are attached again: whatever the agent applies to a pod or a NIC
/// meanwhile replaces them with the usual ones.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The longest trace, in seconds.
const LONGEST: u32 = 3600;

/// A namespace, and the filters in it whose programs are replaced: each with its link's index.
struct Place {
    netlink: Netlink,
    is_the_host: bool,
    hooks: TcHooks,
    filters: Vec<(Filter, u32)>,
}

/// Traces until the time is over, the requested number of lines was sent, or the reader has left.
pub async fn trace(agent: &Agent, request: &Trace, answers: mpsc::Sender<Response>) {
    let last = match follow(agent, request, &answers).await {
        Ok(()) => Response {
            exit: 0,
            output: String::new(),
        },
        Err(e) => refuse(e),
    };
    let _gone = answers.send(last).await;
}

async fn follow(
    agent: &Agent,
    request: &Trace,
    answers: &mpsc::Sender<Response>,
) -> Result<(), String> {
    let nets = select(agent, &request.pod)?;
    let Ok(_alone) = TRACING.try_lock() else {
        return Err("somebody traces on this node already: one trace at a time".to_owned());
    };
    let time = Duration::from_secs(request.seconds.clamp(1, LONGEST).into());
    let addresses: Vec<_> = nets.iter().flat_map(PodNet::ips).collect();
    if addresses.len() > Tracer::ADDRESSES {
        let most = Tracer::ADDRESSES;
        return Err(format!(
            "{} has more than {most} addresses: name one of its peers (--peer)",
            request.pod
        ));
    }
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let start = nanoseconds(datapath::uptime());
    let wanted = TraceRequest {
        pod: addresses,
        peer: request.peer,
        port: request.port,
        protocol: request.protocol,
        until: start.saturating_add(nanoseconds(time)),
    };
    let mut tracer = agent.datapath.tracer(&wanted).map_err(|e| e.to_string())?;
    let places = places(agent, &nets).await?;
    let names = Names::new(agent, start, &places);
    let told = match replace(agent, &places, &tracer.programs).await {
        Ok(()) => {
            let end = Instant::now() + time;
            send_events(
                agent,
                &mut tracer,
                &names,
                &places,
                request.count,
                end,
                answers,
            )
            .await
        }
        Err(e) => Err(e),
    };
    // A program that cannot be restored belongs to a pod that has ended.
    if let Err(e) = replace(agent, &places, &agent.datapath.programs()).await {
        debug!("after a trace: {e}");
    }
    told
}

/// Sends the programs' events as lines to the client.
async fn send_events(
    agent: &Agent,
    tracer: &mut Tracer,
    names: &Names,
    places: &[Place],
    count: Option<u32>,
    end: Instant,
    answers: &mpsc::Sender<Response>,
) -> Result<(), String> {
    let mut left = count.unwrap_or(u32::MAX);
    let mut look = interval(POLL_INTERVAL);
    let mut again = interval_at(Instant::now() + RETRY_INTERVAL, RETRY_INTERVAL);
    while Instant::now() < end && left > 0 {
        tokio::select! {
            _ = look.tick() => {}
            _ = again.tick() => {
                if let Err(e) = replace(agent, places, &tracer.programs).await {
                    return Err(format!("the pod or a NIC went meanwhile: {e}"));
                }
            }
            () = answers.closed() => return Ok(()),
        }
        for event in tracer.events() {
            if left == 0 {
                break;
            }
            let line = names.line(&event);
            let output = serde_json::to_string(&line).map_err(|e| e.to_string())?;
            if answers.send(Response { exit: 0, output }).await.is_err() {
                return Ok(());
            }
            left -= 1;
        }
    }
    Ok(())
}

/// Returns the hooks that a pod's packets pass: its own, its veth's, and the NICs'.
async fn places(agent: &Agent, nets: &[PodNet]) -> Result<Vec<Place>, String> {
    let mut in_pod = BTreeSet::new();
    let mut in_host = BTreeSet::new();
    for net in nets {
        in_pod.extend(net.in_pod.filters.iter().cloned());
        in_host.extend(net.in_host.filters.iter().cloned());
    }
    if let Some(nics) = agent.nics() {
        in_host.extend(nics.plan.filters.iter().cloned());
    }
    let net = nets.first().ok_or("the pod has no interface")?;
    let netns = match net.namespace().map_err(|e| e.to_string())? {
        Evidence::Present(netns) => netns,
        Evidence::Gone => return Err(format!("the network namespace of {} is gone", net.pod)),
    };
    let place = format!("in {}", net.netns.display());
    let pod = netns
        .run(|| Netlink::open(place))
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    Ok(vec![
        Place::new(pod, in_pod, false).await?,
        Place::new(agent.host.clone(), in_host, true).await?,
    ])
}

impl Place {
    async fn new(
        netlink: Netlink,
        filters: BTreeSet<Filter>,
        is_the_host: bool,
    ) -> Result<Self, String> {
        let links = netlink.links().await.map_err(|e| e.to_string())?;
        let filters = filters
            .into_iter()
            .filter_map(|filter| {
                let link = links.iter().find(|link| link.name == filter.link)?;
                Some((filter, link.ifindex))
            })
            .collect();
        let hooks = netlink.tc_hooks().await.map_err(|e| e.to_string())?;
        Ok(Self {
            netlink,
            is_the_host,
            hooks,
            filters,
        })
    }
}

/// Attaches other programs, as many as possible; returns the first error.
async fn replace(agent: &Agent, places: &[Place], programs: &Programs) -> Result<(), String> {
    let mut trouble = None;
    for place in places {
        let mut batch = Batch::default();
        for (filter, ifindex) in &place.filters {
            if place.is_the_host {
                let datapath = &agent.datapath;
                let attached =
                    datapath.attach_in_host(&mut batch, &place.hooks, programs, filter, *ifindex);
                if let Err(e) = attached {
                    debug!("trace: {e}");
                }
            } else if let Some(program) = programs.fd(&filter.program) {
                batch.add_filter(filter, *ifindex, program);
            }
        }
        for failure in batch.run_all(&place.netlink).await {
            warn!("trace: {failure}");
            trouble.get_or_insert(failure.to_string());
        }
    }
    trouble.map_or(Ok(()), Err)
}
