//! The strict VPC is strict. Without this, all other tests would prove little.
//!
//! Needs root and no ipvlan.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what cannot go on fails here"
)]

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use ebbtide_vpc::{
    edge::Listener,
    path::Exchange,
    patience::PATIENCE,
    ping::ping,
    plan::{Family, Plan},
    snapshot::ip,
    strict::Reason,
    tap::Taps,
    traffic::{Client, Protocol, Server},
    vpc::Vpc,
};
use ipnet::IpNet;

const PORT: u16 = 8080;
/// The time limit for what must not arrive.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(2);

fn vpc() -> Vpc {
    Vpc::build(Plan::default()).unwrap()
}

fn primary(vpc: &Vpc, node: &str, nic: &str, family: Family) -> IpAddr {
    vpc.nic(node, nic).primary(family)
}

#[test]
fn nodes_reach_each_other_by_their_first_nics() {
    let vpc = vpc();
    let taps = Taps::on_all_wires(&vpc).unwrap();
    let _servers = Server::on_any(vpc.node("worker1"), PORT).unwrap();
    for family in Family::BOTH {
        let server = SocketAddr::new(primary(&vpc, "worker1", "ens5", family), PORT);
        for protocol in Protocol::BOTH {
            let mark = taps.mark().unwrap();
            let answer = Client::new(vpc.node("master"), protocol)
                .ask(server)
                .unwrap();
            assert_eq!(answer.seen_as.ip(), primary(&vpc, "master", "ens5", family));
            let exchange = Exchange::of(&taps.since(mark).unwrap(), &[PORT]);
            assert_eq!(
                exchange.to_string(),
                "master/ens5 → vpc → worker1/ens5",
                "{protocol} {family}"
            );
        }
        ping(vpc.node("master"), None, server.ip(), LONG).unwrap();
    }
    vpc.assert_no_violations().unwrap();
}

#[test]
fn an_echo_request_that_was_lost_is_sent_again() {
    let vpc = vpc();
    let master = vpc.node("master");
    for (family, client) in [
        (Family::V4, Plan::NAT),
        (Family::V6, primary(&vpc, "master", "ens5", Family::V6)),
    ] {
        let (to, client) = (Plan::web_server(family), client.to_string());
        let lose = |what| ip(&vpc.world, &["route", what, "blackhole", &client]).unwrap();
        lose("add");
        ping(master, None, to, SHORT).unwrap_err();
        let pinged = thread::scope(|scope| {
            let pinged = scope.spawn(|| ping(master, None, to, PATIENCE));
            thread::sleep(SHORT);
            lose("del");
            pinged.join().unwrap()
        });
        assert!(pinged.unwrap() > SHORT, "{family}: the first was lost");
    }
}

#[test]
fn the_address_of_another_nic_is_dropped_and_counted() {
    for family in Family::BOTH {
        let vpc = vpc();
        let master = vpc.node("master");
        let wrong = primary(&vpc, "master", "ens6", family);
        // The default route is by ens5: the path of a reply that ignores where its request came in.
        let to = Plan::web_server(family);
        ping(master, None, to, LONG).unwrap();
        ping(master, Some(wrong), to, SHORT).unwrap_err();

        let violations = vpc.violations().unwrap();
        let [violation] = violations.as_slice() else {
            panic!("one violation, not {violations:?}");
        };
        assert_eq!(
            (violation.node.as_str(), violation.nic.as_str()),
            ("master", "ens5")
        );
        assert_eq!(violation.reason, Reason::Source);
        assert_eq!((violation.source, violation.destination), (wrong, to));
        assert_eq!(vpc.dropped_at("master", "ens6").unwrap(), 0);
        vpc.assert_no_violations().unwrap_err();
    }
}

#[test]
fn an_address_of_nobody_is_dropped_and_counted() {
    let vpc = vpc();
    let master = vpc.node("master");
    let stranger: IpAddr = "10.9.8.7".parse().unwrap();
    let netlink = master.netlink().unwrap();
    netlink.add_address("lo", stranger.into()).unwrap();
    ping(master, Some(stranger), Plan::web_server(Family::V4), SHORT).unwrap_err();
    assert_eq!(vpc.violations().unwrap()[0].source, stranger);
}

#[test]
fn a_foreign_mac_is_dropped_and_counted() {
    let vpc = vpc();
    let master = vpc.node("master");
    let netlink = master.netlink().unwrap();
    let nic = vpc.nic("master", "ens5");
    let to = Plan::web_server(Family::V4);
    netlink.set_mac("ens5", [2, 0, 0, 0, 0, 1]).unwrap();
    ping(master, None, to, SHORT).unwrap_err();
    let violations = vpc.violations().unwrap();
    assert!(
        violations
            .iter()
            .all(|violation| violation.reason == Reason::Mac && violation.nic == nic.name),
        "{violations:?}"
    );
    assert!(vpc.dropped_at("master", "ens5").unwrap() > 0);
    netlink.set_mac("ens5", nic.mac).unwrap();
    ping(master, None, to, LONG).unwrap();
}

