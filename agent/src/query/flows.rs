//! `ebbtidectl flows`: the flows that the programs remember.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use ebbtide_kernel::{
    datapath::{self, Kind, Remembered},
    netlink::{Netlink, netns::Evidence},
    node::HostPlan,
    podnet::PodNet,
};
use ebbtide_layout::FlowKey;
use serde::{Deserialize, Serialize};

use super::{Agent, select};

/// A line of `ebbtidectl flows`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLine {
    /// The pod; empty for the node's own flows.
    pub pod: String,
    /// Where it is remembered.
    pub place: Place,
    /// The interface that it came in on.
    pub came_in: String,
    /// The interface that its replies leave by; for a forwarded flow, its own packets.
    pub leaves_by: String,
    /// `tcp`, `udp`, ... or its number.
    pub protocol: String,
    /// The pod's (or the node's) side; the port is an identifier for echoes.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    /// Seconds since it was learned.
    pub age: u32,
    /// The number of its packets since then, in both directions.
    pub packets: u64,
}

/// Where a flow is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// In the pod: it came in by the veth, and is not TCP.
    Pod,
    /// In the host: a request from outside that came in on a NIC.
    Request,
    /// In the host: it is forwarded for the pod.
    Forwarded,
}

/// The answer: the youngest flows first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// The number of all flows.
    pub total: usize,
    /// The youngest of them, as many as were requested.
    pub flows: Vec<FlowLine>,
}

/// Returns the `limit` youngest flows of a pod, or of those that the host takes part in.
pub(super) async fn flows(agent: &Agent, pod: Option<&str>, limit: usize) -> Result<Flows, String> {
    let nets: Vec<PodNet> = match pod {
        Some(pod) => select(agent, pod)?,
        None => agent
            .interfaces()
            .iter()
            .map(|(_, net)| PodNet::clone(net))
            .collect(),
    };
    let nics = agent.nics();
    let view = View::new(&nets, nics.as_deref());
    let mut lines = Vec::new();
    if pod.is_some() {
        for net in &nets {
            let flows = agent
                .datapath
                .flows(&net.ips())
                .map_err(|e| e.to_string())?;
            let links = links_of(net).await;
            lines.extend(flows.iter().map(|flow| view.line(flow, &links)));
        }
    }
    let addresses: Vec<IpAddr> = nets.iter().flat_map(PodNet::ips).collect();
    let wanted = pod.is_some().then_some(addresses.as_slice());
    let flows = agent
        .datapath
        .host
        .flows(wanted)
        .map_err(|e| e.to_string())?;
    lines.extend(flows.iter().map(|flow| view.line(flow, &HashMap::new())));
    lines.sort_by_key(|line| (line.age, line.local, line.remote));
    let total = lines.len();
    lines.truncate(limit);
    Ok(Flows {
        total,
        flows: lines,
    })
}

/// Translates addresses, marks and indexes into names.
struct View<'a> {
    nets: &'a [PodNet],
    nics: Option<&'a HostPlan>,
    now: u32,
}

impl<'a> View<'a> {
    fn new(nets: &'a [PodNet], nics: Option<&'a HostPlan>) -> Self {
        Self {
            nets,
            nics,
            now: u32::try_from(datapath::uptime().as_secs()).unwrap_or(u32::MAX),
        }
    }

    fn line(&self, flow: &Remembered, links: &HashMap<u32, String>) -> FlowLine {
        let FlowKey {
            local, protocol, ..
        } = flow.key;
        let local = datapath::address(local);
        let net = self.nets.iter().find(|net| net.ips().contains(&local));
        let (place, came_in, leaves_by) = match flow.kind {
            Kind::InPod {
                ifindex,
                is_straight,
            } => {
                let own = net.filter(|_| is_straight).map(|net| net.interface.clone());
                let link = own.or_else(|| links.get(&ifindex).cloned());
                let link = link.unwrap_or_else(|| format!("#{ifindex}"));
                (Place::Pod, link.clone(), link)
            }
            Kind::Request { mark } => {
                let nic = self.nic(mark);
                (Place::Request, nic.clone(), nic)
            }
            Kind::Forwarded => {
                let veth = net.and_then(PodNet::host_veth);
                let nic = net.and_then(PodNet::master).map(str::to_owned);
                (
                    Place::Forwarded,
                    veth.map_or_else(String::new, |veth| veth.host_name.clone()),
                    nic.unwrap_or_default(),
                )
            }
        };
        FlowLine {
            pod: net.map_or_else(String::new, |net| net.pod.clone()),
            place,
            came_in,
            leaves_by,
            protocol: protocol_name(protocol),
            local: SocketAddr::new(local, u16::from_be_bytes(flow.key.local_port)),
            remote: SocketAddr::new(
                datapath::address(flow.key.remote),
                u16::from_be_bytes(flow.key.remote_port),
            ),
            age: self.now.saturating_sub(flow.since),
            packets: flow.packets,
        }
    }

    fn nic(&self, mark: u32) -> String {
        let nics = self.nics.map_or(&[][..], |plan| &plan.nics);
        let nic = nics.iter().find(|nic| nic.mark == mark);
        nic.map_or_else(|| format!("mark {mark:#x}"), |nic| nic.name.clone())
    }
}

/// Returns the names of a pod's links by index; empty if the pod cannot be inspected.
async fn links_of(net: &PodNet) -> HashMap<u32, String> {
    let Ok(Evidence::Present(netns)) = net.namespace() else {
        return HashMap::new();
    };
    let place = format!("in {}", net.netns.display());
    let Ok(Ok(netlink)) = netns.run(|| Netlink::open(place)) else {
        return HashMap::new();
    };
    let links = netlink.links().await.unwrap_or_default();
    links
        .into_iter()
        .map(|link| (link.ifindex, link.name))
        .collect()
}

/// Returns a protocol's usual name (IANA's "Protocol Numbers").
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_layout::mapped;

    use super::*;

    #[test]
    fn a_flow_is_told_by_names_where_they_are_known() {
        let flow = Remembered {
            key: FlowKey {
                local: mapped([172, 31, 16, 4]),
                remote: mapped([198, 51, 100, 50]),
                local_port: 53_u16.to_be_bytes(),
                remote_port: 4000_u16.to_be_bytes(),
                protocol: 17,
                ..FlowKey::default()
            },
            kind: Kind::InPod {
                ifindex: 3,
                is_straight: false,
            },
            since: 90,
            packets: 7,
        };
        let view = View {
            nets: &[],
            nics: None,
            now: 100,
        };
        let line = view.line(&flow, &HashMap::from([(3, "veth0".to_owned())]));
        assert_eq!(line.came_in, "veth0");
        assert_eq!(line.local.to_string(), "172.31.16.4:53");
        assert_eq!(line.remote.to_string(), "198.51.100.50:4000");
        assert_eq!(
            (line.protocol.as_str(), line.age, line.packets),
            ("udp", 10, 7)
        );
        let unknown = view.line(&flow, &HashMap::new());
        assert_eq!(unknown.came_in, "#3");
        let other = Remembered {
            kind: Kind::Request { mark: 2 },
            since: 200,
            ..flow
        };
        let line = view.line(&other, &HashMap::new());
        assert_eq!((line.came_in.as_str(), line.age), ("mark 0x2", 0));
    }
}
