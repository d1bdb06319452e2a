//! A request's wait for an address that the cloud has assigned, and that the agent does not know or believe yet.

use std::{sync::Arc, time::Duration};

use ebbtide_ipam::{catalog::Catalog, pool::PoolError};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::Cloud;

/// How long a request waits for a read of the service.
const READ: Duration = Duration::from_secs(5);
/// How long it waits while something is told that is believed soon. To try again later takes a runtime longer.
const BELIEF: Duration = Duration::from_secs(10);
/// How long a published catalog takes to be the agent's.
const PASSED_ON: Duration = Duration::from_millis(100);

/// The wait of one request for an address of one NIC.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    cloud: &'a Cloud,
    /// Who waits: the pod, if there is one.
    pod: String,
    catalogs: watch::Receiver<Arc<Catalog>>,
    began: Instant,
    has_read: bool,
}

impl<'a> Wait<'a> {
    /// Begins the wait of a request that takes its addresses from `catalogs`.
    pub(crate) fn new(
        cloud: &'a Cloud,
        pod: String,
        catalogs: watch::Receiver<Arc<Catalog>>,
    ) -> Self {
        Self {
            cloud,
            pod,
            catalogs,
            began: Instant::now(),
            has_read: false,
        }
    }

    /// Returns the catalog to look for addresses in.
    pub(crate) fn catalog(&mut self) -> Arc<Catalog> {
        Arc::clone(&self.catalogs.borrow_and_update())
    }

    /// Notes that the request has its addresses of a NIC.
    pub(crate) fn end(&self, link: &str) {
        self.cloud.found(link, &self.pod);
    }

    /// Waits, after the request found no address of a NIC, until it is to look again. False: it would find none.
    ///
    /// The service is asked once. While it tells something that is believed soon, the wait goes on.
    pub(crate) async fn more(&mut self, link: &str, lacking: &PoolError) -> bool {
        self.cloud.want(link);
        let family = match lacking {
            PoolError::Full(full) => Some(full.family),
            PoolError::NoAddress(none) => none.family,
            _ => None,
        };
        if !matches!(lacking, PoolError::Unavailable(_)) {
            self.cloud.found_none(link, &self.pod, family);
        }
        loop {
            let goes_on = !self.has_read || self.cloud.is_soon(link);
            if !goes_on || !self.cloud.can_read() {
                return false;
            }
            let limit = if self.has_read { BELIEF } else { READ };
            let number = self.cloud.ask();
            tokio::select! {
                changed = self.catalogs.changed() => return changed.is_ok(),
                () = self.cloud.has_read(number) => {
                    self.has_read = true;
                    let changed = timeout(PASSED_ON, self.catalogs.changed()).await;
                    if let Ok(changed) = changed {
                        return changed.is_ok();
                    }
                }
                () = sleep_until(self.began + limit) => return false,
            }
        }
    }
}
