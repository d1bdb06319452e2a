//! Manifests for a plan, as a person would write them: networks, and a pool for each NIC and family, unless the cloud's
//! metadata tell the addresses.

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
    let mut yaml = String::new();
    let addresses = match plan.metadata {
        Some(_) => "    ebbtide.io/addresses: metadata\n",
        None => "",
    };
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
{addresses}spec:
  cniType: ipvlan
  ipvlan:
    master: [{name}]
    mode: {}
",
            plan.answers, plan.mode
        );
    }
    for nic in plan.nics().filter(|_| plan.metadata.is_none()) {
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
}
