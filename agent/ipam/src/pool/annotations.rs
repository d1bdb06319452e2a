//! Parses the annotations of a pod and its namespace into requested pools and routes. Pure.
//!
//! The first source that exists wins and there is no fall-through, as with Spiderpool: the pod's
//! `ippools`, the pod's `ippool`, the namespace's defaults.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_types::{Family, glob::is_name_or_glob};
use serde::{Deserialize, de::DeserializeOwned};

use super::{BadAnnotation, Source, Subject};
use crate::catalog::{Route, prefix};

const IPPOOLS: &str = "ipam.spidernet.io/ippools";
const IPPOOL: &str = "ipam.spidernet.io/ippool";
const ROUTES: &str = "ipam.spidernet.io/routes";
const DEFAULT_IPV4: &str = "ipam.spidernet.io/default-ipv4-ippool";
const DEFAULT_IPV6: &str = "ipam.spidernet.io/default-ipv6-ippool";
/// Annotations whose pools a controller would have to create. To ignore them would give the pod other addresses.
const UNSUPPORTED: [&str; 2] = ["ipam.spidernet.io/subnet", "ipam.spidernet.io/subnets"];

/// Pools by name or pattern, in order of preference.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Names {
    ipv4: Option<Vec<String>>,
    ipv6: Option<Vec<String>>,
    /// All other keys: if they name pools, these must not be ignored.
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// One interface of the `ippools` annotation.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ForInterface {
    interface: Option<String>,
    #[serde(flatten)]
    names: Names,
    cleangateway: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct RouteText {
    dst: String,
    gw: String,
}

/// What the annotations request for one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Requested {
    pools: Option<(&'static str, Vec<String>, Vec<String>)>,
    /// Whether to leave out the default route through the pool's gateway.
    pub(super) clean_gateway: bool,
    /// Additional routes; each belongs to the interface whose subnet contains its gateway.
    pub(super) routes: Vec<Route>,
}

impl Requested {
    /// Parses the annotations that concern `interface`.
    pub(super) fn read(subject: &Subject, interface: &str) -> Result<Self, BadAnnotation> {
        let pod = Annotations {
            object: "pod",
            name: &subject.pod.name,
            all: &subject.pod.annotations,
        };
        let namespace = Annotations {
            object: "namespace",
            name: &subject.namespace.name,
            all: &subject.namespace.annotations,
        };
        if let Some(name) = UNSUPPORTED
            .into_iter()
            .find(|name| pod.text(name).is_some())
        {
            return Err(pod.bad(
                name,
                "is not supported: this agent makes no pools",
                "name pools with ipam.spidernet.io/ippool instead",
            ));
        }
        let mut requested = Self {
            routes: pod.routes()?,
            ..Self::default()
        };
        if let Some(list) = pod.parse::<Vec<ForInterface>>(IPPOOLS, "a list")? {
            let mine = pod.of_interface(list, interface)?;
            requested.clean_gateway = mine.cleangateway;
            requested.pools = Some(pod.names(IPPOOLS, mine.names)?);
        } else if let Some(names) = pod.parse::<Names>(IPPOOL, "an object")? {
            let named = names.others.get("interface").and_then(|name| name.as_str());
            if named.is_some_and(|name| !name.is_empty() && name != interface) {
                return Err(pod.bad(
                    IPPOOL,
                    format!("is for another interface than {interface}"),
                    "name pools for each interface with ipam.spidernet.io/ippools",
                ));
            }
            requested.pools = Some(pod.names(IPPOOL, names)?);
        } else {
            let ipv4 = namespace.parse::<Vec<String>>(DEFAULT_IPV4, "a list of names")?;
            let ipv6 = namespace.parse::<Vec<String>>(DEFAULT_IPV6, "a list of names")?;
            let origin = match (&ipv4, &ipv6) {
                (None, None) => return Ok(requested),
                (Some(_), _) => DEFAULT_IPV4,
                (None, Some(_)) => DEFAULT_IPV6,
            };
            let names = Names {
                ipv4,
                ipv6,
                others: BTreeMap::new(),
            };
            requested.pools = Some(namespace.names(origin, names)?);
        }
        Ok(requested)
    }

    /// Whether the pools are those of the namespace, for networks that say nothing of their addresses.
    pub(super) fn is_of_namespace(&self) -> bool {
        let origin = self.pools.as_ref().map(|(origin, ..)| *origin);
        matches!(origin, Some(DEFAULT_IPV4 | DEFAULT_IPV6))
    }

    /// Returns the annotation that names pools, and these pools.
    pub(super) fn source(&self) -> Option<(&'static str, Source<'_>)> {
        let (origin, ipv4, ipv6) = self.pools.as_ref()?;
        Some((origin, Source::Named { ipv4, ipv6 }))
    }
}

struct Annotations<'a> {
    object: &'static str,
    name: &'a str,
    all: &'a BTreeMap<String, String>,
}

