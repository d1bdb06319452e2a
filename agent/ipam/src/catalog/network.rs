//! A validated network.

use ipnet::IpNet;

use super::{
    Coordinator, Invalid,
    chain::{check_chain, check_custom},
    coordinator::via_host,
    manifest::{CoordinatorSpec, IpvlanSpec, MultusConfigSpec, PoolNames, SpiderMultusConfig},
    pool_names::pool_names,
};
use ebbtide_types::IpvlanMode;
use ebbtide_types::is_name;
use ebbtide_types::{DEFAULT_NAMESPACE, ObjectName, link_name::name_fault};

/// The annotation of a SpiderMultusConfig that says where its addresses come from, if not from pools.
const ADDRESSES: &str = "ebbtide.io/addresses";

/// Where the addresses of a network's pods come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Addresses {
    /// From declared pools: the network's own, or the default ones.
    #[default]
    Pools,
    /// From what the cloud has assigned to the network's NIC on each node, as its metadata service says.
    Metadata,
}

impl Addresses {
    /// The value of the annotation, and of `addresses` in a CNI configuration, that means [`Addresses::Metadata`].
    pub const METADATA: &str = "metadata";
}

/// The annotation of a SpiderMultusConfig that makes the node answer ARP requests and neighbour
/// solicitations for the network's pods: for networks outside of clouds. It is an annotation
/// because an API server drops fields that Spiderpool's CRD does not have.
const ANSWER_NEIGHBOURS: &str = "ebbtide.io/answer-neighbours";

/// A valid network: which interface a pod gets on which NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name, unique in a catalog.
    pub name: ObjectName,
    /// The NIC's interface name.
    pub master: String,
    /// The ipvlan mode.
    pub mode: IpvlanMode,
    /// The interface's MTU in bytes; none: the master's.
    pub mtu: Option<u32>,
    /// Where its pods' addresses come from (annotation `ebbtide.io/addresses`).
    pub addresses: Addresses,
    /// Its own IPv4 pools in order of preference. If this and `ipv6_pools` are empty, the default pools are used.
    pub ipv4_pools: Vec<String>,
    /// Its own IPv6 pools in order of preference.
    pub ipv6_pools: Vec<String>,
    /// Whether the pod gets the veth to its node and sends replies through it.
    pub coordinator: bool,
    /// Destinations that go through the veth and the node (`hijackCIDR`).
    pub via_host: Vec<IpNet>,
    /// The pod's interface that keeps the default route; none: the first.
    pub default_route_nic: Option<String>,
    /// Whether the node answers ARP requests and neighbour solicitations for the pods (annotation
    /// `ebbtide.io/answer-neighbours`).
    pub answer_neighbours: bool,
}

impl Network {
    /// Validates a manifest by the rules for a single network.
    ///
    /// # Errors
    /// [`Invalid`] with the first rule that it breaks, or the first unsupported setting.
    pub fn from_manifest(manifest: &SpiderMultusConfig) -> Result<Self, Invalid> {
        let namespace = manifest
            .metadata
            .namespace
            .as_deref()
            .filter(|namespace| !namespace.is_empty());
        let name = ObjectName {
            namespace: namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned(),
            name: manifest.metadata.name.clone().unwrap_or_default(),
        };
        for (field, text) in [
            ("metadata.name", &name.name),
            ("metadata.namespace", &name.namespace),
        ] {
            if !is_name(text) {
                let remedy = "name it with letters, digits, '-' and '.'";
                return Err(Invalid::new(
                    "SpiderMultusConfig",
                    field,
                    text,
                    "is missing or not a name",
                    remedy,
                ));
            }
        }
        let object = format!("SpiderMultusConfig {name}");
        let spec = &manifest.spec;
        let ipvlan = ipvlan_block(&object, spec)?;
        let pools = pool_names(&object, ipvlan)?;
        let addresses = addresses(&object, manifest, &pools)?;
        let coordinator = spec.coordinator.clone().unwrap_or_default();
        check_chain(&object, spec)?;
        Ok(Self {
            master: master(&object, ipvlan)?,
            mode: mode(&object, ipvlan)?,
            mtu: mtu(&object, ipvlan)?,
            addresses,
            ipv4_pools: pools.ipv4.unwrap_or_default(),
            ipv6_pools: pools.ipv6.unwrap_or_default(),
            coordinator: spec.enable_coordinator.unwrap_or(true)
                && coordinator_wanted(&object, &coordinator)?,
            via_host: via_host(&object, "spec.coordinator.hijackCIDR", &coordinator)?,
            default_route_nic: default_route_nic(
                &object,
                "spec.coordinator.podDefaultRouteNIC",
                &coordinator,
            )?,
            answer_neighbours: answer_neighbours(&object, manifest)?,
            name,
        })
    }

