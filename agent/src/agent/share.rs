//! The task that tells the cluster of the node's addresses from the cloud, and gives back what is asked for.

use std::time::Duration;

use ebbtide_kube::{Cluster, object::Kind};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::Agent;
use crate::cloud::{ASKED_FILE as FILE, Sets, Sharing};

/// The delay from a change to its write: pods that start together share one round.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// The delay after a round with a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The interval between two rounds without a change: cooldowns end, and pods cease to wait.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

impl Agent {
    /// Tells the cluster what the cloud has assigned to the node and who has it, and withholds what is asked back. Ends with
    /// the runtime; at once without an API server.
    pub async fn share_cloud(&self) {
        let Some(mut sharing) = self.cloud.take_sharing() else {
            return;
        };
        let Some(cluster) = &self.cluster else {
            let withheld = self.cloud.withheld();
            if !withheld.is_empty() {
                warn!(
                    "{withheld} stay withheld: the cloud controller of a cluster asked for them back, and this agent is in none; \
                     if no such controller runs any more, delete {FILE} in the state directory, and restart the agent"
                );
            }
            return;
        };
        let mut catalogs = self.catalogs();
        let mut pods = self.pools.subscribe();
        let mut maps = cluster.changes(&[Kind::NodeCloud]);
        let mut failed = None;
        loop {
            catalogs.mark_unchanged();
            pods.mark_unchanged();
            maps.mark_unchanged();
            let pause = match self.share_once(cluster, &mut sharing).await {
                Ok(()) => {
                    failed = None;
                    POLL_INTERVAL
                }
                Err(why) => {
                    if failed.as_ref() == Some(&why) {
                        debug!("{why}");
                    } else {
                        warn!("{why}");
                    }
                    failed = Some(why);
                    RETRY
                }
            };
            tokio::select! {
                changed = catalogs.changed() => if changed.is_err() { return },
                changed = pods.changed() => if changed.is_err() { return },
                changed = maps.changed() => if changed.is_err() { return },
                () = self.cloud.has_news() => {}
                () = sleep(pause) => {}
            }
            sleep(DEBOUNCE).await;
        }
    }

    /// Does one round; the error is for the log.
    async fn share_once(&self, cluster: &Cluster, sharing: &mut Sharing) -> Result<(), String> {
        let facts = self.facts.get(&self.host).await;
        let facts = facts.map_err(|e| format!("read the node's links: {e}"))?;
        let catalog = self.catalog();
        // Withheld, on disk, looked up, told: in this order.
        let now = sharing.now();
        self.cloud
            .ask_back(sharing, now, cluster.wish(), &facts, &catalog);
        self.withhold(&facts, &catalog);
        let saved = sharing.save().await;
        saved.map_err(|e| format!("write what the cloud controller asks back: {e}"))?;
        let node = &self.node_name;
        let report = self
            .cloud
            .report_of(sharing, node, &facts, &catalog, &self.pools);
        let Some(report) = report else {
            return Ok(());
        };
        let surrendered = sharing.telling(&report);
        let written = cluster.tell(&report).await;
        let now = sharing.now();
        match written {
            Ok(true) => self.cloud.has_told(sharing, now, surrendered),
            // Without a ConfigMap nobody reads anything.
            Ok(false) if sharing.is_known() => self.cloud.has_told(sharing, now, Sets::default()),
            Ok(false) => {}
            Err(e) => return Err(format!("{e}; the cluster does not see what changed")),
        }
        Ok(())
    }
}
