//! Leader election: one controller of the cluster does the cluster-wide work. Uses a Lease, as client-go does.
//!
//! Correctness does not depend on a single leader: all of its writes are idempotent or conditional.
//! The Lease merely spares the API server a thousand of them.
//!
//! The other controllers watch the Lease and send no requests. Agents are no candidates: a node's
//! token may only write what belongs to that node.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
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

/// The name of the controller's Lease, in the agents' namespace.
const NAME: &str = "ebbtide-agent";

/// How long a mere query waits for an answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The timing of the election.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// How long a silent holder is considered alive.
    pub duration: Duration,
    /// The renewal interval of the holder, and the time limit of one renewal.
    pub renew: Duration,
    /// The maximum extra delay before taking over from a silent holder: candidates must not campaign all at once.
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
    /// Returns this candidate's part of the spread, derived from its name.
    fn spread(&self, me: &str) -> Duration {
        let seed = me.bytes().fold(0_u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        self.spread * (seed.wrapping_mul(2_654_435_761) >> 22) / 1024
    }
}

/// When a candidate last knew that it held the Lease, for whoever signs requests with that time.
#[derive(Debug, Clone, Default)]
pub struct Verified(Arc<Mutex<Option<(Instant, SystemTime)>>>);

impl Verified {
    /// Returns the time at which the last successful request about the Lease was sent, if the Lease is held still: nobody
    /// else can have it, by this machine's clock.
    #[must_use]
    pub fn time(&self, times: &Times) -> Option<SystemTime> {
        let (at, time) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let sure = times.duration.saturating_sub(times.renew);
        (at.elapsed() < sure).then_some(time)
    }

    fn set(&self, to: Option<(Instant, SystemTime)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

/// An election.
#[derive(Debug, Clone)]
pub struct Election {
    /// The Lease's name, in the agents' namespace.
    pub lease: &'static str,
    /// Its timing: all candidates should have the same.
    pub times: Times,
    /// Where it is told when the Lease was last known to be held.
    pub verified: Verified,
}

impl Default for Election {
    fn default() -> Self {
        Self {
            lease: NAME,
            times: Times::default(),
            verified: Verified::default(),
        }
    }
}

/// The next step of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// This candidate holds the Lease: renew it.
    Renew,
    /// The Lease has no holder, or a dead one: take it.
    Take,
    /// Another candidate holds it: wait.
    Wait,
}

/// The last observed change of the Lease, by the local clock: clocks of nodes differ.
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

    /// Records the Lease's state.
    fn see(&mut self, spec: Option<&LeaseSpec>, now: Instant) {
        let seen = spec.map(|spec| (spec.holder_identity.clone(), spec.renew_time.clone()));
        if self.spec != seen || self.since.is_none() {
            self.spec = seen;
            self.since = Some(now);
        }
    }

    /// Returns the next step for the observed state.
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

    /// Returns when to campaign for a Lease that another candidate holds.
    fn due(&self, me: &str) -> Option<Instant> {
        let wait = match self.step(me, self.since?) {
            Step::Wait => self.times.duration,
            Step::Renew | Step::Take => Duration::ZERO,
        };
        Some(self.since? + wait + self.times.spread(me))
    }
}

/// Returns the time since a controller last renewed the Lease, by this node's clock; `Some(None)`
/// if none ever did, `None` if that cannot be determined.
pub async fn silent_for(cluster: &Cluster) -> Option<Option<Duration>> {
    let api: Api<Lease> = Api::default_namespaced(cluster.client.clone());
    let lease = timeout(REQUEST_TIMEOUT, api.get_opt(NAME))
        .await
        .ok()?
        .ok()?;
    let Some(spec) = lease.and_then(|lease| lease.spec) else {
        return Some(None);
    };
    let renewed = spec.renew_time?.0.as_second();
    let now = Timestamp::try_from(SystemTime::now()).ok()?.as_second();
    let silent = u64::try_from(now - renewed).unwrap_or(0);
    Some(Some(Duration::from_secs(silent)))
}

/// Runs `work` whenever this controller is the leader, forever.
pub async fn lead<W, F>(cluster: Arc<Cluster>, work: W)
where
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    lead_with(cluster, Times::default(), work).await;
}

/// Runs as [`lead`], with other times. All controllers of a cluster should have the same.
pub async fn lead_with<W, F>(cluster: Arc<Cluster>, times: Times, work: W)
where
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let election = Election {
        times,
        ..Election::default()
    };
    lead_in(cluster, &election, work).await;
}

/// Runs as [`lead`], in another election.
pub async fn lead_in<W, F>(cluster: Arc<Cluster>, election: &Election, work: W)
where
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let api: Api<Lease> = Api::default_namespaced(cluster.client.clone());
    // From the API server's watch cache: it may be late, which is like a late holder.
    let only = Config::default()
        .fields(&format!("metadata.name={}", election.lease))
        .any_semantic();
    let events = watcher(api.clone(), only).default_backoff();
    run(&cluster, &api, election, events, work).await;
}

async fn run<S, W, F>(
    cluster: &Arc<Cluster>,
    api: &Api<Lease>,
    election: &Election,
    events: S,
    work: W,
) where
    S: Stream<Item = Result<Event<Lease>, watcher::Error>>,
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (name, times) = (election.lease, election.times);
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
                    // Requests may still work; if not, nothing does.
                    Some(Err(e)) => debug!("the Lease {name}: {e}"),
                    None => return,
                }
                if working.is_none() {
                    due = observed.due(me).unwrap_or(due);
                }
            }
            () = sleep_until(due) => {
                let asked = (Instant::now(), SystemTime::now());
                let campaigned = timeout(times.renew, campaign(api, name, me, &mut observed)).await;
                let now = Instant::now();
                match campaigned {
                    Ok(Ok(true)) => {
                        election.verified.set(Some(asked));
                        renewed = now;
                        due = now + times.renew;
                        if working.is_none() {
                            info!("elected leader by the Lease {name}: {me}");
                            working = Some(tokio::spawn(work(Arc::clone(cluster))));
                        }
                    }
                    Ok(Ok(false)) => {
                        election.verified.set(None);
                        stop(&mut working);
                        due = observed.due(me).unwrap_or(now).max(now + times.spread);
                    }
                    failed => {
                        debug!("the Lease {name}: {failed:?}");
                        due = now + times.renew / 2;
                        // Before another candidate may consider this one dead.
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
        warn!("another controller is the leader now");
        task.abort();
    }
}

/// Tries to take or renew the Lease. True if this candidate holds it now.
async fn campaign(
    api: &Api<Lease>,
    name: &str,
    me: &str,
    observed: &mut Observed,
) -> kube::Result<bool> {
    let found = api.get_opt(name).await?;
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
            name: Some(name.into()),
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
        // It contains the resourceVersion: of two who take it at once one is refused.
        api.replace(name, &params, &lease).await
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
        // Its clock may be years off: only a change counts.
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
        // Spread evenly enough: the first has a tenth of a second before the hundredth.
        assert!(
            waits[100] - waits[0] > Duration::from_millis(100),
            "{waits:?}"
        );
    }
}