    /// Inherits the coordinator's settings that the network does not set itself.
    pub(super) fn inherit(&mut self, coordinator: &Coordinator, via_host: bool) {
        if via_host {
            self.via_host.clone_from(&coordinator.via_host);
        }
        if self.default_route_nic.is_none() {
            self.default_route_nic
                .clone_from(&coordinator.default_route_nic);
        }
    }
}

fn addresses(
    object: &str,
    manifest: &SpiderMultusConfig,
    pools: &PoolNames,
) -> Result<Addresses, Invalid> {
    let annotations = manifest.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|all| all.get(ADDRESSES)) else {
        return Ok(Addresses::Pools);
    };
    let field = format!("metadata.annotations[{ADDRESSES}]");
    if text != Addresses::METADATA {
        let remedy = "use \"metadata\", or remove it for addresses of pools";
        let reason = "says of nothing known where the addresses come from";
        return Err(Invalid::new(object, field, text, reason, remedy));
    }
    let names = [&pools.ipv4, &pools.ipv6].into_iter().flatten().flatten();
    let names: Vec<&str> = names.map(String::as_str).collect();
    if !names.is_empty() {
        let reason = format!(
            "takes the addresses from the cloud's metadata, and spec.ipvlan.ippools names {}",
            names.join(", ")
        );
        let remedy = "keep the annotation or ippools, not both";
        return Err(Invalid::new(object, field, text, reason, remedy));
    }
    Ok(Addresses::Metadata)
}

fn answer_neighbours(object: &str, manifest: &SpiderMultusConfig) -> Result<bool, Invalid> {
    let annotations = manifest.metadata.annotations.as_ref();
    match annotations
        .and_then(|all| all.get(ANSWER_NEIGHBOURS))
        .map(String::as_str)
    {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            let field = format!("metadata.annotations[{ANSWER_NEIGHBOURS}]");
            let remedy = "use \"true\" or \"false\"";
            Err(Invalid::new(
                object,
                field,
                other,
                "is neither true nor false",
                remedy,
            ))
        }
    }
}

fn ipvlan_block<'a>(object: &str, spec: &'a MultusConfigSpec) -> Result<&'a IpvlanSpec, Invalid> {
    let cni_type = spec.cni_type.as_deref().unwrap_or("custom");
    if cni_type == "custom" {
        check_custom(object, spec)?;
    }
    if cni_type != "ipvlan" {
        let reason = "this agent makes ipvlan interfaces only";
        let remedy = "use cniType ipvlan, or chain the ebbtide plugin after that type's own in a CNI conflist";
        return Err(Invalid::new(
            object,
            "spec.cniType",
            cni_type,
            reason,
            remedy,
        ));
    }
    let others = [
        ("spec.macvlan", spec.macvlan.is_some()),
        ("spec.vlan", spec.vlan.is_some()),
        ("spec.sriov", spec.sriov.is_some()),
        ("spec.ibsriov", spec.ibsriov.is_some()),
        ("spec.ipoib", spec.ipoib.is_some()),
        ("spec.ovs", spec.ovs.is_some()),
        (
            "spec.customCNI",
            spec.custom_cni
                .as_deref()
                .is_some_and(|text| !text.is_empty()),
        ),
    ];
    if let Some((field, _)) = others.into_iter().find(|(_, present)| *present) {
        return Err(Invalid::new(
            object,
            field,
            "",
            "belongs to another cniType than ipvlan",
            "remove it",
        ));
    }
    if spec.disable_ipam == Some(true) {
        let reason = "a network without addresses is not supported yet";
        return Err(Invalid::new(
            object,
            "spec.disableIPAM",
            true,
            reason,
            "remove it",
        ));
    }
    spec.ipvlan.as_ref().ok_or_else(|| {
        Invalid::new(
            object,
            "spec.ipvlan",
            "",
            "is missing",
            "give the block with the master interface",
        )
    })
}

