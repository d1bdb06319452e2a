//! The result of another plugin, read: what a chain's earlier plugins made, what an IPAM gave.

use std::net::IpAddr;

use ebbtide_plugin::cni::code;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use crate::{netlink::model::Family, podnet::PodAddress};

/// The fields of a result that are looked at; the form is that of every version since 0.3.0.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Previous {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Route {
    dst: IpNet,
    #[serde(default)]
    gw: Option<IpAddr>,
}

impl Previous {
    /// Reads a result; `whose` names it in errors.
    ///
    /// # Errors
    /// When it is not of the form that the specification gives it.
    pub(super) fn parse(value: &Value, whose: &str) -> Result<Self, Failure> {
        serde_path_to_error::deserialize(value).map_err(|e| {
            Failure::new(
                code::DECODING_FAILURE,
                format!(
                    "the result of {whose} is not valid: `{}`: {}",
                    e.path(),
                    e.inner()
                ),
                "it must be as the CNI specification describes",
            )
        })
    }

    /// The addresses of the pod's interface `name`, which an earlier plugin must have made.
    ///
    /// # Errors
    /// When it made none of that name, or it has no address.
    pub(super) fn of_interface(&self, name: &str) -> Result<Vec<PodAddress>, Failure> {
        let place = |(_, interface): &(usize, &Interface)| {
            interface.name == name && !interface.sandbox.is_empty()
        };
        let Some((index, _)) = self.interfaces.iter().enumerate().find(place) else {
            return Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                format!("prevResult has no interface {name} in the pod"),
                "the plugin before ebbtide must make the interface that the runtime asks for",
            ));
        };
        let own = |ip: &&Ip| ip.interface.is_none_or(|at| at == index);
        self.addresses(self.ips.iter().filter(own), "prevResult")
    }

    /// The links in the host that the plugins made.
    pub(super) fn in_host(&self) -> impl Iterator<Item = &str> {
        let links = self.interfaces.iter();
        links
            .filter(|link| link.sandbox.is_empty())
            .map(|link| link.name.as_str())
    }

    /// All addresses: an IPAM knows no interfaces.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn of_ipam(&self, kind: &str) -> Result<Vec<PodAddress>, Failure> {
        self.addresses(self.ips.iter(), kind)
    }

    fn addresses<'a>(
        &'a self,
        ips: impl Iterator<Item = &'a Ip>,
        whose: &str,
    ) -> Result<Vec<PodAddress>, Failure> {
        let mut taken = Vec::new();
        let addresses: Vec<PodAddress> = ips
            .map(|ip| {
                let family = Family::of_net(&ip.address);
                // One address of each family has the routes.
                let routes = match taken.contains(&family) {
                    true => Vec::new(),
                    false => self.routes(family, ip.gateway),
                };
                taken.push(family);
                PodAddress {
                    address: ip.address,
                    pool: whose.to_owned(),
                    gateway: ip.gateway.or_else(|| self.default_gateway(family)),
                    routes,
                }
            })
            .collect();
        if addresses.is_empty() {
            return Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                format!("the result of {whose} has no address for the pod"),
                "give the plugin that makes the interface an `ipam` that gives addresses",
            ));
        }
        Ok(addresses)
    }

    /// The routes of a family but the default one, which every address with a gateway has.
    fn routes(&self, family: Family, gateway: Option<IpAddr>) -> Vec<(IpNet, IpAddr)> {
        let own = self.routes.iter();
        own.filter(|route| route.dst.prefix_len() > 0 && Family::of_net(&route.dst) == family)
            .filter_map(|route| Some((route.dst, route.gw.or(gateway)?)))
            .collect()
    }

    fn default_gateway(&self, family: Family) -> Option<IpAddr> {
        let mut defaults = self
            .routes
            .iter()
            .filter(|route| route.dst.prefix_len() == 0 && Family::of_net(&route.dst) == family);
        defaults.find_map(|route| route.gw)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_interface_s_own_addresses_are_found_among_others() {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"},
                {"name": "other", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
                {"address": "10.2.0.2/24", "interface": 2},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16"}],
        });
        let previous = Previous::parse(&result, "prevResult").unwrap();
        let own = previous.of_interface("eth0").unwrap();
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].address.to_string(), "10.1.0.2/24");
        let via: IpAddr = [10, 1, 0, 1].into();
        assert_eq!(own[0].gateway, Some(via));
        assert_eq!(own[0].routes, [("10.9.0.0/16".parse().unwrap(), via)]);
        for missing in ["veth1", "eth1"] {
            let failure = previous.of_interface(missing).unwrap_err();
            assert!(failure.message.contains(missing), "{}", failure.message);
        }
    }

    #[test]
    fn a_result_that_is_wrong_is_named_with_its_field() {
        let bad = json!({"ips": [{"address": "10.1.0.2"}]});
        let failure = Previous::parse(&bad, "host-local").unwrap_err();
        assert!(
            failure.message.contains("host-local"),
            "{}",
            failure.message
        );
        assert!(
            failure.message.contains("ips[0].address"),
            "{}",
            failure.message
        );
        let none = Previous::parse(&json!({}), "host-local").unwrap();
        assert!(none.of_ipam("host-local").is_err());
    }
}
