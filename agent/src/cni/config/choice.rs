//! Which network a configuration asks for.

use ebbtide_plugin::cni::code;

use super::{DHCP, NetConf};
use crate::{cni::Failure, netlink::link::IpvlanMode};

/// The network a configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChoice {
    /// By the pod's annotations, or the default network: the cluster's own CNI.
    ByPod,
    /// By name, from the manifests.
    Named(String),
    /// Described in the configuration itself.
    Inline {
        /// The NIC.
        master: String,
        /// Mode of its children.
        mode: IpvlanMode,
        /// MTU in bytes.
        mtu: Option<u32>,
        /// IPv4 pools by name; the default pools if both lists are empty.
        ipv4_pools: Vec<String>,
        /// IPv6 pools by name.
        ipv6_pools: Vec<String>,
    },
}

impl NetConf {
    /// The network that is asked for.
    ///
    /// # Errors
    /// When none is, or more than one way is used to name it, or something is asked for that this
    /// plugin does not do.
    pub fn choice(&self) -> Result<NetworkChoice, Failure> {
        if let (Some(_), Some(master)) = (&self.prev_result, &self.master) {
            return Err(unsupported(
                "master",
                master,
                "behind another plugin (`prevResult`) ebbtide adds to the interface that is there: \
                 leave `master` out, or put ebbtide first",
            ));
        }
        if self.ipam_plugin() == Some(DHCP) {
            return Err(unsupported(
                "ipam.type",
                DHCP,
                "its daemon asks by an interface that is there before it has an address, and all \
                 children of a NIC have one MAC address, by which a DHCP server cannot tell them apart: \
                 leave `ipam` out for addresses of the pools, or use host-local, static or whereabouts",
            ));
        }
        match (&self.network, &self.master) {
            (Some(name), None) => {
                let own = [("mode", self.mode.is_some()), ("mtu", self.mtu.is_some())];
                if let Some((field, _)) = own.iter().find(|(_, set)| *set) {
                    return Err(unsupported(
                        field,
                        "a value",
                        "with `network`, it is set in the SpiderMultusConfig of that name",
                    ));
                }
                Ok(NetworkChoice::Named(name.clone()))
            }
            (None, Some(master)) => {
                let ipam = self.ipam.as_ref();
                Ok(NetworkChoice::Inline {
                    master: master.clone(),
                    mode: self.mode.unwrap_or_default(),
                    mtu: self.mtu.filter(|mtu| *mtu != 0),
                    ipv4_pools: ipam.map(|i| i.ipv4_pools.clone()).unwrap_or_default(),
                    ipv6_pools: ipam.map(|i| i.ipv6_pools.clone()).unwrap_or_default(),
                })
            }
            (Some(_), Some(_)) => Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "the network configuration has both `network` and `master`",
                "name a SpiderMultusConfig with `network`, or describe the network with `master`",
            )),
            (None, None) => Ok(NetworkChoice::ByPod),
        }
    }
}

fn unsupported(key: &str, value: &str, way_out: &str) -> Failure {
    Failure::new(
        code::UNSUPPORTED_FIELD,
        format!("the network configuration's `{key}` is {value:?}, which is not supported"),
        way_out,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_named_or_described() {
        let named = NetConf::parse(
            r#"{"cniVersion":"1.0.0","name":"n","type":"ebbtide","network":"default/ipvlan-ens5"}"#,
        )
        .unwrap();
        assert_eq!(
            named.choice().unwrap(),
            NetworkChoice::Named("default/ipvlan-ens5".into())
        );
        let by_pod =
            NetConf::parse(r#"{"cniVersion":"1.0.0","name":"n","type":"ebbtide"}"#).unwrap();
        assert_eq!(by_pod.choice().unwrap(), NetworkChoice::ByPod);
        assert!(by_pod.is_by_pod() && !named.is_by_pod());
        let inline = NetConf::parse(
            r#"{"cniVersion":"1.0.0","name":"n","type":"ebbtide","master":"ens5","mode":"l2",
                "ipam":{"type":"ebbtide","ipv4Pools":["a"]},"unknown":{"tolerated":true}}"#,
        )
        .unwrap();
        assert_eq!(
            inline.choice().unwrap(),
            NetworkChoice::Inline {
                master: "ens5".into(),
                mode: IpvlanMode::L2,
                mtu: None,
                ipv4_pools: vec!["a".into()],
                ipv6_pools: vec![],
            }
        );
    }
}