#[test]
fn nobody_answers_for_far_or_unknown_addresses() {
    let vpc = vpc();
    let master = vpc.node("master");
    let netlink = master.netlink().unwrap();
    for family in Family::BOTH {
        let subnet = vpc.nic("master", "ens5").subnet(family);
        ping(master, None, subnet.gateway, LONG).unwrap();
        // Without a route of its own on the NIC, a pod's packet looks for its far destination on the wire: a forgiving
        // network answers by proxy ARP, a VPC does not.
        let far = Plan::web_server(family);
        let net = IpNet::new(far, family.host_prefix()).unwrap();
        netlink.add_on_link_route(net, "ens5").unwrap();
        ping(master, None, far, SHORT).unwrap_err();
        // An address of the subnet that nobody has.
        let unknown = match subnet.primary.hosts().nth(200).unwrap() {
            unknown if subnet.addresses().any(|used| used == unknown) => {
                panic!("{unknown} is used")
            }
            unknown => unknown,
        };
        ping(master, None, unknown, SHORT).unwrap_err();
    }
    vpc.assert_no_violations().unwrap();
}

#[test]
fn nodes_that_share_a_subnet_reach_each_other_by_the_router_and_have_only_their_own_addresses() {
    let vpc = Vpc::build(Plan::alibaba()).unwrap();
    let taps = Taps::on_all_wires(&vpc).unwrap();
    let (master, worker) = (vpc.node("master"), vpc.node("worker"));
    let _servers = Server::on_any(worker, PORT).unwrap();
    for family in Family::BOTH {
        let server = SocketAddr::new(primary(&vpc, "worker", "eth0", family), PORT);
        for protocol in Protocol::BOTH {
            let mark = taps.mark().unwrap();
            let answer = Client::new(master, protocol).ask(server).unwrap();
            assert_eq!(answer.seen_as.ip(), primary(&vpc, "master", "eth0", family));
            let exchange = Exchange::of(&taps.since(mark).unwrap(), &[PORT]);
            assert_eq!(exchange.to_string(), "master/eth0 → vpc → worker/eth0");
        }
        // An address of the subnet that nobody has.
        let subnet = vpc.nic("master", "eth0").subnet(family);
        let unknown = subnet.primary.hosts().nth(7).unwrap();
        ping(master, None, unknown, SHORT).unwrap_err();
    }
    vpc.assert_no_violations().unwrap();

    // In the subnet, but of the other node's NIC.
    for family in Family::BOTH {
        let before = vpc.dropped_at("master", "eth0").unwrap();
        let stolen = vpc.nic("worker", "eth0").subnet(family).secondary[0];
        let netlink = master.netlink().unwrap();
        netlink.add_address("lo", stolen.into()).unwrap();
        let to = Plan::web_server(family);
        ping(master, Some(stolen), to, SHORT).unwrap_err();
        let violations = vpc.violations().unwrap();
        let [violation] = violations.as_slice() else {
            panic!("one violation, not {violations:?}");
        };
        assert_eq!(
            (violation.reason, violation.source),
            (Reason::Source, stolen)
        );
        assert!(violation.count > before);
    }
}

#[test]
fn the_world_sees_ipv4_translated_and_ipv6_as_it_is() {
    let vpc = vpc();
    let taps = Taps::on_all_wires(&vpc).unwrap();
    let _servers =
        Family::BOTH.map(|family| Server::on(&vpc.world, Plan::web_server(family), PORT).unwrap());
    for (family, seen_as) in [
        (Family::V4, Plan::NAT),
        (Family::V6, primary(&vpc, "worker1", "ens5", Family::V6)),
    ] {
        for protocol in Protocol::BOTH {
            let mark = taps.mark().unwrap();
            let server = SocketAddr::new(Plan::web_server(family), PORT);
            let answer = Client::new(vpc.node("worker1"), protocol)
                .ask(server)
                .unwrap();
            assert_eq!(answer.seen_as.ip(), seen_as);
            let exchange = Exchange::of(&taps.since(mark).unwrap(), &[PORT]);
            assert_eq!(exchange.to_string(), "worker1/ens5 → vpc");
        }
    }
    vpc.assert_no_violations().unwrap();
}

#[test]
fn the_world_does_not_reach_private_ipv4_addresses() {
    let vpc = vpc();
    let private = primary(&vpc, "master", "ens5", Family::V4);
    ping(&vpc.world, None, private, SHORT).unwrap_err();
}

#[test]
fn the_load_balancer_keeps_the_client_address() {
    let vpc = vpc();
    let _servers = Server::on_any(vpc.node("master"), PORT).unwrap();
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            let listener = Listener {
                protocol,
                port: 80,
                target: SocketAddr::new(primary(&vpc, "master", "ens5", family), PORT),
            };
            vpc.edge.listen(&[listener]).unwrap();
            let client = Plan::client(family);
            let answer = Client::new(&vpc.world, protocol)
                .from_ip(client)
                .ask(listener.address())
                .unwrap();
            assert_eq!(answer.seen_as, answer.local);
            assert_eq!(answer.local.ip(), client);
        }
    }
    vpc.assert_no_violations().unwrap();
}
