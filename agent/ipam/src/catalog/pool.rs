//! A validated address pool.

use std::{collections::BTreeSet, net::IpAddr};

use ebbtide_types::is_name;
use ebbtide_types::{Family, NetworkRef};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    AddressSet, AddressSetError, Invalid, Reserved,
    address::{is_unicast, never_assigned, unusable},
    manifest::{IpPoolSpec, LabelSelector, RouteSpec, SpiderIpPool},
    prefix,
};

/// A valid pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name, unique in a catalog.
    pub name: String,
    /// The family of all its addresses.
    pub family: Family,
    /// The prefix whose length the pods' addresses get, without host bits.
    pub subnet: IpNet,
    /// The addresses to hand out: `ips` without `excludeIPs`, the network and the broadcast address
    /// (IPv4, below /31) or the subnet-router anycast address (IPv6, below /127; RFC 4291, 2.6.1).
    /// Never contains the gateway or an address of a SpiderReservedIP.
    pub ranges: AddressSet,
    /// The addresses that only SpiderReservedIPs exclude.
    pub reserved: AddressSet,
    /// All addresses that it may hand out on any node: `ranges`, and those that other nodes have leased.
    pub declared: AddressSet,
    /// The default route's gateway. Not always in the subnet: IPv6 link-local, or another subnet's
    /// where the provider routes the pool's block to the NIC.
    pub gateway: Option<IpAddr>,
    /// Additional routes on the pod's interface, each gateway in the subnet or the pool's own.
    pub routes: Vec<Route>,
    /// The nodes that it is for; empty: any.
    pub node_names: Vec<String>,
    /// The networks that it is for (`multusName`); empty: any.
    pub networks: Vec<NetworkRef>,
    /// Whether it is used where nothing names a pool.
    pub default: bool,
    /// Whether it hands out no new addresses.
    pub disabled: bool,
    /// Its other conditions.
    pub affinities: Affinities,
    /// Who made it.
    pub source: PoolSource,
}

/// Who made a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PoolSource {
    /// A person: it is a SpiderIPPool.
    #[default]
    Declared,
    /// This agent, of what the cloud has assigned to a NIC of this node. It serves only requests for addresses of that
    /// NIC's metadata.
    Derived {
        /// The NIC's name on this node.
        link: String,
        /// Where the agent has it from, as in `AWS eni-0a1b2c3d`.
        from: String,
    },
}

/// A route through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The next hop.
    pub gateway: IpAddr,
}

/// A pool's conditions on labels and namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affinities {
    /// Labels of the pod.
    pub pod: Option<LabelSelector>,
    /// Names of the pod's namespace; wins over `namespace`.
    pub namespace_names: Vec<String>,
    /// Labels of the pod's namespace.
    pub namespace: Option<LabelSelector>,
    /// Labels of the node; the pool's `node_names` win over it.
    pub node: Option<LabelSelector>,
}

impl Pool {
    /// Validates a manifest by the rules for a single pool (the catalog checks those between pools).
    ///
    /// # Errors
    /// [`Invalid`] with the first rule that it breaks.
    pub fn from_manifest(manifest: &SpiderIpPool) -> Result<Self, Invalid> {
        let name = manifest.metadata.name.as_deref().unwrap_or_default();
        let object = format!("SpiderIPPool {name}");
        let spec = &manifest.spec;
        if !is_name(name) {
            return Err(Invalid::new(
                "SpiderIPPool",
                "metadata.name",
                name,
                "is missing or not a name",
                "name the pool with letters, digits, '-' and '.'",
            ));
        }
        let check = Check {
            object: &object,
            spec,
        };
        let subnet = check.subnet()?;
        let family = check.family(&subnet)?;
        let effective = check.effective_addresses(family, &subnet)?;
        let gateway = check.gateway(&subnet, &effective)?;
        check.names("spec.nodeName", spec.node_name.as_deref())?;
        check.names("spec.namespaceName", spec.namespace_name.as_deref())?;
        let ranges = effective.without(&never_assigned(&subnet));
        Ok(Self {
            gateway,
            routes: check.routes(&subnet, gateway)?,
            networks: check.networks()?,
            affinities: check.affinities()?,
            name: name.to_owned(),
            family,
            subnet,
            reserved: AddressSet::empty(family),
            declared: ranges.clone(),
            ranges,
            node_names: spec.node_name.clone().unwrap_or_default(),
            default: spec.default.unwrap_or(false),
            // A pool that is being deleted waits for its last pod.
            disabled: spec.disable.unwrap_or(false)
                || manifest.metadata.deletion_timestamp.is_some(),
            source: PoolSource::Declared,
        })
    }
}

