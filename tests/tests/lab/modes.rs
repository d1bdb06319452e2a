//! The other ipvlan modes, with the same table of traffic (docs/modes.md).

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_demo::{Check, Scenario, SeenAs, WAYS_TO_C, all_go_their_way};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::{
    lab::Lab,
    path::{Hop, Path},
    plan::{Family, Plan},
    pod::{NIC_SIDE, NODE_SIDE},
    tap::{Direction, Place},
    traffic::{Client, Protocol},
};

/// Runs every row in `mode`; `expected` adapts the expectation.
fn rows(mode: IpvlanMode, expected: fn(Check) -> Check) -> Result<()> {
    let lab = Lab::start(Plan {
        mode,
        ..Plan::default()
    })?;
    let scenario = Scenario::create(&lab)?;
    let checks: Vec<Check> = scenario.checks().into_iter().map(expected).collect();
    all_go_their_way(&lab, &checks)?;
    scenario.delete()
}

#[test]
fn every_row_takes_its_path_in_l2() -> Result<()> {
    rows(IpvlanMode::L2, |check| check)
}

#[test]
fn every_row_is_answered_where_it_came_in_in_l3s() -> Result<()> {
    rows(IpvlanMode::L3s, in_l3s)
}

/// Adapts a row to l3s. Everything is answered there as in l3, with two differences:
///
/// * The pod's interface delivers packets from the wire without being passed: no tap and no tc program sees them
///   (`ipvlan_nf_input` changes the packet's device behind them, drivers/net/ipvlan/ipvlan_l3s.c).
/// * A packet that comes in by a NIC is assigned to its pods before it is routed, but after the host's conntrack
///   (`ipvlan_l3_rcv`, called from `ip_rcv_finish`). So a NodePort request reaches a pod on the same NIC by that NIC,
///   not masqueraded, and its reply leaves by it, where conntrack undoes the DNAT. The same holds for the answer to a
///   request that a pod sent to a ClusterIP.
fn in_l3s(mut check: Check) -> Check {
    let back = check.back.clone();
    let back = back.unwrap_or_else(|| check.path.reversed());
    let request_pod = taken_by_its_nic(&check, &check.path);
    let answer_pod = taken_by_its_nic(&check, &back);
    let wire_to_pod = |path: Path| {
        let by_wire = path
            .0
            .iter()
            .any(|hop| matches!(hop.place, Place::Wire { .. }));
        let seen = |hop: &Hop| !(by_wire && is(hop, NIC_SIDE, Direction::In));
        Path(path.0.into_iter().filter(seen).collect())
    };
    check.path = wire_to_pod(check.path);
    let mut back = wire_to_pod(back);
    if let Some(pod) = request_pod {
        check.path.0.pop();
        check.seen_as = SeenAs::Itself;
        for hop in &mut back.0 {
            if let Place::Pod {
                pod: name,
                interface,
            } = &mut hop.place
                && *name == pod
            {
                NIC_SIDE.clone_into(interface);
            }
        }
    }
    if answer_pod.is_some() {
        back.0.pop();
    }
    check.back = Some(back);
    check
}

fn is(hop: &Hop, side: &str, towards: Direction) -> bool {
    let Hop { place, direction } = hop;
    matches!(place, Place::Pod { interface, .. } if interface == side) && *direction == towards
}

/// Returns the pod at the end of a path whose last steps are its own NIC and its veth. What `host_nic_ingress`
/// redirects into the host takes the veth in each mode.
fn taken_by_its_nic(check: &Check, path: &Path) -> Option<String> {
    let [.., wire, last] = &path.0[..] else {
        return None;
    };
    let (Place::Wire { node, nic }, Place::Pod { pod, .. }) = (&wire.place, &last.place) else {
        return None;
    };
    let title = format!("{pod} {node}/{nic}");
    let own_nic = check.from.ends_with(&title) || check.to.ends_with(&title);
    let redirected = check.traffic.ends_with("not masqueraded");
    (own_nic && !redirected && is(last, NODE_SIDE, Direction::In)).then(|| pod.clone())
}

