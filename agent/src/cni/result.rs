//! The result of ADD, in the version that was requested.

use ebbtide_kernel::{netlink::model::MAIN_TABLE, podnet::PodNet};
use ebbtide_types::{Family, Mac};
use serde_json::{Value, json};

/// The result of ADD, independent of versions.
#[derive(Debug)]
pub struct AddResult<'a> {
    /// The pod's network.
    pub net: &'a PodNet,
    /// The master's link-layer address, which its children share.
    pub mac: Option<Mac>,
}

impl AddResult<'_> {
    /// Returns the JSON of the specification's `version`. The interfaces are, in this order, the pod's own one, the
    /// host's end of the veth pair, and the pod's end of it.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let net = self.net;
        if is_by_family(version) {
            return self.by_family(version);
        }
        let sandbox = net.netns.display().to_string();
        let interface = |name: &str, mac: Option<Mac>, mtu: u32, sandbox: Option<&str>| {
            let mut object = json!({ "name": name });
            if let Some(mac) = mac {
                object["mac"] = json!(mac.to_string());
            }
            if let Some(sandbox) = sandbox {
                object["sandbox"] = json!(sandbox);
            }
            if version == "1.1.0" {
                object["mtu"] = json!(mtu);
            }
            object
        };
        let mut interfaces = vec![interface(&net.interface, self.mac, net.mtu, Some(&sandbox))];
        if let Some(veth) = &net.veth {
            interfaces.push(interface(
                &veth.host_name,
                Some(veth.host_mac),
                veth.mtu,
                None,
            ));
            interfaces.push(interface(
                &veth.pod_name,
                Some(veth.pod_mac),
                veth.mtu,
                Some(&sandbox),
            ));
        }
        let ips: Vec<Value> = net
            .addresses
            .iter()
            .map(|pod| {
                let mut ip = json!({ "interface": 0, "address": pod.address.to_string() });
                if let Some(gateway) = pod.gateway {
                    ip["gateway"] = json!(gateway.to_string());
                }
                // Dropped from the specification in 1.0.0.
                if matches!(version, "0.3.0" | "0.3.1" | "0.4.0") {
                    ip["version"] = json!(if pod.address.addr().is_ipv4() {
                        "4"
                    } else {
                        "6"
                    });
                }
                ip
            })
            .collect();
        let routes: Vec<Value> = self.routes().map(|(_, route)| route).collect();
        json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": {},
        })
    }

    /// Returns the routes of the interface in the main table.
    fn routes(&self) -> impl Iterator<Item = (Family, Value)> {
        let net = self.net;
        let routes = net.in_pod.routes.iter();
        let own = routes.filter(|route| route.table == MAIN_TABLE && route.link == net.interface);
        own.map(|route| {
            let mut object = json!({ "dst": route.destination.to_string() });
            if let Some(via) = route.via {
                object["gw"] = json!(via.to_string());
            }
            (Family::of_net(&route.destination), object)
        })
    }

    /// Returns the form before 0.3.0: one address of each family, and no interfaces.
    fn by_family(&self, version: &str) -> Value {
        let mut result = json!({"cniVersion": version, "dns": {}});
        for (family, key) in [(Family::V4, "ip4"), (Family::V6, "ip6")] {
            let mut addresses = self.net.addresses.iter();
            let first = addresses.find(|pod| Family::of_net(&pod.address) == family);
            let Some(pod) = first else { continue };
            let routes = self.routes().filter(|(of, _)| *of == family);
            let routes: Vec<Value> = routes.map(|(_, route)| route).collect();
            result[key] = json!({"ip": pod.address.to_string(), "routes": routes});
            if let Some(gateway) = pod.gateway {
                result[key]["gateway"] = json!(gateway.to_string());
            }
        }
        result
    }
}

/// Whether a result of this version has `ip4` and `ip6` in place of a list.
pub(super) fn is_by_family(version: &str) -> bool {
    matches!(version, "0.1.0" | "0.2.0")
}
