//! Discovers the networks of the cluster's Services, from several sources.
//!
//! The elected controller writes what it finds into the status of the SpiderCoordinator, which
//! every agent watches. No pod ever waits for it.

use std::net::IpAddr;

use ebbtide_types::yaml;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::{
    cluster::Cluster,
    object::{Kind, resource},
    service_cidrs,
};

/// The discovered networks, and their source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    /// The networks of the Services.
    service: Vec<IpNet>,
    /// The networks of the pods, where the source has them.
    pod: Vec<IpNet>,
    /// The source of the Services' networks.
    source: &'static str,
}

/// The SpiderCoordinator that is created if none exists.
const NAME: &str = "default";

/// Discovers the networks and writes them into the status of the SpiderCoordinator.
pub(super) async fn reconcile(cluster: &Cluster) {
    let status = match discover(cluster).await {
        Some(found) => json!({
            "phase": "Synced",
            "reason": format!("found by {}", found.source),
            "serviceCIDR": found.service,
            "overlayPodCIDR": found.pod,
        }),
        None => json!({
            "phase": "NotReady",
            "reason": "the Services' networks are unknown: no ServiceCIDR object, \
                       kubeadm-config, flag of the control plane or answer of the API server \
                       names them: set serviceCIDRs in the agent's configuration",
        }),
    };
    let there = cluster.all(Kind::Coordinator).into_iter().next();
    let compared = |status: &Value| {
        (
            status.get("phase").cloned(),
            status.get("serviceCIDR").cloned(),
            status.get("overlayPodCIDR").cloned(),
        )
    };
    let known = there.as_ref().and_then(|object| object.data.get("status"));
    if known.map(compared) == Some(compared(&status)) {
        return;
    }
    let name = there.and_then(|object| object.metadata.name);
    if let Err(e) = write(cluster, name, status).await {
        warn!("the status of the SpiderCoordinator is not written yet: {e}");
    }
}

async fn write(cluster: &Cluster, name: Option<String>, status: Value) -> kube::Result<()> {
    let types = resource(Kind::Coordinator);
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &types);
    let is_there = name.is_some();
    let name = name.unwrap_or_else(|| NAME.to_owned());
    if !is_there {
        let spec = json!({ "spec": { "mode": "auto" } });
        let made = DynamicObject::new(&name, &types).data(spec);
        match api.create(&PostParams::default(), &made).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            result => drop(result?),
        }
    }
    info!(%status, "the Services' networks");
    let patch = json!({ "status": status });
    let params = PatchParams::default();
    api.patch_status(&name, &params, &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// Tries the sources, the most reliable first, until one has the Services' networks.
async fn discover(cluster: &Cluster) -> Option<Found> {
    let client = &cluster.client;
    let mut found = Found::default();
    if let Some(service) = service_cidrs::all(client).await {
        found.service = service;
        found.source = "ServiceCIDR objects";
    }
    if let Some((service, pod)) = kubeadm(client).await {
        found.add(service, pod, "ConfigMap kube-system/kubeadm-config");
    }
    for component in ["kube-controller-manager", "kube-apiserver"] {
        if found.service.is_empty()
            && let Some((service, pod)) = flags(client, component).await
        {
            found.add(service, pod, "the flags of the control plane's pods");
        }
    }
    if found.service.is_empty() {
        let service = dry_run(client).await;
        found.add(
            service,
            Vec::new(),
            "the API server's answer to a Service that cannot be",
        );
    }
    (!found.service.is_empty()).then_some(found)
}

impl Found {
    fn add(&mut self, service: Vec<IpNet>, pod: Vec<IpNet>, source: &'static str) {
        if self.service.is_empty() && !service.is_empty() {
            self.service = service;
            self.source = source;
        }
        if self.pod.is_empty() {
            self.pod = pod;
        }
    }
}

/// Reads the networks from kubeadm's configuration.
async fn kubeadm(client: &Client) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = api.get_opt("kubeadm-config").await;
    let map = map.inspect_err(|e| debug!("kubeadm-config: {e}")).ok()??;
    Some(of_kubeadm(map.data?.get("ClusterConfiguration")?))
}

/// Parses `networking.serviceSubnet` and `podSubnet` of a kubeadm ClusterConfiguration.
fn of_kubeadm(text: &str) -> (Vec<IpNet>, Vec<IpNet>) {
    let value: Value = yaml::read(text).unwrap_or(Value::Null);
    let field = |name: &str| {
        let text = value.pointer(&format!("/networking/{name}"));
        nets(text.and_then(Value::as_str).unwrap_or_default())
    };
    (field("serviceSubnet"), field("podSubnet"))
}

/// Parses networks separated by commas, as in `10.96.0.0/16,fd00::/112`.
fn nets(text: &str) -> Vec<IpNet> {
    text.split(',')
        .filter_map(|text| text.trim().parse().ok())
        .collect()
}

