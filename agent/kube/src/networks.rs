//! Parses the annotations with which a pod requests networks. Pure.
//!
//! The forms are those of the Network Plumbing Working Group's specification (v1.3, section 4.1) and of Multus'
//! default-network annotation. A network without a namespace is in the pod's own, as in the specification. In the
//! default-network annotation it is in the administrator's, as with Multus, which has one namespace for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebbtide_ipam::{catalog::host_address, pool::Object};
use ebbtide_plugin::object::Object as JsonObject;
use ebbtide_types::{NetworkRef, ObjectName, link_name::name_fault, printable::truncated};
use serde::Deserialize;
use serde_json::Value;

/// The annotation with the network of the pod's first interface, in place of the cluster's default.
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
/// The annotation with further networks, an interface each.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// The annotation with the interface that keeps the pod's default route.
pub const DEFAULT_ROUTE_NIC: &str = "ipam.spidernet.io/default-route-nic";

/// One requested interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The network. Without a namespace, it is in the administrator's.
    pub network: NetworkRef,
    /// Whether it is the cluster's default, not the pod's request.
    pub is_default: bool,
    /// The interface in the pod.
    pub interface: String,
    /// Its requested addresses.
    pub ips: Vec<IpAddr>,
    /// Gateways of the default route, if it is to use this interface.
    pub default_route: Vec<IpAddr>,
}

/// All requested interfaces of a pod, the runtime's own first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedNetworks {
    /// In the order in which they are created.
    pub interfaces: Vec<Wanted>,
    /// The interface that keeps the default route, if the pod names one.
    pub default_route_nic: Option<String>,
    /// Requested settings without effect, each as a sentence.
    pub without_effect: Vec<String>,
}

/// An invalid request for networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworksError {
    /// An annotation is malformed.
    #[error("annotation {annotation} of pod {pod} is {value:?}: {reason}; {remedy}")]
    Annotation {
        /// The annotation.
        annotation: &'static str,
        /// The pod, as `namespace/name`.
        pod: String,
        /// Its text.
        value: String,
        /// What is wrong.
        reason: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// No source names a network.
    #[error(
        "the CNI configuration names neither `network` nor `master`{}, and the agent has no default \
         (--default-network)",
        of_pod(.pod)
    )]
    NoDefault {
        /// The pod, as `namespace/name`.
        pod: String,
    },
}

/// Says that the pod names no network either; a container that is of no pod could not.
fn of_pod(pod: &str) -> String {
    match pod {
        "" | "/" => String::new(),
        pod => format!(", pod {pod} names no network in its annotation {DEFAULT_NETWORK}"),
    }
}

/// A network selection element in its JSON form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Element {
    name: String,
    namespace: Option<String>,
    interface: Option<String>,
    ips: Option<Vec<String>>,
    mac: Option<String>,
    #[serde(rename = "default-route")]
    default_route: Option<Vec<IpAddr>>,
    /// `bandwidth`, `portMappings`, `cni-args` and other keys, for plugins that are not in use.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Parses the networks that the pod requests. `first` is the interface that the runtime requests,