impl Pool {
    /// Whether nodes share it, each with a lease of its own: it is not for exactly one node.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.node_names.len() != 1
    }

    /// Returns the NIC of whose metadata it was derived.
    #[must_use]
    pub fn derived_of(&self) -> Option<&str> {
        match &self.source {
            PoolSource::Declared => None,
            PoolSource::Derived { link, .. } => Some(link),
        }
    }

    /// Returns the pool restricted to the leased addresses: nodes that share a pool lease ranges of it.
    #[must_use]
    pub fn limited_to(&self, leased: &AddressSet) -> Self {
        let common = |set: &AddressSet| set.without(&set.without(leased));
        Self {
            ranges: common(&self.ranges),
            reserved: common(&self.reserved),
            ..self.clone()
        }
    }

    /// Excludes the reserved addresses.
    pub(super) fn keep_free(&mut self, reserved: &[Reserved]) {
        let ours = reserved.iter().map(|reserved| &reserved.addresses);
        let ours = ours.filter(|addresses| addresses.family() == self.family);
        let ours = AddressSet::union_of(self.family, ours);
        let kept = self.ranges.without(&ours);
        self.reserved = self.reserved.union(&self.ranges.without(&kept));
        self.declared = kept.clone();
        self.ranges = kept;
    }
}

/// The validation rules, one per method.
struct Check<'a> {
    object: &'a str,
    spec: &'a IpPoolSpec,
}

