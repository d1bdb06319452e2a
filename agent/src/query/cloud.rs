//! `ebbtidectl cloud`: what the metadata service tells of the NICs, and what becomes of it.

use ebbtide_kernel::netlink::Error;

use crate::{agent::Agent, cloud::CloudReport};

/// Reports what the cloud tells; if `refresh`, it is asked first.
pub(super) async fn cloud(agent: &Agent, refresh: bool) -> Result<CloudReport, Error> {
    if refresh {
        agent.cloud.refresh().await;
    }
    agent.cloud_report().await
}
