//! `ebbtidectl flows`: the flows that the programs remember.

use std::{collections::BTreeSet, net::SocketAddr};

use ebbtide_kernel::{datapath, node::HostPlan, podnet::PodNet};
use ebbtide_layout::{Flow, FlowKey};
use serde::{Deserialize, Serialize};

use super::{Agent, select};

/// A line of `ebbtidectl flows`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLine {
    /// The pod.
    pub pod: String,
    /// Where it is remembered.
    pub place: Place,
    /// The interface that it came in on.
    pub came_in: String,
    /// The interface that its replies leave by; for a forwarded flow, its own packets.
    pub leaves_by: String,
    /// The node's NIC that it came in by before it came by the veth, and that its replies leave by after that; empty if it
    /// came by none, or the node has only one.
    #[serde(default)]
    pub nic: String,
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

/// Returns the `limit` youngest flows of a pod, or of all.
pub(super) fn flows(agent: &Agent, pod: Option<&str>, limit: usize) -> Result<Flows, String> {
    let nets: Vec<PodNet> = match pod {
        Some(pod) => select(agent, pod)?,
        None => agent
            .interfaces()
            .iter()
            .map(|(_, net)| PodNet::clone(net))
            .collect(),
    };
    let nics = agent.nics();
    let now = u32::try_from(datapath::uptime().as_secs()).unwrap_or(u32::MAX);
    let nic = |number| nic_name(agent, nics.as_deref(), number);
    let mut lines = Vec::new();
    // The interfaces of a pod share its number.
    let numbers: BTreeSet<u16> = nets.iter().map(PodNet::number).collect();
    for number in numbers {
        let flows = agent.datapath.flows.of(number).map_err(|e| e.to_string())?;
        lines.extend(flows.iter().map(|flow| line(flow, &nets, nic, now)));
    }
    lines.sort_by_key(|line| (line.age, line.local, line.remote));
    let total = lines.len();
    lines.truncate(limit);
    Ok(Flows {
        total,
        flows: lines,
    })
}

/// Returns the name of the NIC with this number; empty for none.
fn nic_name(agent: &Agent, nics: Option<&HostPlan>, number: u8) -> String {
    if number == 0 {
        return String::new();
    }
    let ifindex = agent.datapath.host.nic_with_number(number.into());
    let nics = nics.map_or(&[][..], |plan| &plan.nics);
    let nic = nics.iter().find(|nic| Some(nic.ifindex) == ifindex);
    nic.map_or_else(|| format!("#{number}"), |nic| nic.name.clone())
}

fn line(flow: &Flow, nets: &[PodNet], nic: impl Fn(u8) -> String, now: u32) -> FlowLine {
    let FlowKey {
        local, protocol, ..
    } = flow.key;
    let local = datapath::address(local);
    let net = nets.iter().find(|net| net.ips().contains(&local));
    let own = || net.map_or_else(String::new, |net| net.interface.clone());
    let veth = net.and_then(PodNet::host_veth);
    let (place, came_in, leaves_by) = if datapath::is_forwarded(flow) {
        let nic = net.and_then(PodNet::master).map(str::to_owned);
        let host_end = veth.map_or_else(String::new, |veth| veth.host_name.clone());
        (Place::Forwarded, host_end, nic.unwrap_or_default())
    } else if flow.straight != 0 {
        (Place::Pod, own(), own())
    } else {
        let pod_end = veth.map_or_else(String::new, |veth| veth.pod_name.clone());
        (Place::Pod, pod_end.clone(), pod_end)
    };
    FlowLine {
        pod: net.map_or_else(String::new, |net| net.pod.clone()),
        place,
        came_in,
        leaves_by,
        nic: nic(flow.nic),
        protocol: protocol_name(protocol),
        local: SocketAddr::new(local, u16::from_be_bytes(flow.key.local_port)),
        remote: SocketAddr::new(
            datapath::address(flow.key.remote),
            u16::from_be_bytes(flow.key.remote_port),
        ),
        age: now.saturating_sub(flow.since),
        packets: flow.packets,
    }
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
    use ebbtide_layout::{FORWARDED, mapped};

    use super::*;

    #[test]
    fn a_flow_is_told_by_the_names_of_its_links() {
        let flow = Flow {
            key: FlowKey {
                local: mapped([172, 31, 16, 4]),
                remote: mapped([198, 51, 100, 50]),
                local_port: 53_u16.to_be_bytes(),
                remote_port: 4000_u16.to_be_bytes(),
                protocol: 17,
                ..FlowKey::default()
            },
            since: 90,
            nic: 2,
            packets: 7,
            ..Flow::default()
        };
        let nic = |number: u8| match number {
            0 => String::new(),
            number => format!("ens{number}"),
        };
        let line = |flow, now| line(&flow, &[], nic, now);
        let came = line(flow, 100);
        assert_eq!(came.local.to_string(), "172.31.16.4:53");
        assert_eq!(came.remote.to_string(), "198.51.100.50:4000");
        assert_eq!(came.nic, "ens2");
        assert_eq!(
            (came.protocol.as_str(), came.age, came.packets),
            ("udp", 10, 7)
        );
        assert_eq!(line(flow, 80).age, 0, "learned after the clock was read");
        let mut forwarded = flow;
        forwarded.key.kind = FORWARDED;
        assert_eq!(line(forwarded, 100).place, Place::Forwarded);
    }
}
