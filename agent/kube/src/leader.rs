//! One controller of the cluster is elected to do what concerns no node: a Lease, as client-go does it.
//!
//! Nothing depends on there being only one: every write of the elected one is idempotent or
//! conditional. The Lease merely spares the API server a thousand of them.
//!
//! The others watch the Lease and ask for nothing. Agents do not stand: a node's token may write what is that
//! node's alone, and this is everybody's.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::PostParams,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event, watcher},
    },
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::cluster::Cluster;

/// The Lease's name, in the agents' namespace.
const NAME: &str = "ebbtide-agent";

/// How long somebody who merely wants to know waits for an answer.
const ASK: Duration = Duration::from_secs(2);

/// How long things take at an election.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// How long a holder that says nothing is believed to live.
    pub duration: Duration,
    /// Between two renewals of the holder, and the longest that one may take.
    pub renew: Duration,
    /// How much longer one waits for a silent holder, at the most: all must not campaign at once.
    pub spread: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(12),
            renew: Duration::from_secs(4),
            spread: Duration::from_secs(3),
        }
    }
}

impl Times {
    /// This one's part of the spread, by its name.
    fn spread(&self, me: &str) -> Duration {
        let seed = me.bytes().fold(0_u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        self.spread * (seed.wrapping_mul(2_654_435_761) >> 22) / 1024
    }
}

/// What to do about the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is ours: say that we live.
    Renew,
    /// It is nobody's, or a dead one's.
    Take,
    /// It is somebody else's.
    Wait,
}

/// Who held the Lease when we last saw it change, by our own clock: clocks of nodes differ.
#[derive(Debug)]
struct Observed {
    times: Times,
    spec: Option<(Option<String>, Option<MicroTime>)>,
    since: Option<Instant>,
}

impl Observed {
    fn new(times: Times) -> Self {
        Self {
            times,
            spec: None,
            since: None,
        }
    }

    /// Notes what the Lease says.
    fn see(&mut self, spec: Option<&LeaseSpec>, now: Instant) {
        let seen = spec.map(|spec| (spec.holder_identity.clone(), spec.renew_time.clone()));
        if self.spec != seen || self.since.is_none() {
            self.spec = seen;
            self.since = Some(now);
        }
    }

    /// What is to be done, as far as is known.
    fn step(&self, me: &str, now: Instant) -> Step {
        let holder = self.spec.as_ref().and_then(|(holder, _)| holder.as_deref());
        match holder {
            Some(holder) if holder == me => Step::Renew,
            None | Some("") => Step::Take,
            Some(_) => {
                let silent = self.since.map_or(Duration::ZERO, |since| now - since);
                if silent >= self.times.duration {
                    Step::Take
                } else {
                    Step::Wait
                }
            }
        }
    }

    /// When to campaign for a Lease that is not ours.
    fn due(&self, me: &str) -> Option<Instant> {
        let wait = match self.step(me, self.since?) {
            Step::Wait => self.times.duration,
            Step::Renew | Step::Take => Duration::ZERO,
        };
        Some(self.since? + wait + self.times.spread(me))
    }
}

/// How long ago, by this node's clock, a controller said that it is at work; none if no one ever did. Nothing if that
/// cannot be told.
pub async fn silent_for(cluster: &Cluster) -> Option<Option<Duration>> {
    let api: Api<Lease> = Api::default_namespaced(cluster.client.clone());
    let lease = timeout(ASK, api.get_opt(NAME)).await.ok()?.ok()?;
    let Some(spec) = lease.and_then(|lease| lease.spec) else {
        return Some(None);
    };
    let renewed = spec.renew_time?.0.as_second();
    let now = Timestamp::try_from(SystemTime::now()).ok()?.as_second();
    let silent = u64::try_from(now - renewed).unwrap_or(0);
    Some(Some(Duration::from_secs(silent)))
}

/// Runs `work` while this controller is the elected one, for ever.
pub async fn lead<W, F>(cluster: Arc<Cluster>, work: W)
where
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    lead_with(cluster, Times::default(), work).await;
}

/// As [`lead`], with times of one's own. All controllers of a cluster should have the same.
pub async fn lead_with<W, F>(cluster: Arc<Cluster>, times: Times, work: W)
where
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let api: Api<Lease> = Api::default_namespaced(cluster.client.clone());
    // From the API server's memory: it may be late, which is like a holder that is.
    let only = Config::default()
        .fields(&format!("metadata.name={NAME}"))
        .any_semantic();
    let events = watcher(api.clone(), only).default_backoff();
    run(&cluster, &api, times, events, work).await;
}

