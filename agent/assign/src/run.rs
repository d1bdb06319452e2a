//! The controller at work: it watches what agents tell, and does what the plan says while it holds the Lease.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use ebbtide_kube::{
    Cluster,
    leader::{self, Election, Verified},
    node_cloud::LABEL,
};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::ListParams,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::{Options, OptionsError};

mod carry_out;
mod nodes;
mod round;

use round::Round;

/// The name of the Lease, and of the account.
pub const NAME: &str = "ebbtide-cloud-controller";

/// The interval of rounds in which nothing happens.
const TICK: Duration = Duration::from_secs(5);

/// The delay after which a change is looked at: several come together.
const SOON: Duration = Duration::from_millis(500);

/// After how long without a working watch nothing is done any more: what is known is old.
const STALE: Duration = Duration::from_secs(60);

/// Why the controller ended.
#[derive(Debug, thiserror::Error)]
pub enum Finished {
    /// It cannot begin.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The API server does not tell what agents told.
    #[error("list the ConfigMaps with the label {LABEL}: {0}")]
    List(#[source] Box<kube::Error>),
    /// The watch of the Lease ended.
    #[error("the watch of the Lease ended")]
    NoWatch,
}

/// Runs the controller `name` for ever, or once.
///
/// # Errors
/// If it cannot begin; with `--once`, if the API server does not answer.
pub async fn run(client: Client, name: String, options: Options) -> Result<(), Finished> {
    let (ec2, with) = options.ec2()?;
    let ec2 = Arc::new(ec2);
    let (once, dry_run) = (options.once, options.once || options.dry_run);
    let provider = options.provider();
    info!(
        "the cloud is asked at {with}{}",
        if dry_run { "; nothing is changed" } else { "" }
    );
    let cluster = Cluster::without_watches(client, name);
    if once {
        let mut round = Round::new(&cluster, ec2, options.settings(), provider, None);
        let api: Api<ConfigMap> = Api::default_namespaced(cluster.client.clone());
        let listed = api.list(&ListParams::default().labels(LABEL)).await;
        let listed = listed.map_err(|e| Finished::List(Box::new(e)))?;
        round.nodes.replace(listed.items);
        while round.nodes.refresh(&cluster.client).await {}
        round.do_one().await;
        return Ok(());
    }
    let election = Election {
        lease: NAME,
        ..Election::default()
    };
    let verified = (!dry_run).then(|| (election.verified.clone(), election.times));
    leader::lead_in(cluster, &election, |cluster| {
        let round = Round::new(
            &cluster,
            Arc::clone(&ec2),
            options.settings(),
            provider,
            verified.clone(),
        );
        work(cluster, round)
    })
    .await;
    Err(Finished::NoWatch)
}

/// The proof that this controller is the leader, or `None` in a dry run.
type Proof = Option<(Verified, leader::Times)>;

/// Follows the ConfigMaps, and does rounds, until this is aborted.
async fn work(cluster: Arc<Cluster>, mut round: Round) {
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client.clone());
    // Not from the watch cache: what is asked back must not reappear.
    let config = watcher::Config::default().labels(LABEL);
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut listed: Vec<ConfigMap> = Vec::new();
    let mut complete = false;
    let mut broken: Option<Instant> = None;
    let mut due = Instant::now() + TICK;
    loop {
        tokio::select! {
            event = events.next() => {
                let event = match event {
                    Some(Ok(event)) => event,
                    Some(Err(e)) => {
                        if broken.is_none() {
                            warn!("what agents tell cannot be watched: {e}");
                            broken = Some(Instant::now());
                        }
                        continue;
                    }
                    None => return,
                };
                match event {
                    Event::Init => listed.clear(),
                    Event::InitApply(map) => listed.push(map),
                    Event::InitDone => {
                        round.nodes.replace(std::mem::take(&mut listed));
                        complete = true;
                    }
                    Event::Apply(map) => round.nodes.set(map),
                    Event::Delete(map) => round.nodes.remove(&map),
                }
                if broken.take().is_some() {
                    info!("what agents tell is watched again");
                }
                due = due.min(Instant::now() + SOON);
            }
            () = sleep_until(due) => {
                if complete && broken.is_none_or(|since| since.elapsed() < STALE) {
                    round.do_one().await;
                }
                due = Instant::now() + TICK;
            }
        }
    }
}

/// Says what changed in a list of sentences.
fn news<T: Ord + Clone>(
    before: &mut std::collections::BTreeSet<T>,
    now: std::collections::BTreeSet<T>,
) -> Vec<T> {
    let new = now.difference(before).cloned().collect();
    *before = now;
    new
}

/// What is known of instance types.
type Types = BTreeMap<String, Option<crate::ec2::Limits>>;
