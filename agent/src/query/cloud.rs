//! `ebbtidectl cloud`: what the metadata service tells of the NICs, and what becomes of it.

use std::{collections::BTreeMap, net::IpAddr};

use ebbtide_kernel::netlink::Error;

use crate::{agent::Agent, cloud::CloudReport};

/// Reports what the cloud tells; if `refresh`, it is asked first.
pub(super) async fn cloud(agent: &Agent, refresh: bool) -> Result<CloudReport, Error> {
    if refresh {
        agent.cloud.refresh().await;
    }
    let facts = agent.facts.get(&agent.host).await?;
    let catalog = agent.catalog();
    let wanted = catalog.metadata_links().into_iter().map(str::to_owned);
    let mut pods: BTreeMap<IpAddr, String> = BTreeMap::new();
    agent.each_interface(|_, net| {
        pods.extend(
            net.ips()
                .into_iter()
                .map(|address| (address, net.pod.clone())),
        );
    });
    Ok(agent.cloud.report(&facts, wanted.collect(), &pods))
}
