//! What the cluster's view needs of each object. Reading is lenient: what is missing, or is of another type, is empty.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use super::view::Level;

/// The annotation of pools that the controller made of what the cloud assigned.
const DERIVED: &str = "/metadata/annotations/ebbtide.io~1derived";

/// The label of the SpiderEndpoints that Ebbtide's agents write.
const NODE_LABEL: &str = "/metadata/labels/ebbtide.io~1node";

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeRow {
    pub(super) name: String,
    pub(super) is_ready: bool,
    pub(super) is_cordoned: bool,
}

/// The pod of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AgentRow {
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) is_ready: bool,
    pub(super) is_ending: bool,
    pub(super) restarts: u64,
    /// The tag of its image.
    pub(super) version: String,
    /// Why it does not run, or what became of it.
    pub(super) state: String,
}

/// A SpiderIPPool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PoolRow {
    pub(super) name: String,
    pub(super) subnet: String,
    pub(super) total: Option<u64>,
    pub(super) allocated: Option<u64>,
    pub(super) is_default: bool,
    pub(super) is_disabled: bool,
    pub(super) nodes: Vec<String>,
    pub(super) networks: Vec<String>,
    /// The cloud's NIC that its addresses are assigned to.
    pub(super) derived: Option<String>,
}

/// A SpiderMultusConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NetworkRow {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) masters: Vec<String>,
    /// The pools that it names, with wildcards.
    pub(super) pools: Vec<String>,
}

/// A SpiderEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointRow {
    /// `namespace/name`.
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) node: String,
    /// What the pod belongs to, as `StatefulSet/db`.
    pub(super) owner: String,
    pub(super) is_ending: bool,
    /// Whether an agent of Ebbtide's wrote it.
    pub(super) is_ours: bool,
    pub(super) interfaces: Vec<InterfaceRow>,
    /// Addresses that are none.
    pub(super) odd: Vec<String>,
}

/// An interface of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InterfaceRow {
    pub(super) name: String,
    /// Each address with its pool, which is empty if none is named.
    pub(super) addresses: Vec<(IpAddr, String)>,
}

/// An Event of Ebbtide's, as the page shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct EventRow {
    /// RFC 3339, as the API server has it.
    pub(super) at: String,
    pub(super) level: Level,
    pub(super) reason: String,
    /// What it is about, as `Node node-1` or `Pod default/web`.
    pub(super) about: String,
    pub(super) note: String,
    pub(super) times: u64,
}

/// A pod that was looked at because of its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodRow {
    pub(super) uid: String,
    /// Whether its containers have ended for good.
    pub(super) has_ended: bool,
}

/// Returns the rows of a list's objects.
pub(super) fn rows<T>(list: &Value, read: impl Fn(&Value) -> T) -> Vec<T> {
    items(list, "/items").map(read).collect()
}

pub(super) fn node(object: &Value) -> NodeRow {
    let mut conditions = items(object, "/status/conditions");
    NodeRow {
        name: text(object, "/metadata/name"),
        is_ready: conditions
            .any(|it| text(it, "/type") == "Ready" && text(it, "/status") == "True"),
        is_cordoned: is_true(object, "/spec/unschedulable"),
    }
}

pub(super) fn agent(object: &Value) -> AgentRow {
    let mut statuses = items(object, "/status/containerStatuses");
    let nothing = Value::Null;
    let status = statuses.find(|it| text(it, "/name") == "agent");
    let status = status.unwrap_or(&nothing);
    let mut containers = items(object, "/spec/containers");
    let image = containers.find(|it| text(it, "/name") == "agent");
    let image = image.map(|it| text(it, "/image")).unwrap_or_default();
    let states = [
        text(status, "/state/waiting/reason"),
        text(status, "/state/terminated/reason"),
        text(object, "/status/reason"),
        text(object, "/status/phase"),
    ];
    AgentRow {
        node: text(object, "/spec/nodeName"),
        pod: text(object, "/metadata/name"),
        is_ready: is_true(status, "/ready"),
        is_ending: is_ending(object),
        restarts: number(status, "/restartCount").unwrap_or_default(),
        version: tag(&image),
        state: states
            .into_iter()
            .find(|it| !it.is_empty())
            .unwrap_or_default(),
    }
}

/// Returns an image's tag, or the start of its digest.
fn tag(image: &str) -> String {
    if let Some((_, digest)) = image.split_once('@') {
        let digest = digest.split_once(':').map_or(digest, |(_, it)| it);
        return digest.chars().take(12).collect();
    }
    // A colon before the last slash is of the registry's port.
    let name = image.rsplit_once('/').map_or(image, |(_, it)| it);
    name.split_once(':').map_or("", |(_, it)| it).to_owned()
}

