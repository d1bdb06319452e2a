//! Which network a configuration requests.

use ebbtide_plugin::cni::code;
use ebbtide_types::IpvlanMode;

use super::{DHCP, NamedPools, NetConf};
use crate::cni::Failure;

/// The network that a configuration requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChoice {
    /// Chosen by the pod's annotations, or else the default network: Ebbtide is the cluster's own CNI.
    ByPod,
    /// Named, from the manifests.
    Named {
        /// The name.
        network: String,
        /// Pools that replace the network's own, by family.
        pools: NamedPools,
    },
    /// Described in the configuration itself.
    Inline {
        /// The NIC.
        master: String,
        /// The mode of its children.
        mode: IpvlanMode,
        /// MTU in bytes.
        mtu: Option<u32>,
        /// The pools; the default ones if none is named.
        pools: NamedPools,
    },
}

impl NetConf {
    /// Returns the network that is requested.
    ///
    /// # Errors
    /// If both `network` and `master` name one, or if the configuration requests something that is not supported.
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
        if self.prev_result.is_some() && self.master.is_none() {
            self.refuse_pools(
                "behind another plugin (`prevResult`)",
                "the plugin before ebbtide has given the addresses: leave `ipam` out",
            )?;
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
                Ok(NetworkChoice::Named {
                    network: name.clone(),
                    pools: self.pools()?,
                })
            }
            (None, Some(master)) => Ok(NetworkChoice::Inline {
                master: master.clone(),
                mode: self.mode.unwrap_or_default(),
                mtu: self.mtu.filter(|mtu| *mtu != 0),
                pools: self.pools()?,
            }),
            (Some(_), Some(_)) => Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "the network configuration has both `network` and `master`",
                "name a SpiderMultusConfig with `network`, or describe the network with `master`",
            )),
            (None, None) => {
                self.refuse_pools(
                    "without `network` and `master`",
                    "a pod's networks are in its annotations, and each has its pools: name them there \
                     (`ippools` of the SpiderMultusConfig, ipam.spidernet.io/ippool of the pod), or name the network",
                )?;
                Ok(NetworkChoice::ByPod)
            }
        }
    }
}

pub(super) fn unsupported(key: &str, value: &str, hint: &str) -> Failure {
    Failure::new(
        code::UNSUPPORTED_FIELD,
        format!("the network configuration's `{key}` is {value:?}, which is not supported"),
        hint,
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
            NetworkChoice::Named {
                network: "default/ipvlan-ens5".into(),
                pools: NamedPools::default(),
            }
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
                pools: NamedPools {
                    ipv4: vec!["a".into()],
                    ipv6: vec![],
                    ..NamedPools::default()
                },
            }
        );
    }
}