async fn flags(client: &Client, component: &str) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    let labelled = ListParams::default().labels(&format!("component={component}"));
    let pods = api.list(&labelled).await;
    let pods = pods
        .inspect_err(|e| debug!("pods of {component}: {e}"))
        .ok()?;
    let containers = pods.items.into_iter().filter_map(|pod| pod.spec);
    let words: Vec<String> = containers
        .flat_map(|spec| spec.containers)
        .flat_map(|container| {
            let command = container.command.unwrap_or_default();
            command
                .into_iter()
                .chain(container.args.unwrap_or_default())
        })
        .collect();
    (!words.is_empty()).then(|| {
        (
            of_flag(&words, "--service-cluster-ip-range"),
            of_flag(&words, "--cluster-cidr"),
        )
    })
}

/// Parses the value of a flag, written `--flag=value` or `--flag value`.
fn of_flag(words: &[String], flag: &str) -> Vec<IpNet> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = match word.strip_prefix(flag) {
            Some("") => words.next().map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        if let Some(value) = value {
            return nets(value);
        }
    }
    Vec::new()
}

/// Requests, as a dry run, a Service with an impossible address: the refusal names the range.
async fn dry_run(client: &Client) -> Vec<IpNet> {
    let api: Api<Service> = Api::namespaced(client.clone(), "default");
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut found = Vec::new();
    // Documentation addresses (RFC 5737, RFC 3849): no Services use them.
    for address in ["192.0.2.1", "2001:db8::1"] {
        let family = if address.contains(':') {
            "IPv6"
        } else {
            "IPv4"
        };
        let service = json!({
            "metadata": { "generateName": "ebbtide-range-" },
            "spec": {
                "clusterIP": address, "ipFamilies": [family],
                "ports": [{ "port": 1, "protocol": "TCP" }],
            },
        });
        let Ok(service) = serde_json::from_value(service) else {
            continue;
        };
        match api.create(&params, &service).await {
            Ok(_) => debug!("a Service at {address} would be taken: no range is told"),
            Err(e) => found.extend(of_refusal(&e.to_string(), address)),
        }
    }
    found
}

/// Parses the range in `... The range of valid IPs is 10.96.0.0/16`, if it is of the address'
/// family (pkg/registry/core/service/ipallocator in Kubernetes).
fn of_refusal(text: &str, address: &str) -> Option<IpNet> {
    let (_, rest) = text.split_once("range of valid IPs is ")?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && !matches!(c, '.' | ':' | '/'));
    let net: IpNet = rest[..end.unwrap_or(rest.len())]
        .trim_end_matches(['.', ':'])
        .parse()
        .ok()?;
    let address: IpAddr = address.parse().ok()?;
    (net.addr().is_ipv4() == address.is_ipv4()).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(nets: &[IpNet]) -> String {
        let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
        texts.join(" ")
    }

    #[test]
    fn kubeadms_configuration_tells_both() {
        let text = "apiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\nnetworking:\n  \
                    dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16,fd01::/48\n  serviceSubnet: 10.96.0.0/12\n";
        let (service, pod) = of_kubeadm(text);
        assert_eq!(shown(&service), "10.96.0.0/12");
        assert_eq!(shown(&pod), "10.244.0.0/16 fd01::/48");
        assert_eq!(of_kubeadm("nonsense: ["), (vec![], vec![]));
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let flag = "--service-cluster-ip-range";
        for (text, expected) in [
            (
                "kube-apiserver --service-cluster-ip-range=10.96.0.0/16,fd00::/112 --x",
                "10.96.0.0/16 fd00::/112",
            ),
            (
                "kube-apiserver --service-cluster-ip-range 10.96.0.0/16",
                "10.96.0.0/16",
            ),
            ("kube-apiserver --service-cluster-ip-range", ""),
            ("kube-apiserver --service-cluster-ip-range-x=1", ""),
        ] {
            assert_eq!(shown(&of_flag(&words(text), flag)), expected, "{text}");
        }
    }

    #[test]
    fn a_refusal_tells_the_range_of_its_family() {
        let v4 = "Service \"x\" is invalid: spec.clusterIPs: Invalid value: []string{\"192.0.2.1\"}: failed to \
                  allocate IP 192.0.2.1: provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16";
        assert_eq!(
            of_refusal(v4, "192.0.2.1")
                .map(|net| net.to_string())
                .as_deref(),
            Some("10.96.0.0/16")
        );
        assert_eq!(of_refusal(v4, "2001:db8::1"), None);
        let v6 = "The range of valid IPs is fd00:10:96::/112: Invalid (422)";
        assert_eq!(
            of_refusal(v6, "2001:db8::1")
                .map(|net| net.to_string())
                .as_deref(),
            Some("fd00:10:96::/112")
        );
        assert_eq!(of_refusal("something else", "192.0.2.1"), None);
    }
}
