//! What the cloud tells, beside the pods that have addresses of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_kernel::netlink::Error;
use ebbtide_types::ObjectName;

use super::Agent;
use crate::cloud::{BlockState, CloudReport};

impl Agent {
    /// Reports what the cloud's metadata service tells of the NICs, and what becomes of it.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn cloud_report(&self) -> Result<CloudReport, Error> {
        let facts = self.facts.get(&self.host).await?;
        let catalog = self.catalog();
        let wanted = catalog.metadata_links().into_iter().map(str::to_owned);
        let report = self
            .cloud
            .report(&facts, wanted.collect(), &self.pods_by_address());
        Ok(report)
    }

    /// Sends an Event on each pod whose address the cloud does not tell any more. Ends with the runtime; at once without an
    /// API server.
    pub async fn report_withdrawn(&self) {
        let Some(cluster) = &self.cluster else {
            return;
        };
        let mut catalogs = self.catalogs();
        let mut told = BTreeSet::new();
        loop {
            // A block that is held leaves its pool, and with it the catalog changes.
            let withdrawn = match self.cloud_report().await {
                Ok(report) => withdrawn(&report, &self.pods_by_address()),
                Err(_) => told.clone(),
            };
            for (address, pod) in withdrawn.difference(&told) {
                let Some((namespace, name)) = pod.split_once('/') else {
                    continue;
                };
                let name = ObjectName {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                };
                let note = format!(
                    "the cloud's metadata does not tell {address} as this node's any more; the pod keeps it, but if the cloud \
                     took it away nobody reaches the pod: delete it to give it another address"
                );
                cluster.send_pod_event(name, "AddressWithdrawn", note);
            }
            told = withdrawn;
            if catalogs.changed().await.is_err() {
                return;
            }
        }
    }

    fn pods_by_address(&self) -> BTreeMap<IpAddr, String> {
        let mut pods = BTreeMap::new();
        self.each_interface(|_, net| {
            let addresses = net.ips().into_iter();
            pods.extend(addresses.map(|address| (address, net.pod.clone())));
        });
        pods
    }
}

/// Returns the addresses of pods that the cloud does not tell any more, with the pods.
fn withdrawn(report: &CloudReport, pods: &BTreeMap<IpAddr, String>) -> BTreeSet<(IpAddr, String)> {
    let blocks = report.nics.iter().flat_map(|nic| &nic.blocks);
    let held = blocks.filter(|block| block.state == BlockState::Held);
    let of = held.flat_map(|held| {
        let pods = pods.iter();
        pods.filter(|(address, _)| held.block.contains(*address))
    });
    of.map(|(address, pod)| (*address, pod.clone())).collect()
}
