//! The cluster's coordinator: defaults for networks that do not set these fields.

use std::net::IpAddr;

use ipnet::IpNet;

use ebbtide_types::is_name;

use super::{
    Invalid,
    manifest::{CoordinatorSpec, SpiderCoordinator},
    network::default_route_nic,
    prefix,
};

/// A valid `SpiderCoordinator`. A catalog has at most one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator {
    /// Its name.
    pub name: String,
    /// Destinations that go through the veth and the node (`hijackCIDR`).
    pub via_host: Vec<IpNet>,
    /// The pod's interface that keeps the default route; none: the first.
    pub default_route_nic: Option<String>,
    /// The networks of the cluster's Services, as the elected controller found them.
    pub service_cidrs: Vec<IpNet>,
}

impl Coordinator {
    /// Validates a manifest.
    ///
    /// # Errors
    /// [`Invalid`] with the first rule that it breaks.
    pub fn from_manifest(manifest: &SpiderCoordinator) -> Result<Self, Invalid> {
        let name = manifest.metadata.name.as_deref().unwrap_or_default();
        if !is_name(name) {
            return Err(Invalid::new(
                "SpiderCoordinator",
                "metadata.name",
                name,
                "is missing or not a name",
                "name it with letters, digits, '-' and '.'",
            ));
        }
        let object = format!("SpiderCoordinator {name}");
        let nic = default_route_nic(&object, "spec.podDefaultRouteNIC", &manifest.spec)?;
        let status = manifest.status.clone().unwrap_or_default();
        // What the controller wrote itself is right, or Spiderpool's and does no harm.
        let found = |texts: Option<Vec<String>>| {
            let texts = texts.unwrap_or_default();
            texts
                .iter()
                .filter_map(|text| text.parse::<IpNet>().ok())
                .collect::<Vec<_>>()
        };
        let mut via_host = via_host(&object, "spec.hijackCIDR", &manifest.spec)?;
        if manifest.spec.pod_cidr_type.as_deref() == Some("cluster") {
            via_host.extend(found(status.overlay_pod_cidr));
        }
        Ok(Self {
            name: name.to_owned(),
            via_host,
            service_cidrs: found(status.service_cidr),
            default_route_nic: nic,
        })
    }
}

/// Returns the destinations that go through the node.
pub(super) fn via_host(
    object: &str,
    field: &str,
    coordinator: &CoordinatorSpec,
) -> Result<Vec<IpNet>, Invalid> {
    let texts = coordinator.hijack_cidr.as_deref().unwrap_or_default();
    texts
        .iter()
        .enumerate()
        .map(|(position, text)| {
            let address = text.parse::<IpAddr>().ok().map(IpNet::from);
            address
                .or_else(|| prefix(text))
                .map(|net| net.trunc())
                .ok_or_else(|| {
                    let field = format!("{field}[{position}]");
                    Invalid::new(
                        object,
                        field,
                        text,
                        "is neither an address nor a prefix",
                        "write it as in 169.254.0.0/16",
                    )
                })
        })
        .collect()
}
