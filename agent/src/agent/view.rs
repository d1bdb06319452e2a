//! The node as the catalog sees it: which links are NICs, and what is behind each.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    catalog::{Catalog, Pool},
    netlink::model::Family,
    node::{self, Behind, Known, Nic, NodeFacts, PoolNetwork},
    podnet::{PodAddress, PodNet},
};

/// What is declared, and for which node it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The pools and networks.
    pub catalog: &'a Catalog,
    /// This node's name, as pools know it.
    pub node_name: &'a str,
}

/// What the host's routing depends on of a pod's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodNetwork {
    master: String,
    pool: String,
    network: PoolNetwork,
    /// The address, if its way is another than its pool's.
    own: Option<IpAddr>,
}

impl View<'_> {
    fn pools(&self) -> impl Iterator<Item = &Pool> {
        let pools = self.catalog.pools().iter();
        pools.filter(|pool| {
            let nodes = &pool.node_names;
            nodes.is_empty() || nodes.iter().any(|name| name == self.node_name)
        })
    }

    /// What makes a link a NIC: the masters of networks and pods, and the pools.
    #[must_use]
    pub fn known(&self, in_use: &BTreeSet<PodNetwork>) -> Known {
        let networks = self.catalog.networks().iter();
        let named = networks.map(|network| network.master.clone());
        let of_pods = in_use.iter().map(|pod| pod.master.clone());
        Known {
            masters: named.chain(of_pods).collect(),
            subnets: self.pools().map(|pool| pool.subnet).collect(),
        }
    }

    /// What is behind a NIC: the networks of its pods, and the way that the node itself has there. Without one, that
    /// of the pools that the NIC has an address in, then of its pods'.
    #[must_use]
    pub fn behind(&self, nic: &Nic, facts: &NodeFacts, in_use: &BTreeSet<PodNetwork>) -> Behind {
        let mut behind = Behind {
            defaults: node::own_defaults(nic, &facts.defaults),
            ..Behind::default()
        };
        for pod in in_use.iter().filter(|pod| pod.master == nic.name) {
            let same = |known: &&PoolNetwork| known.subnet == pod.network.subnet;
            match (pod.own, behind.pools.iter().find(same)) {
                (Some(own), _) => behind.pods.push((own, pod.network.clone())),
                (None, None) => behind.pools.push(pod.network.clone()),
                // Two pools of a subnet that lead to different gateways: the first in order is the rule.
                (None, Some(_)) => {}
            }
        }
        let mut declared: Vec<_> = self
            .pools()
            .filter(|pool| has_address_in(nic, pool))
            .map(|pool| (pool.name.clone(), pool.gateway))
            .collect();
        declared.sort();
        let declared = declared.into_iter().filter_map(|(_, gateway)| gateway);
        let of_pods = behind.pools.iter().filter_map(|pool| pool.gateway);
        let gateways: Vec<IpAddr> = declared.chain(of_pods).collect();
        for gateway in gateways {
            let family = Family::of(gateway);
            if behind.default_of(family).is_none() {
                behind.defaults.push((family, Some(gateway)));
            }
        }
        behind
    }

    /// The networks that `net` has addresses from, on the NIC of this name; none behind another plugin.
    #[must_use]
    pub fn networks_of(&self, net: &PodNet, nic: &str) -> Vec<PodNetwork> {
        let addresses = net.addresses.iter().filter(|_| net.master().is_some());
        let network_of = |own: &PodAddress| {
            let network = PoolNetwork {
                subnet: own.address.trunc(),
                gateway: gateway_now(net, own, self.catalog),
                routes: own.routes.clone(),
            };
            let pool = self.catalog.pool(&own.pool);
            let has_the_pools_way = pool.is_none_or(|pool| network == way_of(pool));
            PodNetwork {
                master: nic.to_owned(),
                pool: own.pool.clone(),
                network,
                own: (!has_the_pools_way).then(|| own.address.addr()),
            }
        };
        addresses.map(network_of).collect()
    }

    /// The networks that pods of this node would have addresses from, if each network had some.
    #[must_use]
    pub fn networks_to_be(&self, facts: &NodeFacts) -> BTreeSet<PodNetwork> {
        let mut all = BTreeSet::new();
        for network in self.catalog.networks() {
            let nic = facts.nic(&network.master);
            let named = |pool: &Pool| {
                let mut names = network.ipv4_pools.iter().chain(&network.ipv6_pools);
                names.any(|name| *name == pool.name)
            };
            let serves =
                |pool: &&Pool| named(pool) || nic.is_some_and(|nic| has_address_in(nic, pool));
            all.extend(self.pools().filter(serves).map(|pool| PodNetwork {
                master: network.master.clone(),
                pool: pool.name.clone(),
                network: way_of(pool),
                own: None,
            }));
        }
        all
    }
}

fn has_address_in(nic: &Nic, pool: &Pool) -> bool {
    let mut own = nic.addresses.iter();
    own.any(|net| pool.subnet.contains(&net.addr()))
}

/// Where a pool leads, as it is declared now.
fn way_of(pool: &Pool) -> PoolNetwork {
    let routes = pool.routes.iter();
    PoolNetwork {
        subnet: pool.subnet.trunc(),
        gateway: pool.gateway,
        routes: routes.map(|route| (route.dst, route.gateway)).collect(),
    }
}

/// The gateway of an address: as its pool declares it now; of a pool that is gone, as it was. One that
/// the pod itself names stays.
pub(super) fn gateway_now(net: &PodNet, own: &PodAddress, catalog: &Catalog) -> Option<IpAddr> {
    let spec = net.spec.as_ref();
    let is_named = spec.is_some_and(|spec| spec.gateway_for(own.address.addr()).is_some());
    let declared = catalog.pool(&own.pool).filter(|_| !net.is_guest());
    match declared.filter(|_| !is_named) {
        Some(pool) => pool.gateway,
        None => own.gateway,
    }
}
