//! The node as the catalog sees it: which links are NICs, and which networks are behind each.

use std::{collections::BTreeSet, net::IpAddr};

use ebbtide_ipam::catalog::{Addresses, Catalog, Pool};
use ebbtide_kernel::{
    netlink::model::host_net,
    node::{self, Known, Nic, NicNetworks, NodeFacts, PoolNetwork, Role, Routed},
    podnet::{PodAddress, PodNet},
};
use ebbtide_types::{Family, settings::LinkNames};
use ipnet::IpNet;

/// What is declared, and the node that it applies to.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The pools and networks.
    pub catalog: &'a Catalog,
    /// This node's name, as pools refer to it.
    pub node_name: &'a str,
    /// The networks of foreign addresses that the administrator allows
    /// ([`ebbtide_types::settings::Settings::foreign_subnets`]).
    pub allowed: &'a [IpNet],
}

/// The properties of a pod's address that the host's routing depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodNetwork {
    master: String,
    pool: String,
    network: PoolNetwork,
    /// The address, if its routes differ from its pool's.
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

    /// Returns what makes a link a NIC: the masters of networks and pods, and the pools.
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

    /// Returns what Ebbtide routes in the host if there are pods in these networks.
    #[must_use]
    pub fn routed(
        &self,
        facts: &NodeFacts,
        in_use: &BTreeSet<PodNetwork>,
        names: &LinkNames,
    ) -> Routed {
        let nics = node::classify_all(facts, &self.known(in_use), names).into_iter();
        let nics = nics.filter(|(_, taken)| taken.role == Role::Nic);
        let mut pods: Vec<IpNet> = in_use.iter().map(|pods| pods.network.subnet).collect();
        pods.dedup();
        Routed {
            pods,
            node: facts.addresses(names),
            nics: nics.map(|(nic, _)| nic.name).collect(),
        }
    }

    /// Returns what is behind a NIC: the networks of its pods, and the node's own default route there. Without one,
    /// the default route of the pools that the NIC has an address in, then of its pods'.
    #[must_use]
    pub fn nic_networks(
        &self,
        nic: &Nic,
        facts: &NodeFacts,
        in_use: &BTreeSet<PodNetwork>,
    ) -> NicNetworks {
        let mut behind = NicNetworks {
            defaults: node::own_defaults(nic, &facts.defaults),
            ..NicNetworks::default()
        };
        for pod in in_use.iter().filter(|pod| pod.master == nic.name) {
            let same = |known: &&PoolNetwork| known.subnet == pod.network.subnet;
            match (pod.own, behind.pools.iter().find(same)) {
                (Some(own), _) => behind.pods.push((own, pod.network.clone())),
                (None, None) => behind.pools.push(pod.network.clone()),
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
        // Where the node itself is the router, its own address is no next hop.
        let is_own = |gateway: &IpAddr| facts.own_addresses().any(|(own, _)| own == *gateway);
        for gateway in gateways.into_iter().filter(|gateway| !is_own(gateway)) {
            let family = Family::of(gateway);
            if behind.default_of(family).is_none() {
                behind.defaults.push((family, Some(gateway)));
            }
        }
        behind
    }

    /// Returns the networks that `net` has addresses from on this NIC; none for an interface that another plugin made.
    #[must_use]
    pub fn networks_of(&self, net: &PodNet, nic: &Nic) -> Vec<PodNetwork> {
        let addresses = net.addresses.iter().filter(|_| net.master().is_some());
        let network_of = |own: &PodAddress| {
            // Another IPAM plugin's prefix is on the NIC's link only if the NIC, a pool or the administrator confirms
            // it.
            let subnet = match !net.is_chained() || self.is_on(nic, own.address) {
                true => own.address.trunc(),
                false => host_net(own.address.addr()),
            };
            let network = PoolNetwork {
                subnet,
                gateway: gateway_now(net, own, self.catalog),
                routes: own.routes.clone(),
            };
            // Several pools of a subnet may have different gateways: the first pool's routes count for the subnet.
            let of_subnet = self
                .pools()
                .filter(|pool| pool.subnet.trunc() == network.subnet);
            let first = of_subnet.min_by(|a, b| a.name.cmp(&b.name));
            let has_the_pools_way = first.is_none_or(|pool| network == network_of(pool));
            PodNetwork {
                master: nic.name.clone(),
                pool: own.pool.clone(),
                network,
                own: (!has_the_pools_way).then(|| own.address.addr()),
            }
        };
        addresses.map(network_of).collect()
    }

    /// Whether an address' network is, or is part of, a network that the NIC has, a pool declares or the settings
    /// allow.
    fn is_on(&self, nic: &Nic, address: IpNet) -> bool {
        let declared = self.pools().map(|pool| pool.subnet);
        let has = nic.addresses.iter().copied();
        let mut known = has.chain(declared).chain(self.allowed.iter().copied());
        known.any(|known| known.trunc().contains(&address.trunc()))
    }

    /// Returns the networks that this node's pods would have addresses from, if each network had pods.
    #[must_use]
    pub fn expected_networks(&self, facts: &NodeFacts) -> BTreeSet<PodNetwork> {
        let mut all = BTreeSet::new();
        for network in self.catalog.networks() {
            let nic = facts.nic(&network.master);
            let named = |pool: &Pool| {
                let mut names = network.ipv4_pools.iter().chain(&network.ipv6_pools);
                names.any(|name| *name == pool.name)
            };
            let serves = |pool: &&Pool| match pool.derived_of() {
                Some(link) => network.addresses == Addresses::Metadata && link == network.master,
                None => named(pool) || nic.is_some_and(|nic| has_address_in(nic, pool)),
            };
            all.extend(self.pools().filter(serves).map(|pool| PodNetwork {
                master: network.master.clone(),
                pool: pool.name.clone(),
                network: network_of(pool),
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

/// Returns the subnet, gateway and routes of a pool, as it is declared now.
fn network_of(pool: &Pool) -> PoolNetwork {
    let routes = pool.routes.iter();
    PoolNetwork {
        subnet: pool.subnet.trunc(),
        gateway: pool.gateway,
        routes: routes.map(|route| (route.dst, route.gateway)).collect(),
    }
}

/// Returns the gateway of an address: the one that its pool declares now. It is unchanged if the pool no longer exists
/// or has another subnet, or if the pod itself names it.
pub(super) fn gateway_now(net: &PodNet, own: &PodAddress, catalog: &Catalog) -> Option<IpAddr> {
    let spec = net.spec.as_ref();
    let is_named = spec.is_some_and(|spec| spec.gateway_for(own.address.addr()).is_some());
    // A pool whose subnet has changed cannot route for these pods.
    let is_its = |pool: &&Pool| pool.subnet.contains(&own.address.addr()) && !net.is_chained();
    let declared = catalog.pool(&own.pool).filter(is_its);
    match declared.filter(|_| !is_named) {
        // That the metadata does not tell the gateway does not mean that there is none.
        Some(pool) if pool.derived_of().is_some() => pool.gateway.or(own.gateway),
        Some(pool) => pool.gateway,
        None => own.gateway,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ebbtide_ipam::catalog::DerivedNic;
    use ebbtide_kernel::podnet::{self, Delegate, Existing, NetworkSpec, Sandbox};
    use ebbtide_types::settings::Settings;

    use super::*;

    const POOLS: &str = "\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: first}
spec: {subnet: 10.71.8.0/24, ips: [10.71.8.40-10.71.8.49], gateway: 10.71.8.1}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: second}
spec: {subnet: 10.71.8.0/24, ips: [10.71.8.60-10.71.8.69], gateway: 10.71.8.254}
";

    fn ens6() -> Nic {
        Nic::named("ens6", 3)
    }

    fn pod(address: &str, pool: &str, gateway: &str, facts: &NodeFacts) -> PodNet {
        let sandbox = Sandbox {
            container_id: address.into(),
            interface: "eth0".into(),
            netns: "/run/netns/pod".into(),
            netns_inode: 1,
            pid_namespace: None,
            pod: "default/pod".into(),
        };
        let network = NetworkSpec {
            master: "ens6".into(),
            ..NetworkSpec::named("network")
        };
        let own = PodAddress {
            address: format!("{address}/24").parse().unwrap(),
            pool: pool.into(),
            gateway: Some(gateway.parse().unwrap()),
            routes: Vec::new(),
        };
        let settings = Settings::default();
        podnet::plan(
            &sandbox,
            &Existing::default(),
            &network,
            &[own],
            facts,
            &settings,
        )
        .unwrap()
    }

    #[test]
    fn what_another_ipam_calls_a_subnet_is_behind_a_nic_if_the_nic_or_a_pool_says_so() {
        let catalog = Catalog::from_texts([(Path::new("pools.yaml"), POOLS)]);
        let view = View {
            catalog: &catalog,
            node_name: "node",
            allowed: &["198.51.100.0/24".parse().unwrap()],
        };
        let nic = Nic {
            addresses: vec![
                "172.31.32.10/20".parse().unwrap(),
                "10.0.0.7/32".parse().unwrap(),
            ],
            ..ens6()
        };
        let facts = NodeFacts {
            nics: vec![nic.clone()],
            ..NodeFacts::default()
        };
        for (address, behind) in [
            ("172.31.32.77/20", "172.31.32.0/20"),
            ("172.31.33.77/26", "172.31.33.64/26"),
            ("10.71.8.40/24", "10.71.8.0/24"),
            ("10.71.8.40/28", "10.71.8.32/28"),
            ("1.2.3.4/1", "1.2.3.4/32"),
            ("172.31.32.77/0", "172.31.32.77/32"),
            ("172.31.32.77/19", "172.31.32.77/32"),
            ("10.71.8.40/23", "10.71.8.40/32"),
            ("10.0.0.9/24", "10.0.0.9/32"),
            ("fd00::7/64", "fd00::7/128"),
            ("198.51.100.9/24", "198.51.100.0/24"),
            ("198.51.100.9/16", "198.51.100.9/32"),
        ] {
            let own = pod("10.71.8.40", "static", "10.71.8.1", &facts);
            let net = PodNet {
                addresses: vec![PodAddress {
                    address: address.parse().unwrap(),
                    ..own.addresses[0].clone()
                }],
                delegate: Some(Delegate {
                    kind: "static".into(),
                    container_id: String::new(),
                    netns: String::new(),
                    interface: String::new(),
                    args: String::new(),
                    path: String::new(),
                    config: String::new(),
                }),
                ..own
            };
            let networks = view.networks_of(&net, &nic);
            assert_eq!(networks[0].network.subnet.to_string(), behind, "{address}");
            // A pool's own pods are in its subnet, even if the pool no longer exists.
            let of_pool = PodNet {
                delegate: None,
                ..net
            };
            let networks = view.networks_of(&of_pool, &nic);
            let subnet = of_pool.addresses[0].address.trunc();
            assert_eq!(networks[0].network.subnet, subnet, "{address}");
        }
    }

    #[test]
    fn of_two_pools_of_a_subnet_each_has_its_own_gateway() {
        let catalog = Catalog::from_texts([(Path::new("pools.yaml"), POOLS)]);
        let view = View {
            catalog: &catalog,
            node_name: "node",
            allowed: &[],
        };
        let facts = NodeFacts {
            nics: vec![ens6()],
            ..NodeFacts::default()
        };
        let pods = [
            pod("10.71.8.40", "first", "10.71.8.1", &facts),
            pod("10.71.8.60", "second", "10.71.8.254", &facts),
        ];
        let in_use = pods.iter().flat_map(|pod| view.networks_of(pod, &ens6()));
        let behind = view.nic_networks(&ens6(), &facts, &in_use.collect());
        let via = |network: &PoolNetwork| network.gateway.unwrap().to_string();
        let pools: Vec<String> = behind.pools.iter().map(via).collect();
        assert_eq!(pools, ["10.71.8.1"]);
        let apart: Vec<_> = behind
            .pods
            .iter()
            .map(|(pod, network)| (pod.to_string(), via(network)))
            .collect();
        assert_eq!(apart, [("10.71.8.60".to_owned(), "10.71.8.254".to_owned())]);
        assert_eq!(
            behind.default_of(Family::V4),
            Some(Some([10, 71, 8, 1].into()))
        );
    }

    #[test]
    fn derived_pools_are_behind_their_nic_and_an_untold_gateway_stays_as_it_was() {
        let network = |name: &str, annotation: &str| {
            format!(
                "---\n{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderMultusConfig, \
                 metadata: {{name: {name}, annotations: {{{annotation}}}}}, \
                 spec: {{cniType: ipvlan, ipvlan: {{master: [{name}]}}}}}}\n"
            )
        };
        let networks = [
            network("ens6", "ebbtide.io/addresses: metadata"),
            network("ens7", ""),
        ];
        let declared = Catalog::from_texts([(Path::new("n.yaml"), networks.concat().as_str())]);
        let told = |gateway: Option<&str>| DerivedNic {
            node: "node".into(),
            link: "ens6".into(),
            family: Family::V4,
            // An alias range: the NIC has no address in it.
            blocks: vec!["10.24.3.0/24".parse().unwrap()],
            primary: vec!["10.128.0.4".parse().unwrap()],
            gateway: gateway.map(|text| text.parse().unwrap()),
            subnets: vec!["10.128.0.0/20".parse().unwrap()],
            source: "gcp nic1".into(),
        };
        let facts = NodeFacts {
            nics: vec![ens6(), Nic::named("ens7", 4)],
            ..NodeFacts::default()
        };
        let of_pod = pod(
            "10.24.3.7",
            "node-ens6-v4-10-24-3-0-24",
            "10.128.0.1",
            &facts,
        );
        for (gateway, expected) in [(Some("10.128.0.9"), "10.128.0.9"), (None, "10.128.0.1")] {
            let catalog = declared.with_derived(&[told(gateway)], &[]);
            let now = gateway_now(&of_pod, &of_pod.addresses[0], &catalog);
            assert_eq!(now, Some(expected.parse().unwrap()));
            let view = View {
                catalog: &catalog,
                node_name: "node",
                allowed: &[],
            };
            let networks = view.expected_networks(&facts);
            let masters: BTreeSet<&str> = networks.iter().map(|pod| pod.master.as_str()).collect();
            assert_eq!(masters.into_iter().collect::<Vec<_>>(), ["ens6"]);
            assert_eq!(networks.len(), 2);
        }
        // The pool is gone, the pod is not.
        let now = gateway_now(&of_pod, &of_pod.addresses[0], &declared);
        assert_eq!(now, Some("10.128.0.1".parse().unwrap()));
    }

    #[test]
    fn a_node_that_is_a_pool_s_router_does_not_go_out_by_itself() {
        let catalog = Catalog::from_texts([(Path::new("pools.yaml"), POOLS)]);
        let view = View {
            catalog: &catalog,
            node_name: "node",
            allowed: &[],
        };
        // Behind the first pool's gateway comes the second's.
        for (own, expected) in [
            ("10.71.8.10/24", Some("10.71.8.1")),
            ("10.71.8.1/24", Some("10.71.8.254")),
        ] {
            let nic = Nic {
                addresses: vec![own.parse().unwrap()],
                ..ens6()
            };
            let facts = NodeFacts {
                nics: vec![nic.clone()],
                ..NodeFacts::default()
            };
            let behind = view.nic_networks(&nic, &facts, &BTreeSet::new());
            let expected = expected.map(|gateway| gateway.parse::<IpAddr>().unwrap());
            assert_eq!(behind.default_of(Family::V4).flatten(), expected, "{own}");
        }
    }
}
