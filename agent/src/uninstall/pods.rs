//! The pods' interfaces that are left, by the agent's records and by the links of the host.

use std::sync::Arc;

use ebbtide_ipam::pool::{Owner, Pools};
use ebbtide_kernel::{
    netlink::netns::Evidence,
    podnet::{self, PodNet},
};

use super::{Error, Item, Options, PodLeft, Report};
use crate::{agent::chained::ChainedInterfaces, cni::delegate};

/// The agent's records of pods' interfaces. While it exists, no agent starts.
pub(super) struct Records {
    pools: Option<Pools>,
    chained: Option<ChainedInterfaces>,
    interfaces: Vec<(Owner, Arc<PodNet>)>,
    /// Records that cannot be read, by their owners.
    unreadable: Vec<PodLeft>,
}

impl Records {
    pub(super) fn read(options: &Options, pools: Option<Pools>) -> Result<Self, Error> {
        let mut interfaces = Vec::new();
        let mut unreadable = Vec::new();
        for allocation in pools.iter().flat_map(Pools::list) {
            match allocation.record.parse::<PodNet>() {
                Ok(net) => interfaces.push((allocation.owner, Arc::new(net))),
                Err(e) => unreadable.push(PodLeft {
                    pod: format!("container {}", allocation.owner.container_id),
                    interface: allocation.owner.interface.clone(),
                    netns: String::new(),
                    why: Some(format!("its record cannot be read: {e}")),
                }),
            }
        }
        let has_chained = options.state_dir.join("chained").exists();
        let chained = has_chained.then(|| ChainedInterfaces::open(&options.state_dir));
        let chained = chained.transpose().map_err(Error::Records)?;
        let of_chained = chained.iter().flat_map(ChainedInterfaces::list);
        interfaces.extend(of_chained.map(|(owner, net)| (owner, Arc::new(net))));
        Ok(Self {
            pools,
            chained,
            interfaces,
            unreadable,
        })
    }

    /// Returns the interfaces that are left. `veths` are pods' links in the host: one without a record is left, too.
    pub(super) fn living(&self, veths: &[String]) -> Vec<PodLeft> {
        let mut living = self.unreadable.clone();
        let left = |net: &PodNet, interface: &str, why| PodLeft {
            pod: net.pod.clone(),
            interface: interface.to_owned(),
            netns: net.netns.display().to_string(),
            why,
        };
        for (owner, net) in &self.interfaces {
            match net.namespace() {
                Ok(Evidence::Gone) => {}
                Ok(Evidence::Present(_)) => living.push(left(net, &owner.interface, None)),
                Err(e) => living.push(left(net, &owner.interface, Some(e.to_string()))),
            }
        }
        let known = |name: &String| {
            let mut all = self.interfaces.iter();
            all.any(|(_, net)| net.host_veth().is_some_and(|veth| veth.host_name == *name))
        };
        for veth in veths.iter().filter(|name| !known(name)) {
            living.push(PodLeft {
                pod: String::new(),
                interface: veth.clone(),
                netns: String::new(),
                why: Some("the link has no record in the state directory".to_owned()),
            });
        }
        living
    }

    /// Returns the records of interfaces that ended without the agent.
    pub(super) fn gone(&self) -> Vec<Item> {
        let gone = self.interfaces.iter();
        gone.filter(|(_, net)| matches!(net.namespace(), Ok(Evidence::Gone)))
            .map(|(owner, net)| {
                let what = format!("{} of {}, which is gone", owner.interface, net.pod);
                Item::new("record", what)
            })
            .collect()
    }

    /// Releases the interfaces that ended without the agent: at the IPAM plugins that gave their addresses, too.
    pub(super) async fn release_gone(&self, report: &mut Report) {
        for (owner, net) in &self.interfaces {
            match self.release(owner, net).await {
                Ok(()) => {
                    let what = format!("{} of {}, which is gone", owner.interface, net.pod);
                    report.removed(Item::new("record", what));
                }
                Err(why) => report.failed(format_args!(
                    "release {} of {}, which is gone: {why}",
                    owner.interface, net.pod
                )),
            }
        }
    }

    async fn release(&self, owner: &Owner, net: &PodNet) -> Result<(), String> {
        let removed = podnet::remove_from_network(net).await;
        removed.map_err(|e| e.to_string())?;
        if !net.is_chained() {
            let Some(pools) = &self.pools else {
                return Ok(());
            };
            return pools
                .release(owner)
                .await
                .map(drop)
                .map_err(|e| e.to_string());
        }
        if let Some(ipam) = &net.delegate {
            let released = delegate::call(ipam, "DEL").await;
            released.map_err(|failure| {
                format!(
                    "release the addresses at the IPAM plugin: {}",
                    failure.message
                )
            })?;
        }
        match &self.chained {
            Some(chained) => chained.remove(owner).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}