async fn run<S, W, F>(cluster: &Arc<Cluster>, api: &Api<Lease>, times: Times, events: S, work: W)
where
    S: Stream<Item = Result<Event<Lease>, watcher::Error>>,
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut events = pin!(events);
    let me = cluster.node.as_str();
    let mut observed = Observed::new(times);
    let mut working: Option<JoinHandle<()>> = None;
    let mut renewed = Instant::now();
    let mut due = Instant::now();
    loop {
        tokio::select! {
            event = events.next() => {
                match event {
                    Some(Ok(Event::Apply(lease) | Event::InitApply(lease))) => {
                        observed.see(lease.spec.as_ref(), Instant::now());
                    }
                    Some(Ok(Event::Delete(_))) => observed.see(None, Instant::now()),
                    Some(Ok(Event::Init | Event::InitDone)) => {}
                    // Asking still works, or nothing does.
                    Some(Err(e)) => debug!("the Lease {NAME}: {e}"),
                    None => return,
                }
                if working.is_none() {
                    due = observed.due(me).unwrap_or(due);
                }
            }
            () = sleep_until(due) => {
                let campaigned = timeout(times.renew, campaign(api, me, &mut observed)).await;
                let now = Instant::now();
                match campaigned {
                    Ok(Ok(true)) => {
                        renewed = now;
                        due = now + times.renew;
                        if working.is_none() {
                            info!("elected: {me} writes what concerns no node");
                            working = Some(tokio::spawn(work(Arc::clone(cluster))));
                        }
                    }
                    Ok(Ok(false)) => {
                        stop(&mut working);
                        due = observed.due(me).unwrap_or(now).max(now + times.spread);
                    }
                    failed => {
                        debug!("the Lease {NAME}: {failed:?}");
                        due = now + times.renew / 2;
                        // Before another one may think that we are dead.
                        if renewed.elapsed() > times.duration.saturating_sub(times.renew) {
                            stop(&mut working);
                        }
                    }
                }
            }
        }
    }
}

fn stop(working: &mut Option<JoinHandle<()>>) {
    if let Some(task) = working.take() {
        warn!("another one is elected now");
        task.abort();
    }
}

/// True if the Lease is ours now.
async fn campaign(api: &Api<Lease>, me: &str, observed: &mut Observed) -> kube::Result<bool> {
    let found = api.get_opt(NAME).await?;
    let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
    let now = Instant::now();
    observed.see(spec, now);
    let step = observed.step(me, now);
    if step == Step::Wait {
        return Ok(false);
    }
    let old = spec.cloned().unwrap_or_default();
    let now = Timestamp::try_from(SystemTime::now()).ok().map(MicroTime);
    let taken = step == Step::Take;
    let transitions = old.lease_transitions.unwrap_or(0);
    let mut lease = found.clone().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    lease.metadata.managed_fields = None;
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(observed.times.duration.as_secs()).ok(),
        acquire_time: if taken { now.clone() } else { old.acquire_time },
        renew_time: now,
        lease_transitions: Some(transitions + i32::from(taken && found.is_some())),
        ..old
    });
    let params = PostParams::default();
    let written = if found.is_some() {
        // The resourceVersion is in it: of two who take it at once one is refused.
        api.replace(NAME, &params, &lease).await
    } else {
        api.create(&params, &lease).await
    };
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_is_silent_by_our_own_clock_is_succeeded_and_no_other() {
        let spec = |holder: &str, micros| LeaseSpec {
            holder_identity: Some(holder.into()),
            renew_time: Some(MicroTime(Timestamp::from_microsecond(micros).unwrap())),
            ..LeaseSpec::default()
        };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut observed = Observed::new(Times::default());
        assert_eq!(observed.step("me", start), Step::Take);
        // Its clock may be years off: only that it goes on counts.
        for (seen, at, look, expected) in [
            (Some(("me", 1)), 0, 0, Step::Renew),
            (Some(("", 1)), 0, 0, Step::Take),
            (None, 0, 0, Step::Take),
            (Some(("b", 1)), 0, 11, Step::Wait),
            (Some(("b", 2)), 11, 22, Step::Wait),
            (Some(("b", 2)), 22, 23, Step::Take),
            (Some(("c", 2)), 23, 34, Step::Wait),
            (Some(("c", 2)), 34, 35, Step::Take),
        ] {
            let spec = seen.map(|(holder, micros)| spec(holder, micros));
            observed.see(spec.as_ref(), after(at));
            assert_eq!(
                observed.step("me", after(look)),
                expected,
                "{seen:?} {look}"
            );
        }
    }

    #[test]
    fn candidates_do_not_campaign_at_once_and_none_waits_for_long() {
        let start = Instant::now();
        let times = Times::default();
        let mut observed = Observed::new(times);
        assert_eq!(observed.due("node-0"), None);
        let other = LeaseSpec {
            holder_identity: Some("b".into()),
            ..LeaseSpec::default()
        };
        observed.see(Some(&other), start);
        let mut waits: Vec<Duration> = (0..1000)
            .map(|number| observed.due(&format!("node-{number}")).unwrap() - start)
            .collect();
        waits.sort_unstable();
        assert!(waits[0] >= times.duration && waits[999] <= times.duration + times.spread);
        // Spread evenly enough: who is first has a tenth of a second before the hundredth.
        assert!(
            waits[100] - waits[0] > Duration::from_millis(100),
            "{waits:?}"
        );
    }
}
