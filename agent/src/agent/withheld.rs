//! Addresses that are withheld from pods: the node's own (cloud-init, ec2-net-utils and their kin assign every address
//! that the cloud provides to the NIC), those of routers, those that other plugins assigned, and those that the cloud
//! controller asks back.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Assigned, Withheld},
};
use ebbtide_kernel::{netlink::Error, node::NodeFacts};
use ebbtide_types::settings::LocalRule;
use tracing::{debug, info, warn};

use super::{Agent, locked};
use crate::cloud::Sets;

/// What was last withheld from the pools, and its inputs.
#[derive(Debug, Default)]
pub(super) struct Last {
    made_of: Option<Inputs>,
    /// The withheld addresses within the pools' ranges: address, pool and reason.
    of_pools: Vec<(IpAddr, String, String)>,
}

type Inputs = (Arc<NodeFacts>, Arc<Catalog>, ChainedInterfaces, Arc<Sets>);

/// The addresses that other plugins assigned, with their pods.
type ChainedInterfaces = BTreeMap<IpAddr, String>;

/// Returns the addresses to withhold, with the reasons.
fn withheld(facts: &NodeFacts, catalog: &Catalog, chained: &ChainedInterfaces) -> Withheld {
    let own = facts
        .own_addresses()
        .map(|(address, link)| (address, format!("the node has it on {link}")));
    let defaults = facts.defaults.iter();
    let routers = defaults.filter_map(|route| {
        let why = format!("it is the node's router on {}", route.link);
        Some((route.via?, why))
    });
    let pools = catalog.pools().iter();
    let of_pools = pools.flat_map(|pool| {
        let gateway = pool.gateway.into_iter();
        let gateway =
            gateway.map(|address| (address, format!("it is the gateway of pool {}", pool.name)));
        let routes = pool.routes.iter().map(|route| {
            let why = format!(
                "it is the gateway to {} in the routes of pool {}",
                route.dst, pool.name
            );
            (route.gateway, why)
        });
        gateway.chain(routes)
    });
    let of_others = chained.iter().map(|(address, pod)| {
        let why = format!("another plugin assigned it to pod {pod}");
        (*address, why)
    });
    Withheld::new(own.chain(routers).chain(of_pools).chain(of_others))
}

impl Agent {
    /// Returns why an address cannot be a pod's, if it is the node's own or a router's.
    #[must_use]
    pub fn why_unassignable(
        &self,
        facts: &NodeFacts,
        catalog: &Catalog,
        address: IpAddr,
    ) -> Option<String> {
        let withheld = withheld(facts, catalog, &ChainedInterfaces::new());
        withheld.why(address).map(str::to_owned)
    }

    fn foreign_addresses(&self) -> ChainedInterfaces {
        let mut chained = ChainedInterfaces::new();
        self.each_interface(|_, net| {
            if net.is_chained() {
                let addresses = net.ips().into_iter();
                chained.extend(addresses.map(|address| (address, net.pod.clone())));
            }
        });
        chained
    }

    /// Withholds the node's own addresses, routers' addresses, those that another plugin assigned to a pod, and those that
    /// the cloud controller asks back. Does nothing if nothing has changed since the last time.
    pub fn withhold(&self, facts: &Arc<NodeFacts>, catalog: &Arc<Catalog>) {
        let mut last = locked(&self.withheld);
        let chained = self.foreign_addresses();
        // Read under the lock: a set that was replaced meanwhile must not win over its successor.
        let asked_back = self.cloud.withheld();
        let is_same = |(old_facts, old_catalog, old, old_asked): &Inputs| {
            Arc::ptr_eq(old_facts, facts)
                && Arc::ptr_eq(old_catalog, catalog)
                && *old == chained
                && Arc::ptr_eq(old_asked, &asked_back)
        };
        if last.made_of.as_ref().is_some_and(is_same) {
            return;
        }
        let withheld = withheld(facts, catalog, &chained);
        let pools = catalog.pools().iter();
        let of_pools: Vec<_> = pools
            .flat_map(|pool| {
                let found = withheld.among(&pool.ranges);
                found.map(|(address, why)| (address, pool.name.clone(), why.to_owned()))
            })
            .collect();
        for (address, pool, why) in of_pools.iter().filter(|one| !last.of_pools.contains(one)) {
            warn!("{address} of pool {pool} is not given to pods: {why}");
        }
        for (address, pool, _) in last
            .of_pools
            .iter()
            .filter(|(address, ..)| withheld.why(*address).is_none())
        {
            info!("{address} of pool {pool} may be given to pods again");
        }
        self.pools
            .withhold(withheld.with_asked_back(asked_back.iter().cloned()));
        *last = Last {
            made_of: Some((Arc::clone(facts), Arc::clone(catalog), chained, asked_back)),
            of_pools,
        };
    }