fn master(object: &str, ipvlan: &IpvlanSpec) -> Result<String, Invalid> {
    let field = "spec.ipvlan.master";
    let remedy = "name exactly one network interface of the node, as in [ens5]";
    match ipvlan.master.as_deref().unwrap_or_default() {
        [] => Err(Invalid::new(object, field, "", "is missing", remedy)),
        [master] if is_interface_name(master) => Ok(master.clone()),
        [master] => Err(Invalid::new(
            object,
            field,
            master,
            "is not an interface name",
            remedy,
        )),
        several => Err(Invalid::new(
            object,
            field,
            several.join(","),
            "several masters (a bond) are not supported yet",
            remedy,
        )),
    }
}

fn is_interface_name(text: &str) -> bool {
    name_fault(text).is_none()
}

/// Returns the interface of pods that is to keep the default route.
pub(super) fn default_route_nic(
    object: &str,
    field: &str,
    coordinator: &CoordinatorSpec,
) -> Result<Option<String>, Invalid> {
    match coordinator.pod_default_route_nic.as_deref() {
        None | Some("") => Ok(None),
        Some(nic) if is_interface_name(nic) => Ok(Some(nic.to_owned())),
        Some(nic) => Err(Invalid::new(
            object,
            field,
            nic,
            "is not an interface name",
            "name an interface of the pod, as in eth0 or net1",
        )),
    }
}

fn mode(object: &str, ipvlan: &IpvlanSpec) -> Result<IpvlanMode, Invalid> {
    let Some(text) = &ipvlan.mode else {
        return Ok(IpvlanMode::default());
    };
    text.parse().map_err(|()| {
        Invalid::new(
            object,
            "spec.ipvlan.mode",
            text,
            "is not an ipvlan mode",
            "use l3 (the default), l2 or l3s",
        )
    })
}

fn mtu(object: &str, ipvlan: &IpvlanSpec) -> Result<Option<u32>, Invalid> {
    let vlan = ipvlan.vlan_id.unwrap_or(0);
    if vlan != 0 {
        let remedy = "make the VLAN interface on the node and name it as the master";
        return Err(Invalid::new(
            object,
            "spec.ipvlan.vlanID",
            vlan,
            "a VLAN below the master is not supported yet",
            remedy,
        ));
    }
    if ipvlan.bond.is_some() {
        let remedy = "make the bond on the node and name it as the master";
        return Err(Invalid::new(
            object,
            "spec.ipvlan.bond",
            "",
            "is not supported yet",
            remedy,
        ));
    }
    match ipvlan.mtu.unwrap_or(0) {
        0 => Ok(None),
        // 68 is the minimum of IPv4 (RFC 791), 65535 the maximum of ipvlan devices.
        mtu @ 68..=65535 => Ok(u32::try_from(mtu).ok()),
        mtu => Err(Invalid::new(
            object,
            "spec.ipvlan.mtu",
            mtu,
            "is not between 68 and 65535",
            "correct it, or 0 for the master's",
        )),
    }
}

fn coordinator_wanted(object: &str, coordinator: &CoordinatorSpec) -> Result<bool, Invalid> {
    match coordinator.mode.as_deref().unwrap_or("auto") {
        // Whether another plugin's interface exists is detected in the pod.
        "" | "auto" | "underlay" | "overlay" => Ok(true),
        "disabled" | "disable" => Ok(false),
        other => Err(Invalid::new(
            object,
            "spec.coordinator.mode",
            other,
            "is no mode",
            "use auto, underlay, overlay or disabled",
        )),
    }
}
