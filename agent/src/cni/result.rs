//! The result of ADD, in the version that was asked for.

use serde_json::{Value, json};

use crate::{netlink::model::MAIN_TABLE, netlink::model::Mac, podnet::PodNet};

/// What ADD made, independent of versions.
#[derive(Debug)]
pub struct AddResult<'a> {
    /// The pod's network.
    pub net: &'a PodNet,
    /// The master's link-layer address, which its children share.
    pub mac: Option<Mac>,
}

impl AddResult<'_> {
    /// As the JSON of the specification's `version`. The interfaces are the pod's own one, the
    /// host's end of the veth pair, and the pod's end of it, in this order.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let net = self.net;
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
                if matches!(version, "0.3.1" | "0.4.0") {
                    ip["version"] = json!(if pod.address.addr().is_ipv4() {
                        "4"
                    } else {
                        "6"
                    });
                }
                ip
            })
            .collect();
        let routes: Vec<Value> = net
            .in_pod
            .routes
            .iter()
            .filter(|route| route.table == MAIN_TABLE && route.link == net.interface)
            .map(|route| {
                let mut object = json!({ "dst": route.destination.to_string() });
                if let Some(via) = route.via {
                    object["gw"] = json!(via.to_string());
                }
                object
            })
            .collect();
        json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": {},
        })
    }
}
