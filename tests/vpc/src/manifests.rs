//! Manifests for a plan, as a person would write them: networks, and a pool for each NIC and family, or none where a
//! cloud's metadata tells the addresses.

use std::fmt::Write as _;

use crate::plan::{Family, Nic, Plan};

/// Returns the name of the network on a NIC, as `namespace/name`.
#[must_use]
pub fn network(nic: &str) -> String {
    format!("default/ipvlan-{nic}")
}

/// Returns the name of a NIC's pool.
#[must_use]
pub fn pool(nic: &Nic, family: Family) -> String {
    let version = match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    format!("{}-{}-{version}", nic.node, nic.name)
}

/// Returns all manifests as one YAML file, the same for every node, as in a cluster.
#[must_use]
pub fn yaml(plan: &Plan) -> String {
    match plan.metadata {
        Some(_) => without_pools(plan),
        None => networks(plan, "") + &pools(plan),
    }
}

/// Returns the networks alone, with the annotation by which the agents derive the pools from their cloud's metadata.
#[must_use]
pub fn without_pools(plan: &Plan) -> String {
    networks(plan, "    ebbtide.io/addresses: metadata\n")
}

/// Returns a network on each NIC's name. `annotations` has further ones, each a line.
fn networks(plan: &Plan, annotations: &str) -> String {
    let mut yaml = String::new();
    let mut names: Vec<&str> = plan.nics().map(|nic| nic.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let _ = write!(
            yaml,
            "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata:
  name: ipvlan-{name}
  namespace: default
  annotations:
    ebbtide.io/answer-neighbours: \"{}\"
{annotations}spec:
  cniType: ipvlan
  ipvlan:
    master: [{name}]
    mode: {}
",
            plan.answers, plan.mode
        );
    }
    yaml
}

/// Returns a pool for each NIC and family.
fn pools(plan: &Plan) -> String {
    let mut yaml = String::new();
    for nic in plan.nics() {
        for family in Family::BOTH {
            let subnet = nic.subnet(family);
            let (Some(first), Some(last)) = (subnet.secondary.first(), subnet.secondary.last())
            else {
                continue;
            };
            let _ = write!(
                yaml,
                "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: {}
spec:
  default: true
  subnet: \"{}\"
  ips: [\"{first}-{last}\"]
  gateway: \"{}\"
  nodeName: [{}]
  multusName: [\"{}\"]
",
                pool(nic, family),
                subnet.primary.trunc(),
                subnet.gateway,
                nic.node,
                network(&nic.name),
            );
        }
    }
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nic_has_its_pools_and_every_network_is_there_once() {
        let yaml = yaml(&Plan::default());
        assert_eq!(yaml.matches("kind: SpiderIPPool").count(), 8);
        assert_eq!(yaml.matches("kind: SpiderMultusConfig").count(), 2);
        assert!(yaml.contains(
            "\
  name: master-ens5-v4
spec:
  default: true
  subnet: \"172.31.16.0/20\"
  ips: [\"172.31.16.4-172.31.16.8\"]
  gateway: \"172.31.16.1\"
  nodeName: [master]
  multusName: [\"default/ipvlan-ens5\"]
"
        ));
    }

    #[test]
    fn without_pools_each_network_has_the_annotation() {
        let yaml = without_pools(&Plan::default());
        assert_eq!(yaml.matches("kind: SpiderIPPool").count(), 0);
        assert_eq!(yaml.matches("kind: SpiderMultusConfig").count(), 2);
        assert_eq!(
            yaml.matches("\n    ebbtide.io/addresses: metadata\nspec:\n")
                .count(),
            2
        );
    }
}
