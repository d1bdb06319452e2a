//! Reads the result of another plugin: of a chain's earlier plugins, or of an IPAM plugin.

use std::net::IpAddr;

use ebbtide_kernel::podnet::PodAddress;
use ebbtide_plugin::{
    cni::code,
    object::{self, Object},
};
use ebbtide_types::Family;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{Failure, nulls::without_nulls};

/// The fields of a result that are read, in the form of every version since 0.3.0.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Previous {
    #[serde(default, deserialize_with = "object::list")]
    interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "object::list")]
    ips: Vec<Ip>,
    #[serde(default, deserialize_with = "object::list")]
    routes: Vec<Route>,
    /// Before 0.3.0: the only address of its family.
    #[serde(default, deserialize_with = "object::optional")]
    ip4: Option<OfFamily>,
    /// As `ip4`.
    #[serde(default, deserialize_with = "object::optional")]
    ip6: Option<OfFamily>,
}

#[derive(Debug, Deserialize)]
struct OfFamily {
    ip: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "object::list")]
    routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Ip {
    address: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
    /// Negative: none of those that are listed.
    #[serde(default)]
    interface: Option<i64>,
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
    /// If it does not have the form that the specification defines.
    pub(super) fn parse(value: &Value, whose: &str) -> Result<Self, Failure> {
        let value = without_nulls(value.clone());
        let read: Result<Object<Self>, _> = serde_path_to_error::deserialize(value);
        let Object(mut previous) = read.map_err(|e| {
            Failure::new(
                code::DECODING_FAILURE,
                format!(
                    "the result of {whose} is not valid: `{}`: {}",
                    e.path(),
                    e.inner()
                ),
                "it must be as the CNI specification describes",
            )
        })?;
        for of_family in [previous.ip4.take(), previous.ip6.take()] {
            previous.add(of_family);
        }
        let gateways = previous.ips.iter_mut().map(|ip| &mut ip.gateway);
        let hops = previous.routes.iter_mut().map(|route| &mut route.gw);
        for gateway in gateways.chain(hops) {
            // Some plugins write `0.0.0.0` or `::` for no gateway, and so does the kernel.
            *gateway = gateway.filter(|address| !address.is_unspecified());
        }
        Ok(previous)
    }

    fn add(&mut self, of_family: Option<OfFamily>) {
        let Some(own) = of_family else { return };
        self.routes.extend(own.routes);
        self.ips.push(Ip {
            address: own.ip,
            gateway: own.gateway,
            interface: None,
        });
    }

    /// Returns the addresses of the pod's interface `name`, which an earlier plugin made and which has `inside` in the
    /// pod.
    ///
    /// Plugins describe their interfaces differently: Calico's lists the host's end alone, Azure's marks none as being
    /// in the pod, scripts count from -1. So addresses of the pod's other interfaces are left out; if none is left,
    /// those in the pod count.
    ///
    /// # Errors
    /// If it has no address.
    pub(super) fn of_interface(
        &self,
        name: &str,
        inside: &[IpNet],
    ) -> Result<Vec<PodAddress>, Failure> {
        let own = self.ips.iter().filter(|ip| self.may_be_of(ip, name));
        let mut own: Vec<Ip> = own.cloned().collect();
        if own.is_empty() {
            own.extend(inside.iter().map(|address| Ip {
                address: *address,
                gateway: None,
                interface: None,
            }));
        }
        self.addresses(own.iter(), "prevResult")
    }

    /// Removes and returns the addresses that the pod has on no interface: a route to one would reach nothing.
    pub(super) fn leave_out_absent(&mut self, in_pod: &[IpAddr]) -> Vec<IpNet> {
        let (there, absent) = std::mem::take(&mut self.ips)
            .into_iter()
            .partition(|ip| in_pod.contains(&ip.address.addr()));
        self.ips = there;
        let absent: Vec<Ip> = absent;
        absent.into_iter().map(|ip| ip.address).collect()
    }

    /// Whether an address does not belong to another interface of the pod.
    fn may_be_of(&self, ip: &Ip, name: &str) -> bool {
        let index = ip.interface.and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.interfaces.get(index)) {
            None => true,
            Some(interface) => interface.name == name || !self.is_in_pod(interface, name),
        }
    }

    /// Whether an interface is in the pod. If the plugin names no sandbox at all, all are taken to be.
    fn is_in_pod(&self, interface: &Interface, asked: &str) -> bool {
        let says_where = self.interfaces.iter().any(|link| !link.sandbox.is_empty());
        let is_listed = self.interfaces.iter().any(|link| link.name == asked);
        !interface.sandbox.is_empty() || (!says_where && is_listed)
    }

    /// Returns the links in the host that the plugins made, where `asked` is the pod's interface.
    pub(super) fn in_host<'a>(&'a self, asked: &'a str) -> impl Iterator<Item = &'a str> {
        let links = self.interfaces.iter();
        links
            .filter(move |link| !link.name.is_empty() && !self.is_in_pod(link, asked))
            .map(|link| link.name.as_str())
    }

    /// Returns all addresses, as an IPAM plugin does not know the interface.
    ///
    /// # Errors
    /// If there are none.
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

    /// Returns the routes of a family without the default one, which every address with a gateway has.
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
        let own = previous.of_interface("eth0", &[]).unwrap();
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].address.to_string(), "10.1.0.2/24");
        let via: IpAddr = [10, 1, 0, 1].into();
        assert_eq!(own[0].gateway, Some(via));
        assert_eq!(own[0].routes, [("10.9.0.0/16".parse().unwrap(), via)]);
        assert_eq!(previous.in_host("eth0").collect::<Vec<_>>(), ["veth1"]);
    }

    #[test]
    fn an_unspecified_next_hop_is_none() {
        let result = json!({
            "ips": [{"address": "10.1.0.2/24", "gateway": "0.0.0.0"}, {"address": "fd00::2/64", "gateway": "fd00::1"}],
            "routes": [{"dst": "10.9.0.0/16", "gw": "0.0.0.0"}, {"dst": "0.0.0.0/0", "gw": "0.0.0.0"},
                {"dst": "fd00:9::/64", "gw": "::"}],
        });
        let previous = Previous::parse(&result, "static").unwrap();
        let own = previous.of_ipam("static").unwrap();
        assert_eq!((own[0].gateway, own[0].routes.len()), (None, 0));
        let via: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(own[1].routes, [("fd00:9::/64".parse().unwrap(), via)]);
    }

    /// The results of plugins and scripts for a pod whose eth0 has 10.88.0.5/24, with the expected address, gateway
    /// and links of the host.
    #[test]
    fn results_of_many_shapes_are_understood() {
        let inside = ["10.88.0.5/24".parse().unwrap()];
        for (what, result, address, gateway, in_host) in [
            (
                "Calico: the host's end alone",
                json!({"interfaces": [{"name": "calia1"}], "ips": [{"version": "4", "address": "10.88.0.5/32"}]}),
                "10.88.0.5/32",
                None,
                vec!["calia1"],
            ),
            (
                "Calico, with an index of the host's end",
                json!({"interfaces": [{"name": "calia1"}], "ips": [{"address": "10.88.0.5/32", "interface": 0}]}),
                "10.88.0.5/32",
                None,
                vec!["calia1"],
            ),
            (
                "Azure: nothing says what is in the pod",
                json!({"interfaces": [{"name": "eth0"}],
                    "ips": [{"address": "10.88.0.5/16", "gateway": "10.88.0.1", "interface": 0}]}),
                "10.88.0.5/16",
                Some("10.88.0.1"),
                vec![],
            ),
            (
                "a script: empty texts and -1",
                json!({"interfaces": [{"name": "eth0", "sandbox": "/x", "mac": ""}],
                    "ips": [{"version": "4", "address": "10.88.0.5/24", "gateway": "", "interface": -1}],
                    "routes": [{"dst": "0.0.0.0/0", "gw": ""}], "dns": null}),
                "10.88.0.5/24",
                None,
                vec![],
            ),
            (
                "a gateway in the routes alone",
                json!({"interfaces": null, "ips": [{"address": "10.88.0.5/24"}],
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.254"}]}),
                "10.88.0.5/24",
                Some("10.88.0.254"),
                vec![],
            ),
            (
                "an index that leads nowhere",
                json!({"interfaces": [{"name": "eth0", "sandbox": "/x"}],
                    "ips": [{"address": "10.88.0.5/24", "interface": 7}], "routes": null}),
                "10.88.0.5/24",
                None,
                vec![],
            ),
            (
                "no addresses: the pod's own",
                json!({"interfaces": [{"name": "veth7"}], "ips": null}),
                "10.88.0.5/24",
                None,
                vec!["veth7"],
            ),
            (
                "addresses of another interface alone: the pod's own",
                json!({"interfaces": [{"name": "net9", "sandbox": "/x"}],
                    "ips": [{"address": "10.9.0.1/24", "interface": 0}]}),
                "10.88.0.5/24",
                None,
                vec![],
            ),
            (
                "before 0.3.0",
                json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.88.0.5/24", "gateway": "10.88.0.254",
                    "routes": [{"dst": "0.0.0.0/0"}]}, "ip6": null}),
                "10.88.0.5/24",
                Some("10.88.0.254"),
                vec![],
            ),
        ] {
            let previous = Previous::parse(&result, "prevResult");
            let previous = previous.unwrap_or_else(|e| panic!("{what}: {}", e.message));
            let own = previous.of_interface("eth0", &inside).unwrap();
            assert_eq!(own.len(), 1, "{what}");
            assert_eq!(own[0].address.to_string(), address, "{what}");
            let expected: Option<IpAddr> = gateway.map(|ip| ip.parse().unwrap());
            assert_eq!(own[0].gateway, expected, "{what}");
            assert_eq!(
                previous.in_host("eth0").collect::<Vec<_>>(),
                in_host,
                "{what}"
            );
        }
        let nowhere = Previous::parse(&json!({}), "prevResult").unwrap();
        let failure = nowhere.of_interface("eth0", &[]).unwrap_err();
        assert!(
            failure.message.contains("no address"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn an_address_that_the_pod_does_not_have_is_left_out_and_named() {
        let inside: IpNet = "10.88.0.5/24".parse().unwrap();
        let in_pod = [inside.addr(), "10.99.0.1".parse().unwrap()];
        for (ips, own, absent) in [
            (
                json!([{"address": "10.88.0.5/16"}]),
                vec!["10.88.0.5/16"],
                vec![],
            ),
            (
                json!([{"address": "10.88.0.5/24"}, {"address": "10.88.0.6/24"}]),
                vec!["10.88.0.5/24"],
                vec!["10.88.0.6/24"],
            ),
            // On another interface, for instance the loopback.
            (
                json!([{"address": "10.99.0.1/32"}]),
                vec!["10.99.0.1/32"],
                vec![],
            ),
            // Nothing is left: the address in the pod counts.
            (
                json!([{"address": "10.88.0.9/24"}]),
                vec!["10.88.0.5/24"],
                vec!["10.88.0.9/24"],
            ),
            (json!([]), vec!["10.88.0.5/24"], vec![]),
        ] {
            let mut previous = Previous::parse(&json!({"ips": ips}), "the plugin").unwrap();
            let shown = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(shown(previous.leave_out_absent(&in_pod)), absent, "{ips}");
            let found = previous.of_interface("eth0", &[inside]).unwrap();
            assert_eq!(
                shown(found.iter().map(|pod| pod.address).collect()),
                own,
                "{ips}"
            );
        }
    }

    #[test]
    fn what_is_no_object_is_no_result() {
        for (result, field) in [
            (json!([]), "`.`"),
            (json!([[], []]), "`.`"),
            (json!("x"), "`.`"),
            (json!({"interfaces": [["eth0", "/x"]]}), "`interfaces[0]`"),
            (json!({"ips": [["10.1.0.2/24"]]}), "`ips[0]`"),
            (json!({"ips": [7]}), "`ips[0]`"),
            (json!({"routes": [["10.0.0.0/8"]]}), "`routes[0]`"),
            (json!({"ip4": ["10.1.0.2/24"]}), "`ip4`"),
            (json!({"ips": {"address": "10.1.0.2/24"}}), "`ips`"),
        ] {
            let failure = Previous::parse(&result, "the plugin").unwrap_err();
            assert_eq!(failure.code, code::DECODING_FAILURE, "{result}");
            assert!(
                failure.message.contains(field),
                "{result}: {}",
                failure.message
            );
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