pub(super) fn pool(object: &Value) -> PoolRow {
    PoolRow {
        name: text(object, "/metadata/name"),
        subnet: text(object, "/spec/subnet"),
        total: number(object, "/status/totalIPCount"),
        allocated: number(object, "/status/allocatedIPCount"),
        is_default: is_true(object, "/spec/default"),
        is_disabled: is_true(object, "/spec/disable"),
        nodes: texts(object, "/spec/nodeName"),
        networks: texts(object, "/spec/multusName"),
        derived: some(object, DERIVED),
    }
}

pub(super) fn network(object: &Value) -> NetworkRow {
    let pools = [
        "/spec/ipvlan/ippools/ipv4",
        "/spec/ipvlan/ippools/ipv6",
        "/spec/ipvlan/spiderpoolConfigPools/IPv4IPPool",
        "/spec/ipvlan/spiderpoolConfigPools/IPv6IPPool",
    ];
    NetworkRow {
        namespace: text(object, "/metadata/namespace"),
        name: text(object, "/metadata/name"),
        masters: texts(object, "/spec/ipvlan/master"),
        pools: pools.iter().flat_map(|at| texts(object, at)).collect(),
    }
}

pub(super) fn endpoint(object: &Value) -> EndpointRow {
    let (namespace, name) = (
        text(object, "/metadata/namespace"),
        text(object, "/metadata/name"),
    );
    let node = some(object, "/status/current/node").or_else(|| some(object, NODE_LABEL));
    let owner = ["/status/ownerControllerType", "/status/ownerControllerName"];
    let owner = owner.map(|at| text(object, at)).join("/");
    let mut odd = Vec::new();
    let interfaces = items(object, "/status/current/ips").map(|it| {
        let mut addresses = Vec::new();
        for (at, pool) in [("/ipv4", "/ipv4Pool"), ("/ipv6", "/ipv6Pool")] {
            match some(it, at) {
                None => {}
                Some(told) => match address(&told) {
                    Some(address) => addresses.push((address, text(it, pool))),
                    None => odd.push(told),
                },
            }
        }
        InterfaceRow {
            name: text(it, "/interface"),
            addresses,
        }
    });
    EndpointRow {
        interfaces: interfaces.collect(),
        pod: format!("{namespace}/{name}"),
        uid: text(object, "/status/current/uid"),
        node: node.unwrap_or_default(),
        owner: owner.trim_matches('/').to_owned(),
        is_ending: is_ending(object),
        is_ours: some(object, NODE_LABEL).is_some(),
        odd,
    }
}

/// Reads an address, with or without a prefix length.
fn address(told: &str) -> Option<IpAddr> {
    let net = told.parse::<IpNet>().map(|net| net.addr());
    net.ok().or_else(|| told.parse().ok())
}

pub(super) fn event(object: &Value) -> EventRow {
    let at = [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/eventTime",
        "/metadata/creationTimestamp",
    ];
    let kind = text(object, "/involvedObject/kind");
    let name = text(object, "/involvedObject/name");
    // Objects without a namespace have their Events in `default`.
    let has_namespace = !matches!(kind.as_str(), "Node" | "SpiderIPPool");
    let namespace = some(object, "/involvedObject/namespace").filter(|_| has_namespace);
    let place = namespace.map(|it| it + "/").unwrap_or_default();
    let times = ["/series/count", "/count"];
    EventRow {
        at: at
            .iter()
            .find_map(|at| some(object, at))
            .unwrap_or_default(),
        level: match text(object, "/type").as_str() {
            "Warning" => Level::Warn,
            _ => Level::Well,
        },
        reason: text(object, "/reason"),
        about: format!("{kind} {place}{name}").trim().to_owned(),
        note: text(object, "/message"),
        times: times.iter().find_map(|at| number(object, at)).unwrap_or(1),
    }
}

pub(super) fn pod(object: &Value) -> PodRow {
    let phase = text(object, "/status/phase");
    PodRow {
        uid: text(object, "/metadata/uid"),
        has_ended: matches!(phase.as_str(), "Succeeded" | "Failed"),
    }
}

fn items<'a>(object: &'a Value, at: &str) -> impl Iterator<Item = &'a Value> {
    let list = object.pointer(at).and_then(Value::as_array);
    list.into_iter().flatten()
}

fn some(object: &Value, at: &str) -> Option<String> {
    let value = object.pointer(at).and_then(Value::as_str);
    value.filter(|it| !it.is_empty()).map(str::to_owned)
}

fn text(object: &Value, at: &str) -> String {
    some(object, at).unwrap_or_default()
}

fn texts(object: &Value, at: &str) -> Vec<String> {
    let texts = items(object, at).filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

fn number(object: &Value, at: &str) -> Option<u64> {
    object.pointer(at).and_then(Value::as_u64)
}

fn is_true(object: &Value, at: &str) -> bool {
    object.pointer(at).and_then(Value::as_bool) == Some(true)
}

fn is_ending(object: &Value) -> bool {
    some(object, "/metadata/deletionTimestamp").is_some()
}