    /// Withholds as [`Agent::withhold`], with the current facts and manifests.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn withhold_now(&self) -> Result<(), Error> {
        let facts = self.facts.get(&self.host).await?;
        self.withhold(&facts, &self.catalog());
        Ok(())
    }

    /// Returns the first of these addresses that the node itself has by now. Asks the kernel as well: its
    /// notifications take a moment.
    ///
    /// An address that no link has, but a foreign local route makes the node's (google-guest-agent adds such), stays
    /// the pod's. It is reached from outside by the NIC, and from the node by the rule in front of the table `local`.
    pub(crate) async fn assigned_to_node(
        &self,
        assigned: &[Assigned],
    ) -> Result<Option<IpAddr>, Error> {
        for address in assigned.iter().map(|each| each.address) {
            let has = |facts: &NodeFacts| facts.own_addresses().any(|(own, _)| own == address);
            if has(&*self.facts.get(&self.host).await?) {
                return Ok(Some(address));
            }
            // A kernel that cannot tell (it lacks the address family) has no such address either.
            let is_local = self.host.is_local(address).await;
            if !is_local.inspect_err(|e| debug!("{e}")).unwrap_or(false) {
                continue;
            }
            self.facts.invalidate();
            if has(&*self.facts.get(&self.host).await?) {
                return Ok(Some(address));
            }
            // The route came after the plan was made, which gets a route to the pod now.
            self.work.enqueue_node();
            if self.settings.local_rule == LocalRule::Never {
                warn!(
                    "{address} is assigned to a pod, but a foreign route in the table `local` of \
                     this node makes it a local address (`ip route show table local`): neither the \
                     node nor its Services reach the pod; configure the program that adds this \
                     route to leave the address out, or set localRule to auto"
                );
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ebbtide_kernel::{netlink::model::Route, node::Nic};

    use super::*;

    const POOLS: &str = "\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: v4}
spec:
  subnet: 10.71.8.0/24
  ips: [10.71.8.40-10.71.8.60]
  gateway: 10.71.8.1
  routes: [{dst: 172.20.0.0/14, gw: 10.71.8.41}]
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: other}
spec: {subnet: 10.71.8.0/24, ips: [10.71.8.70-10.71.8.79], gateway: 10.71.8.42}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: v6}
spec: {subnet: 'fd71:8::/64', ips: ['fd71:8::40-fd71:8::ffff']}
";

    #[test]
    fn the_nodes_own_addresses_and_routers_are_nobodys() {
        let nic = |name: &str, addresses: &[&str]| Nic {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..Nic::named(name, 3)
        };
        let facts = NodeFacts {
            nics: vec![
                nic("ens5", &["172.31.22.228/20", "10.71.8.44/32"]),
                nic("ens6", &["10.71.8.40/24", "fd71:8::50/64", "10.71.8.99/24"]),
            ],
            loopback: vec!["fd71:8::99/128".parse().unwrap()],
            defaults: vec![Route {
                link: "ens6".into(),
                destination: "0.0.0.0/0".parse().unwrap(),
                via: Some([10, 71, 8, 43].into()),
                source: None,
                table: 254,
            }],
            local: Vec::new(),
            not_its_own: Vec::new(),
            no_ipv6: false,
        };
        let catalog = Catalog::from_texts([(Path::new("pools.yaml"), POOLS)]);
        assert_eq!(catalog.pools().len(), 3, "{:?}", catalog.problems());
        let chained =
            ChainedInterfaces::from([([10, 71, 8, 45].into(), "default/guest".to_owned())]);
        let withheld = withheld(&facts, &catalog, &chained);
        let found: Vec<String> = catalog
            .pools()
            .iter()
            .flat_map(|pool| withheld.among(&pool.ranges))
            .map(|(address, why)| format!("{address}: {why}"))
            .collect();
        assert_eq!(
            found,
            [
                "10.71.8.40: the node has it on ens6",
                "10.71.8.41: it is the gateway to 172.20.0.0/14 in the routes of pool v4",
                "10.71.8.42: it is the gateway of pool other",
                "10.71.8.43: it is the node's router on ens6",
                "10.71.8.44: the node has it on ens5",
                "10.71.8.45: another plugin assigned it to pod default/guest",
                "fd71:8::50: the node has it on ens6",
                "fd71:8::99: the node has it on lo",
            ]
        );
    }
}
