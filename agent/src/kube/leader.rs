//! One agent of the cluster is elected to do what concerns no node: a Lease, as client-go does it.
//!
//! Nothing depends on there being only one: every write of the elected one is idempotent or
//! conditional. The Lease merely spares the API server a thousand of them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use tokio::{task::JoinHandle, time::Instant};
use tracing::{debug, info, warn};

use super::cluster::Cluster;

/// The Lease's name, in the agent's namespace.
const NAME: &str = "ebbtide-agent";

/// How long a holder that says nothing is believed to live. Every agent looks now and then, so this
/// is long for the API server's sake; what waits for an election is nothing that a pod waits for.
const DURATION: Duration = Duration::from_secs(40);

/// Between two renewals of the holder.
const RENEW: Duration = Duration::from_secs(10);

/// Between two looks of the others.
const LOOK: Duration = Duration::from_secs(15);

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
#[derive(Debug, Default)]
struct Observed {
    spec: Option<(Option<String>, Option<MicroTime>)>,
    since: Option<Instant>,
}

impl Observed {
    fn step(&mut self, spec: Option<&LeaseSpec>, me: &str, now: Instant) -> Step {
        let Some(spec) = spec else { return Step::Take };
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder == me {
            return Step::Renew;
        }
        if holder.is_empty() {
            return Step::Take;
        }
        let seen = Some((Some(holder), spec.renew_time.clone()));
        if self.spec != seen {
            self.spec = seen;
            self.since = Some(now);
        }
        let silent = self.since.map_or(Duration::ZERO, |since| now - since);
        if silent > DURATION {
            Step::Take
        } else {
            Step::Wait
        }
    }
}

/// Runs `work` while this agent is the elected one, for ever.
pub async fn lead<W, F>(cluster: Arc<Cluster>, work: W)
where
    W: Fn(Arc<Cluster>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let api: Api<Lease> = Api::default_namespaced(cluster.client.clone());
    let me = cluster.node.clone();
    let mut observed = Observed::default();
    let mut working: Option<JoinHandle<()>> = None;
    let mut renewed = Instant::now();
    loop {
        match campaign(&api, &me, &mut observed).await {
            Ok(true) => {
                renewed = Instant::now();
                if working.is_none() {
                    info!("elected: this agent writes what concerns no node");
                    working = Some(tokio::spawn(work(Arc::clone(&cluster))));
                }
            }
            Ok(false) => stop(&mut working),
            Err(e) => {
                debug!("the Lease {NAME}: {e}");
                // Before another one may think that we are dead.
                if renewed.elapsed() > DURATION - RENEW {
                    stop(&mut working);
                }
            }
        }
        let pause = if working.is_some() { RENEW } else { LOOK };
        tokio::time::sleep(pause).await;
    }
}

fn stop(working: &mut Option<JoinHandle<()>>) {
    if let Some(task) = working.take() {
        warn!("another agent is elected now");
        task.abort();
    }
}

/// True if the Lease is ours now.
async fn campaign(api: &Api<Lease>, me: &str, observed: &mut Observed) -> kube::Result<bool> {
    let found = api.get_opt(NAME).await?;
    let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
    let step = observed.step(spec, me, Instant::now());
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
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
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
        let mut observed = Observed::default();
        assert_eq!(observed.step(None, "me", start), Step::Take);
        assert_eq!(
            observed.step(Some(&spec("me", 1)), "me", start),
            Step::Renew
        );
        assert_eq!(observed.step(Some(&spec("", 1)), "me", start), Step::Take);
        // Its clock may be years off: only that it goes on counts.
        assert_eq!(observed.step(Some(&spec("b", 1)), "me", start), Step::Wait);
        assert_eq!(
            observed.step(Some(&spec("b", 2)), "me", after(39)),
            Step::Wait
        );
        assert_eq!(
            observed.step(Some(&spec("b", 2)), "me", after(78)),
            Step::Wait
        );
        assert_eq!(
            observed.step(Some(&spec("c", 2)), "me", after(79)),
            Step::Wait
        );
        assert_eq!(
            observed.step(Some(&spec("c", 2)), "me", after(120)),
            Step::Take
        );
    }
}