impl Annotations<'_> {
    /// Returns the annotation's text. An empty one counts as absent.
    fn text(&self, annotation: &str) -> Option<&str> {
        let text = self.all.get(annotation)?.trim();
        (!text.is_empty()).then_some(text)
    }

    fn bad(
        &self,
        annotation: &'static str,
        reason: impl Into<String>,
        remedy: &'static str,
    ) -> BadAnnotation {
        BadAnnotation {
            object: format!("{} {}", self.object, self.name)
                .trim_end()
                .to_owned(),
            annotation,
            value: self.text(annotation).unwrap_or_default().to_owned(),
            reason: reason.into(),
            remedy,
        }
    }

    fn parse<T: DeserializeOwned>(
        &self,
        annotation: &'static str,
        shape: &str,
    ) -> Result<Option<T>, BadAnnotation> {
        let Some(text) = self.text(annotation) else {
            return Ok(None);
        };
        serde_json::from_str(text).map(Some).map_err(|error| {
            self.bad(
                annotation,
                format!("is not {shape} in JSON: {error}"),
                "write it as Spiderpool's documentation has it",
            )
        })
    }

    /// Returns the item of one interface. Items without names are for eth0, net1, net2...
    fn of_interface(
        &self,
        list: Vec<ForInterface>,
        interface: &str,
    ) -> Result<ForInterface, BadAnnotation> {
        let unnamed = |each: &ForInterface| each.interface.as_deref().is_none_or(str::is_empty);
        let bad = |reason: String, remedy| Err(self.bad(IPPOOLS, reason, remedy));
        let by_position = list.iter().all(unnamed);
        if !by_position && list.iter().any(unnamed) {
            return bad(
                "names the interface of some items and not of others".into(),
                "name all interfaces, or none: then they are eth0, net1, net2 and so on",
            );
        }
        let mut seen = BTreeSet::new();
        let mut mine = None;
        for (position, each) in list.into_iter().enumerate() {
            let name = match each.interface.clone() {
                Some(name) if !by_position => name,
                _ if position == 0 => "eth0".to_owned(),
                _ => format!("net{position}"),
            };
            if !seen.insert(name.clone()) {
                return bad(
                    format!("names interface {name} twice"),
                    "write one item for each interface",
                );
            }
            if name == interface {
                mine = Some(each);
            }
        }
        let known: Vec<String> = seen.into_iter().collect();
        mine.map_or_else(
            || {
                bad(
                    format!(
                        "says nothing of interface {interface}, only of {}",
                        if known.is_empty() {
                            "none".into()
                        } else {
                            known.join(", ")
                        }
                    ),
                    "add an item for the interface, or remove the annotation",
                )
            },
            Ok,
        )
    }

    fn names(
        &self,
        annotation: &'static str,
        names: Names,
    ) -> Result<(&'static str, Vec<String>, Vec<String>), BadAnnotation> {
        let (ipv4, ipv6) = (
            names.ipv4.unwrap_or_default(),
            names.ipv6.unwrap_or_default(),
        );
        // Spiderpool's first releases spelled it `ipv4pools`.
        let pools = |name: &&String| {
            let name = name.to_lowercase();
            name.contains("pool") || name.contains("ipv")
        };
        if let Some(other) = names.others.keys().find(pools) {
            return Err(self.bad(
                annotation,
                format!("{other:?} seems to name pools, but is not known"),
                "write the pools as \"ipv4\" and \"ipv6\"",
            ));
        }
        if ipv4.is_empty() && ipv6.is_empty() {
            return Err(self.bad(
                annotation,
                "names no pool",
                "name pools of at least one family, or remove it",
            ));
        }
        match ipv4.iter().chain(&ipv6).find(|name| !is_name_or_glob(name)) {
            Some(name) => Err(self.bad(
                annotation,
                format!("{name:?} is neither a pool's name nor a pattern"),
                "name a SpiderIPPool, or several by a pattern as in \"worker1-*\"",
            )),
            None => Ok((annotation, ipv4, ipv6)),
        }
    }

    fn routes(&self) -> Result<Vec<Route>, BadAnnotation> {
        let texts: Vec<RouteText> = self.parse(ROUTES, "a list of routes")?.unwrap_or_default();
        let mut routes: Vec<Route> = Vec::new();
        for text in texts {
            let read = || Some((prefix(&text.dst)?, text.gw.parse::<IpAddr>().ok()?));
            let Some((dst, gateway)) = read() else {
                return Err(self.bad(
                    ROUTES,
                    format!(
                        "{} via {} is not a prefix and an address",
                        text.dst, text.gw
                    ),
                    "write [{\"dst\": \"10.0.0.0/16\", \"gw\": \"172.31.16.1\"}]",
                ));
            };
            if Family::of_net(&dst) != Family::of(gateway) {
                return Err(self.bad(
                    ROUTES,
                    format!("{dst} via {gateway} mixes the families"),
                    "give a gateway of the destination's family",
                ));
            }
            let dst = dst.trunc();
            if routes.iter().any(|route| route.dst == dst) {
                return Err(self.bad(
                    ROUTES,
                    format!("has two routes to {dst}"),
                    "remove one of them",
                ));
            }
            routes.push(Route { dst, gateway });
        }
        Ok(routes)
    }
}