/// `default` the cluster's default network.
///
/// # Errors
/// [`NetworksError`] if an annotation is malformed, or no source names a network.
pub fn wanted(
    pod: &ObjectName,
    object: &Object,
    first: &str,
    default: Option<&NetworkRef>,
) -> Result<WantedNetworks, NetworksError> {
    let text = |annotation: &str| {
        let text = object.annotations.get(annotation)?.trim();
        (!text.is_empty()).then_some(text)
    };
    let mut without_effect = Vec::new();
    let mut interfaces = vec![match text(DEFAULT_NETWORK) {
        Some(text) => {
            let bad = |reason: &str| bad(DEFAULT_NETWORK, pod, text, reason);
            let mut elements = elements(text).map_err(|reason| bad(&reason))?;
            match (elements.pop(), elements.is_empty()) {
                (Some(element), true) => {
                    let name = element.interface.clone();
                    if name.is_some_and(|name| name != first) {
                        return Err(bad(
                            "the first interface has the name that the runtime gives it",
                        ));
                    }
                    without_effect.extend(element.without_effect(DEFAULT_NETWORK));
                    element.wanted(first, None).map_err(|reason| bad(&reason))?
                }
                _ => return Err(bad("must name exactly one network")),
            }
        }
        None => Wanted {
            network: default
                .ok_or_else(|| NetworksError::NoDefault {
                    pod: pod.to_string(),
                })?
                .clone(),
            is_default: true,
            interface: first.to_owned(),
            ips: Vec::new(),
            default_route: Vec::new(),
        },
    }];
    if let Some(text) = text(NETWORKS) {
        let bad = |reason: String| bad(NETWORKS, pod, text, &reason);
        for (position, element) in elements(text).map_err(bad)?.into_iter().enumerate() {
            without_effect.extend(element.without_effect(NETWORKS));
            let interface = format!("net{}", position + 1);
            let wanted = element
                .wanted(&interface, Some(&pod.namespace))
                .map_err(bad)?;
            interfaces.push(wanted);
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = interfaces.iter().find(|each| !seen.insert(&each.interface)) {
            return Err(bad(format!(
                "two interfaces are called {}",
                twice.interface
            )));
        }
    }
    let by_gateway = interfaces
        .iter()
        .find(|each| !each.default_route.is_empty())
        .map(|each| each.interface.clone());
    Ok(WantedNetworks {
        default_route_nic: by_gateway.or_else(|| text(DEFAULT_ROUTE_NIC).map(str::to_owned)),
        interfaces,
        without_effect,
    })
}

fn bad(annotation: &'static str, pod: &ObjectName, value: &str, reason: &str) -> NetworksError {
    NetworksError::Annotation {
        annotation,
        pod: pod.to_string(),
        value: truncated(value, 200).into_owned(),
        reason: reason.to_owned(),
        remedy: "write NAMESPACE/NAME@INTERFACE, several with commas between, or the JSON list of the specification",
    }
}

/// The maximum number of networks in one annotation. Each is a link, addresses, routes and rules.
const MAX_NETWORKS: usize = 64;

/// Parses the elements of a text: JSON if it looks like it, else names separated by commas.
fn elements(text: &str) -> Result<Vec<Element>, String> {
    let elements = each_element(text)?;
    match elements.len() > MAX_NETWORKS {
        true => Err(format!(
            "names more than {MAX_NETWORKS} networks: give the pod fewer, or spread its work over several pods"
        )),
        false => Ok(elements),
    }
}

fn each_element(text: &str) -> Result<Vec<Element>, String> {
    if text.starts_with(['[', '{', '"']) {
        let read: Result<Vec<JsonObject<Element>>, _> = serde_json::from_str(text);
        let elements = read.map_err(|error| format!("is not the JSON list: {error}"))?;
        return Ok(elements
            .into_iter()
            .map(|JsonObject(element)| element)
            .collect());
    }
    let names = text.split(',').take(MAX_NETWORKS + 1);
    names.map(str::trim).map(short).collect()
}

/// Parses `namespace/name@interface`, all but the name optional.
fn short(text: &str) -> Result<Element, String> {
    let (rest, interface) = match text.split_once('@') {
        Some((rest, interface)) => (rest, Some(interface.to_owned())),
        None => (text, None),
    };
    let (namespace, name) = match rest.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, rest),
    };
    Ok(Element {
        name: name.to_owned(),
        namespace,
        interface,
        ..Element::default()
    })
}