/// How a client's connections end.
#[derive(Clone, Copy, Debug)]
enum End {
    /// By FIN. The TCP client cannot reuse the same connection for a while.
    Fin,
    /// By a reset; for UDP not at all.
    Reset,
}

/// Longer than the time after which conntrack treats a UDP flow as a stream (net/netfilter/nf_conntrack_proto_udp.c).
const PAUSE: Duration = Duration::from_secs(2);

/// A client with one source port, and the paths that it uses, one after the other.
#[derive(Debug)]
struct Mover {
    family: Family,
    protocol: Protocol,
    end: End,
    port: u16,
    ways: Vec<u16>,
}

impl Mover {
    /// Returns clients that use NodePort, pod address and NodePort, or the opposite order, in both families. Each has a
    /// source port of its own, from `port` on.
    fn all(port: u16) -> Vec<Self> {
        let [by_node_port, straight] = WAYS_TO_C;
        let mut ports = port..;
        let mut movers = Vec::new();
        for (protocol, end) in [
            (Protocol::Udp, End::Reset),
            (Protocol::Tcp, End::Reset),
            (Protocol::Tcp, End::Fin),
        ] {
            let times = match end {
                End::Fin => 1,
                End::Reset => 2,
            };
            for ways in [[by_node_port, straight], [straight, by_node_port]] {
                for (family, port) in Family::BOTH.into_iter().zip(&mut ports) {
                    movers.push(Self {
                        family,
                        protocol,
                        end,
                        port,
                        ways: ways.repeat(times),
                    });
                }
            }
        }
        movers
    }

    /// Sends a request by the path of this number, if there is one.
    fn come(&self, lab: &Lab, number: usize) -> Result<()> {
        let Some(way) = self.ways.get(number) else {
            return Ok(());
        };
        let source = SocketAddr::new(Plan::client(self.family), self.port);
        let server = SocketAddr::new(Plan::load_balancer(self.family), *way);
        let ask = || -> Result<()> {
            let mut connection = Client::new(&lab.vpc.world, self.protocol)
                .from(source)
                .connect(server)?;
            for _ in 0..3 {
                connection.ask()?;
            }
            match self.end {
                End::Fin => drop(connection),
                End::Reset => connection.abort()?,
            }
            Ok(())
        };
        ask().with_context(|| format!("{self:?}, number {number}"))
    }
}

/// Runs each client once without and once with pauses. All share the pauses, as they share no port.
fn one_port_both_ways(mode: IpvlanMode) -> Result<()> {
    let lab = Lab::start(Plan {
        mode,
        ..Plan::default()
    })?;
    let scenario = Scenario::create(&lab)?;
    let mut failed = Vec::new();
    let at_once = Mover::all(40_000);
    let steps = at_once.iter().map(|mover| mover.ways.len()).max();
    let steps = 0..steps.unwrap_or_default();
    for mover in at_once {
        failed.extend(
            steps
                .clone()
                .filter_map(|step| mover.come(&lab, step).err()),
        );
    }
    let patient = Mover::all(41_000);
    for step in steps {
        if step > 0 {
            thread::sleep(PAUSE);
        }
        let came = patient.iter().map(|mover| mover.come(&lab, step));
        failed.extend(came.filter_map(Result::err));
    }
    let failed: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}\n{}", failed.join("\n"), lab.logs());
    lab.vpc.assert_no_violations()?;
    scenario.delete()
}

#[test]
fn in_l3_a_client_s_port_is_answered_by_the_last_way_it_came() -> Result<()> {
    one_port_both_ways(IpvlanMode::L3)
}

#[test]
fn in_l2_a_client_s_port_is_answered_by_the_last_way_it_came() -> Result<()> {
    one_port_both_ways(IpvlanMode::L2)
}

#[test]
fn in_l3s_a_client_s_port_is_answered_by_the_last_way_it_came() -> Result<()> {
    one_port_both_ways(IpvlanMode::L3s)
}
