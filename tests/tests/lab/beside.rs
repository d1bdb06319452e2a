//! Clients on the pod's own NIC. What they send directly ipvlan delivers without the NIC, so only their own programs see
//! it: a client that came through the node before must be answered directly now, from the address that it asked.

use std::{io::ErrorKind, net::SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_tests::two_ways::{Case, Site, Way};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::{
    iptables,
    patience::{PATIENCE, eventually},
    plan::{Family, Plan},
    pod::Pod,
    snapshot::{ip, run},
    tap::{Direction, Place},
    traffic::{Client, Protocol, Server, socket},
};

/// A site, and a client pod beside its pod.
struct Stage {
    // Before the lab, so that it is dropped first.
    client: Pod,
    site: Site,
}

impl Stage {
    fn build(mode: IpvlanMode) -> Result<Self> {
        let site = Site::create(Plan {
            mode,
            ..Plan::default()
        })?;
        let client = site.lab.pod(&site.pod.node, &site.pod.nic, "beside")?;
        for family in Family::BOTH {
            let (from, to) = (client.address(family), site.pod.address(family));
            let rules = [Way::NodePort, Way::OwnNodePort].map(|way| {
                let node = site.case(way, family).address();
                format!("-I PREROUTING -s {from} -d {node} -j DNAT --to-destination {to}")
            });
            let script = format!("*nat\n{}\nCOMMIT\n", rules.join("\n"));
            iptables::restore(site.node(), family, &script)?;
        }
        Ok(Self { client, site })
    }

    /// Asks, and checks that question and answer took the case's way.
    fn ask(&self, case: &Case<'_>, protocol: Protocol, from: SocketAddr) -> Result<()> {
        let mark = case.mark()?;
        let client = Client::new(&self.client.netns, protocol).from(from);
        let mut connection = client.connect(case.server())?;
        for _ in 0..3 {
            let answer = connection.ask()?;
            ensure!(answer.seen_as == from, "seen as {}", answer.seen_as);
        }
        // Both ends are gone at once, when the reset has arrived.
        connection.abort()?;
        let seen = eventually("the end of the connection", || {
            let mut seen = self.site.lab.taps.since(mark)?;
            seen.retain(|packet| {
                [packet.source_port, packet.destination_port].contains(&from.port())
                    && !matches!(&packet.place, Place::Pod { pod, .. } if *pod == self.client.name)
            });
            let is_over = seen.iter().any(|packet| packet.reset);
            ensure!(protocol == Protocol::Udp || is_over, "no reset");
            Ok(seen)
        })?;
        let crooked = seen
            .iter()
            .find(|packet| !packet.is_in_pod_at(case.way.interface()));
        ensure!(crooked.is_none(), "{}", crooked.context("a packet")?);
        for direction in [Direction::In, Direction::Out] {
            let mut there = seen.iter().map(|packet| packet.direction);
            ensure!(there.any(|its| its == direction), "nothing {direction:?}");
        }
        Ok(())
    }

    /// Checks that nobody listens at the case's port, and that the client is told so.
    fn is_refused(&self, case: &Case<'_>, from: SocketAddr) -> Result<()> {
        let client = socket(&self.client.netns, Protocol::Tcp, from)?;
        match client.connect_timeout(&case.server().into(), PATIENCE) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => bail!("not refused, but {error}"),
            Ok(()) => bail!("who listens?"),
        }
    }

    /// Asks by each pair of ways from one port, in both families and by both protocols, and once more when nobody
    /// listens any more.
    fn each_way_after_each_other(&self) -> Result<()> {
        let mut failed = Vec::new();
        let mut port = 40_000;
        for family in Family::BOTH {
            for (first, second) in pairs() {
                for protocol in Protocol::BOTH {
                    let case = self.site.case(first, family);
                    let any = SocketAddr::new(family.any(), case.port);
                    let server = Server::start(&self.site.pod.netns, protocol, any)?;
                    port += 1;
                    let from = SocketAddr::new(self.client.address(family), port);
                    let mut context = format!("{family}, {protocol}, {first}, then {second}");
                    let then = Case {
                        way: second,
                        ..case
                    };
                    // And back, and again.
                    let mut result = [case, then, case, then]
                        .iter()
                        .try_for_each(|case| self.ask(case, protocol, from));
                    if protocol == Protocol::Tcp && result.is_ok() {
                        result = self.ask(&case, protocol, from);
                        drop(server);
                        if result.is_ok() {
                            context.push_str(", where nobody listens any more");
                            result = self.is_refused(&then, from);
                        }
                    }
                    if let Err(error) = result {
                        failed.push(format!("{context}: {error:#}"));
                    }
                }
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        self.site.lab.vpc.assert_no_violations()
    }

    fn delete(self) -> Result<()> {
        self.client.delete()?;
        self.site.pod.delete()
    }
}

/// Returns the ways through the node, each before and after the direct one. From one port, the two through the node would
/// need another source port in its conntrack.
fn pairs() -> [(Way, Way); 4] {
    [
        (Way::NodePort, Way::Straight),
        (Way::OwnNodePort, Way::Straight),
        (Way::Straight, Way::NodePort),
        (Way::Straight, Way::OwnNodePort),
    ]
}

fn check(mode: IpvlanMode) -> Result<()> {
    let stage = Stage::build(mode)?;
    stage.each_way_after_each_other()?;
    stage.delete()
}

#[test]
fn a_pod_on_the_same_nic_uses_its_port_again_by_another_way() -> Result<()> {
    check(IpvlanMode::L3)
}

#[test]
fn a_pod_on_the_same_nic_uses_its_port_again_by_another_way_in_l2() -> Result<()> {
    check(IpvlanMode::L2)
}

/// The sockets of such a pod take no marks: its connections are in the flow table, like UDP.
#[test]
fn and_so_it_does_where_a_proxy_s_rules_leave_connections_to_the_flow_table() -> Result<()> {
    let stage = Stage::build(IpvlanMode::L3)?;
    let pod = &stage.site.pod.netns;
    for family in ["-4", "-6"] {
        ip(
            pod,
            &[family, "rule", "add", "fwmark", "1337", "lookup", "133"],
        )?;
    }
    eventually("the pod's connections to be followed", || {
        let accept = run(pod, "sysctl", &["-n", "net.ipv4.tcp_fwmark_accept"])?;
        ensure!(accept.trim() == "0", "tcp_fwmark_accept is {accept}");
        Ok(())
    })?;
    stage.each_way_after_each_other()?;
    stage.delete()
}