impl Check<'_> {
    fn invalid(
        &self,
        field: impl Into<String>,
        value: impl ToString,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Invalid {
        Invalid::new(self.object, field, value, reason, remedy)
    }

    fn subnet(&self) -> Result<IpNet, Invalid> {
        let field = "spec.subnet";
        let remedy = "write the subnet as address/length, as in 172.31.16.0/20";
        let Some(text) = &self.spec.subnet else {
            return Err(self.invalid(field, "", "is missing", remedy));
        };
        let subnet =
            prefix(text).ok_or_else(|| self.invalid(field, text, "is not a prefix", remedy))?;
        // An interface's address, as in 10.0.0.1/24, stands for its subnet.
        let subnet = subnet.trunc();
        // What a wider subnet hands out is checked separately.
        match unusable(&AddressSet::of_net(&subnet)) {
            Some((block, what)) if block.contains(&subnet) => {
                Err(self.no_pods(field, text, block, what))
            }
            _ => Ok(subnet),
        }
    }

    fn family(&self, subnet: &IpNet) -> Result<Family, Invalid> {
        let family = Family::of_net(subnet);
        let remedy = "set 4 or 6 as the subnet has it, or leave it out";
        match (self.spec.ip_version, family) {
            (None, _) | (Some(4), Family::V4) | (Some(6), Family::V6) => Ok(family),
            (Some(version @ (4 | 6)), _) => Err(self.invalid(
                "spec.ipVersion",
                version,
                format!("the subnet {subnet} is {family}"),
                remedy,
            )),
            (Some(version), _) => {
                Err(self.invalid("spec.ipVersion", version, "is neither 4 nor 6", remedy))
            }
        }
    }

    fn effective_addresses(&self, family: Family, subnet: &IpNet) -> Result<AddressSet, Invalid> {
        let included = self.addresses("spec.ips", self.spec.ips.as_deref(), family, subnet)?;
        let excluded = self.addresses(
            "spec.excludeIPs",
            self.spec.exclude_ips.as_deref(),
            family,
            subnet,
        )?;
        Ok(included.without(&excluded))
    }

    /// Returns the error for addresses that no pod can have.
    fn no_pods(&self, field: &str, text: &str, block: IpNet, what: &str) -> Invalid {
        let reason = format!("has addresses that no pod can have: {block} is {what}");
        self.invalid(
            field,
            text,
            reason,
            "use addresses of the network that the NIC is in",
        )
    }

    fn addresses(
        &self,
        name: &str,
        texts: Option<&[String]>,
        family: Family,
        subnet: &IpNet,
    ) -> Result<AddressSet, Invalid> {
        let mut all = Vec::new();
        for (position, text) in texts.unwrap_or_default().iter().enumerate() {
            let field = || format!("{name}[{position}]");
            let set = AddressSet::parse(text, family).map_err(|error| {
                let remedy = match error {
                    AddressSetError::Malformed => {
                        "write an address or a range as in 172.31.16.4-172.31.16.8"
                    }
                    AddressSetError::Family(_) => "use addresses of the subnet's family",
                    AddressSetError::Backwards => "exchange its ends",
                };
                self.invalid(field(), text, error.to_string(), remedy)
            })?;
            if !set.is_inside(subnet) {
                let reason = format!("is not inside the subnet {subnet}");
                return Err(self.invalid(
                    field(),
                    text,
                    reason,
                    "use addresses of the subnet, or correct the subnet",
                ));
            }
            // Excluding such addresses does no harm.
            if let Some((block, what)) = unusable(&set)
                && name == "spec.ips"
            {
                return Err(self.no_pods(&field(), text, block, what));
            }
            all.push(set);
        }
        Ok(AddressSet::union_of(family, &all))
    }

    fn gateway(&self, subnet: &IpNet, effective: &AddressSet) -> Result<Option<IpAddr>, Invalid> {
        let field = "spec.gateway";
        let given = self.spec.gateway.as_deref().filter(|text| !text.is_empty());
        let Some(text) = given else {
            return Ok(None);
        };
        let gateway: IpAddr = text.parse().map_err(|_| {
            self.invalid(
                field,
                text,
                "is not an address",
                "write an address of the subnet, as in 172.31.16.1",
            )
        })?;
        let family = Family::of_net(subnet);
        if Family::of(gateway) != family {
            return Err(self.invalid(
                field,
                text,
                format!("is not {family} as the subnet is"),
                "use a gateway of that family",
            ));
        }
        // It may be outside of the subnet: some providers route a block to a NIC whose gateway is in
        // another subnet, and clouds announce IPv6 routers by their link-local address (RFC 4861, 4.2).
        if !is_unicast(gateway) {
            let reason = "is no address that a router can have";
            return Err(self.invalid(field, text, reason, "use the subnet's gateway"));
        }
        let hosts = matches!(subnet, IpNet::V4(v4) if v4.prefix_len() < 31);
        if hosts && never_assigned(subnet).contains(gateway) {
            let reason = format!("is the network's or the broadcast address of {subnet}");
            return Err(self.invalid(field, text, reason, "use the subnet's gateway"));
        }
        if effective.contains(gateway) {
            let reason = "is among the addresses to hand out";
            return Err(self.invalid(field, text, reason, "put it into spec.excludeIPs"));
        }
        Ok(Some(gateway))
    }

    fn routes(&self, subnet: &IpNet, own: Option<IpAddr>) -> Result<Vec<Route>, Invalid> {
        let mut seen = BTreeSet::new();
        let routes = self.spec.routes.as_deref().unwrap_or_default();
        routes
            .iter()
            .enumerate()
            .map(|(position, route)| {
                let route = self.route(position, route, subnet, own)?;
                if !seen.insert(route.dst) {
                    let reason = "is the destination of an earlier route too";
                    return Err(self.invalid(
                        format!("spec.routes[{position}].dst"),
                        route.dst,
                        reason,
                        "remove one of them",
                    ));
                }
                Ok(route)
            })
            .collect()
    }

    fn route(
        &self,
        position: usize,
        route: &RouteSpec,
        subnet: &IpNet,
        own: Option<IpAddr>,
    ) -> Result<Route, Invalid> {
        let family = Family::of_net(subnet);
        let (dst_field, gw_field) = (
            format!("spec.routes[{position}].dst"),
            format!("spec.routes[{position}].gw"),
        );
        let dst = prefix(&route.dst).ok_or_else(|| {
            self.invalid(
                &dst_field,
                &route.dst,
                "is not a prefix",
                "write it as address/length, as in 10.0.0.0/8",
            )
        })?;
        if Family::of_net(&dst) != family {
            return Err(self.invalid(
                dst_field,
                &route.dst,
                format!("is not {family} as the subnet is"),
                "use a pool of that family",
            ));
        }
        if dst.prefix_len() == 0 {
            return Err(self.invalid(
                dst_field,
                &route.dst,
                "is the default route",
                "use spec.gateway for it",
            ));
        }
        let gateway: IpAddr = route.gw.parse().map_err(|_| {
            self.invalid(
                &gw_field,
                &route.gw,
                "is not an address",
                "write an address of the subnet",
            )
        })?;
        if !subnet.contains(&gateway) && own != Some(gateway) {
            return Err(self.invalid(
                gw_field,
                &route.gw,
                format!("is not inside the subnet {subnet}, nor the pool's gateway"),
                "use a gateway in the subnet, or spec.gateway",
            ));
        }
        // The kernel ignores bits beyond the prefix length, but they would hide a duplicate.
        Ok(Route {
            dst: dst.trunc(),
            gateway,
        })
    }

    /// Checks that no name is empty: such a pool would match nothing.
    fn names(&self, field: &str, names: Option<&[String]>) -> Result<(), Invalid> {
        let names = names.unwrap_or_default();
        match names.iter().position(String::is_empty) {
            None => Ok(()),
            Some(position) => Err(self.invalid(
                format!("{field}[{position}]"),
                "",
                "is empty",
                "write a name, or leave the field out",
            )),
        }
    }

    fn networks(&self) -> Result<Vec<NetworkRef>, Invalid> {
        let names = self.spec.multus_name.as_deref().unwrap_or_default();
        names
            .iter()
            .enumerate()
            .map(|(position, text)| {
                text.parse().map_err(|_| {
                    let field = format!("spec.multusName[{position}]");
                    self.invalid(
                        field,
                        text,
                        "is not a network's name",
                        "write \"namespace/name\" or \"name\"",
                    )
                })
            })
            .collect()
    }

    fn affinities(&self) -> Result<Affinities, Invalid> {
        let selectors = [
            ("spec.podAffinity", &self.spec.pod_affinity),
            ("spec.namespaceAffinity", &self.spec.namespace_affinity),
            ("spec.nodeAffinity", &self.spec.node_affinity),
        ];
        for (field, selector) in selectors {
            let Some(selector) = selector else { continue };
            // An empty podAffinity is most likely a mistake; Spiderpool refuses it, too.
            let empty = (field == "spec.podAffinity" && selector.is_empty())
                .then(|| (String::new(), "is empty"));
            if let Some((place, reason)) = empty.or_else(|| selector.fault()) {
                return Err(self.invalid(
                    format!("{field}{place}"),
                    "",
                    reason,
                    "write matchLabels or matchExpressions as Kubernetes has them, or leave the selector out",
                ));
            }
        }
        // A selector without conditions matches everything, also unknown labels.
        let said = |selector: &Option<LabelSelector>| {
            let selector = selector.clone();
            selector.filter(|selector| !selector.is_empty())
        };
        Ok(Affinities {
            pod: self.spec.pod_affinity.clone(),
            namespace_names: self.spec.namespace_name.clone().unwrap_or_default(),
            namespace: said(&self.spec.namespace_affinity),
            node: said(&self.spec.node_affinity),
        })
    }
}