impl Element {
    fn without_effect(&self, annotation: &str) -> Option<String> {
        let says = |value: &Value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        };
        let keys = self.rest.iter().filter(|(_, value)| says(value));
        let keys: Vec<&str> = keys.map(|(key, _)| key.as_str()).collect();
        (!keys.is_empty()).then(|| {
            format!(
                "{} of network {} in annotation {annotation} has no effect: no plugin of others is called for this \
                 network; remove it, or put Multus in front of ebbtide with a plugin that serves it",
                keys.join(", "),
                self.name
            )
        })
    }

    fn wanted(self, interface: &str, namespace: Option<&str>) -> Result<Wanted, String> {
        if self.mac.is_some_and(|mac| !mac.is_empty()) {
            return Err("asks for a MAC address, but an ipvlan interface has its NIC's".into());
        }
        let own = self.namespace.filter(|text| !text.is_empty());
        let namespace = own.or_else(|| namespace.map(str::to_owned));
        let full = match &namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name,
        };
        let interface = self
            .interface
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| interface.to_owned());
        if let Some(fault) = name_fault(&interface) {
            return Err(format!("{interface:?} {fault}"));
        }
        let ips = self.ips.unwrap_or_default();
        Ok(Wanted {
            network: full
                .parse()
                .map_err(|error: ebbtide_types::NameError| error.to_string())?,
            is_default: false,
            interface,
            ips: ips
                .iter()
                .map(|text| host_address(text).ok_or_else(|| format!("{text:?} is not an address")))
                .collect::<Result<_, _>>()?,
            default_route: self.default_route.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)]) -> Result<WantedNetworks, NetworksError> {
        let pod = ObjectName {
            namespace: "shop".into(),
            name: "web".into(),
        };
        let object = Object {
            annotations: annotations
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..Object::named("web")
        };
        wanted(&pod, &object, "eth0", Some(&"ipvlan-ens5".parse().unwrap()))
    }

    #[test]
    fn without_a_pod_nothing_is_said_of_annotations() {
        for (pod, is_of_a_pod) in [("shop/web", true), ("/", false)] {
            let pod = pod.to_owned();
            let said = NetworksError::NoDefault { pod }.to_string();
            assert_eq!(
                said.contains("pod shop/web names no network"),
                is_of_a_pod,
                "{said}"
            );
            assert_eq!(said.contains("annotation"), is_of_a_pod, "{said}");
            assert!(said.contains("--default-network"), "{said}");
        }
    }

    /// Formats each as `interface=network`.
    fn shown(wanted: &WantedNetworks) -> Vec<String> {
        let shown = wanted.interfaces.iter();
        shown
            .map(|each| format!("{}={}", each.interface, each.network))
            .collect()
    }

    #[test]
    fn an_annotation_has_a_bound_in_length_and_depth() {
        let names = |count: usize| {
            let names: Vec<String> = (0..count).map(|number| format!("a/n{number}")).collect();
            names.join(",")
        };
        let list = |count: usize| {
            let each: Vec<String> = (0..count)
                .map(|number| format!(r#"{{"name":"n{number}"}}"#))
                .collect();
            format!("[{}]", each.join(","))
        };
        for text in [names(64), list(64)] {
            assert_eq!(read(&[(NETWORKS, &text)]).unwrap().interfaces.len(), 65);
        }
        for text in [names(65), list(65), names(50_000), list(10_000)] {
            let refused = read(&[(NETWORKS, &text)]).unwrap_err().to_string();
            assert!(refused.contains("more than 64 networks"), "{refused}");
        }
        for text in [
            "[".repeat(40_000),
            r#"[{"name":"a","rest":"#.to_owned() + &"[".repeat(40_000),
        ] {
            let refused = read(&[(NETWORKS, &text)]).unwrap_err().to_string();
            assert!(refused.contains("JSON"), "{}", &refused[..200]);
        }
    }

    #[test]
    fn the_default_network_is_the_clusters_unless_the_pod_names_one() {
        for (text, expected) in [
            ("", "eth0=ipvlan-ens5"),
            ("default/ipvlan-ens6", "eth0=default/ipvlan-ens6"),
            ("ipvlan-ens6", "eth0=ipvlan-ens6"),
            ("ipvlan-ens6@eth0", "eth0=ipvlan-ens6"),
            (r#"[{"name":"a","namespace":"b"}]"#, "eth0=b/a"),
        ] {
            let wanted = read(&[(DEFAULT_NETWORK, text)]).unwrap();
            assert_eq!(shown(&wanted), [expected], "{text}");
        }
    }

    #[test]
    fn more_networks_in_every_form() {
        for (text, expected) in [
            ("a", &["net1=shop/a"][..]),
            ("a, b/c", &["net1=shop/a", "net2=b/c"]),
            ("a@first,b/c@second", &["first=shop/a", "second=b/c"]),
            ("a@storage-netwrk1", &["storage-netwrk1=shop/a"]),
            ("a,a", &["net1=shop/a", "net2=shop/a"]),
            (
                r#"[{"name":"a"},{"name":"c","namespace":"b","interface":"data"}]"#,
                &["net1=shop/a", "data=b/c"],
            ),
        ] {
            let wanted = read(&[(NETWORKS, text)]).unwrap();
            assert_eq!(shown(&wanted)[1..], *expected, "{text}");
        }
    }

    #[test]
    fn addresses_and_the_default_route_are_read() {
        let text = r#"[{"name":"a","ips":["10.0.0.5/24","fd00::5"],"default-route":["10.0.0.1"]}]"#;
        let wanted = read(&[(NETWORKS, text), (DEFAULT_ROUTE_NIC, "eth0")]).unwrap();
        let net1 = &wanted.interfaces[1];
        let expected: [IpAddr; 2] = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(net1.ips, expected);
        assert_eq!(wanted.default_route_nic.as_deref(), Some("net1"));
        let wanted = read(&[(DEFAULT_ROUTE_NIC, "net1")]).unwrap();
        assert_eq!(wanted.default_route_nic.as_deref(), Some("net1"));
    }

    #[test]
    fn what_of_an_element_nobody_does_is_named_with_its_network() {
        for (element, keys) in [
            (r#"{"name":"a"}"#, None),
            (
                r#"{"name":"a","bandwidth":null,"portMappings":[],"cni-args":{}}"#,
                None,
            ),
            (
                r#"{"name":"a","bandwidth":{"ingressRate":1000}}"#,
                Some("bandwidth of network a"),
            ),
            (
                r#"{"name":"a","portMappings":[{"hostPort":80}],"cni-args":{"x":1}}"#,
                Some("cni-args, portMappings of network a"),
            ),
            (
                r#"{"name":"a","infiniband-guid":"c2:11"}"#,
                Some("infiniband-guid"),
            ),
            (r#"{"name":"a","ipss":["10.0.0.5"]}"#, Some("ipss")),
        ] {
            for annotation in [DEFAULT_NETWORK, NETWORKS] {
                let wanted = read(&[(annotation, &format!("[{element}]"))]).unwrap();
                match (keys, &wanted.without_effect[..]) {
                    (None, []) => {}
                    (Some(keys), [one]) => {
                        assert!(one.contains(keys) && one.contains(annotation), "{one}");
                    }
                    (_, other) => panic!("{element}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (annotation, text, said) in [
            (DEFAULT_NETWORK, "a,b", "exactly one"),
            (DEFAULT_NETWORK, "a@net7", "the runtime gives"),
            (NETWORKS, "a,,b", "not a name"),
            (NETWORKS, "a@x,b@x", "called x"),
            (NETWORKS, "a@eth0", "called eth0"),
            (NETWORKS, "a@way/too", "interface's name"),
            (
                NETWORKS,
                "a@storage-network1",
                "16 characters, and an interface's name 15 at most",
            ),
            (
                NETWORKS,
                r#"[{"name":"a","interface":"storage-network1"}]"#,
                "use a shorter one",
            ),
            (NETWORKS, "[{", "JSON"),
            (
                NETWORKS,
                r#"[{"name":"a","mac":"02:00:00:00:00:01"}]"#,
                "MAC",
            ),
            (NETWORKS, r#"[{"name":"a","ips":["x"]}]"#, "not an address"),
            (NETWORKS, r#"[{"name":"a","default-route":["x"]}]"#, "JSON"),
        ] {
            let error = read(&[(annotation, text)]).unwrap_err().to_string();
            assert!(
                error.contains(annotation) && error.contains(said),
                "{text}: {error}"
            );
            assert!(error.contains("shop/web"), "{error}");
        }
        let pod = ObjectName {
            namespace: "a".into(),
            name: "b".into(),
        };
        let error = wanted(&pod, &Object::named("b"), "eth0", None).unwrap_err();
        assert!(error.to_string().contains("--default-network"));
    }
}
