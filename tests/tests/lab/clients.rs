//! Connections and clients that do more than one request: bulk transfers, ports that move or are reused by another
//! path, and pods that forward.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, UdpSocket},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_tests::two_ways::{
    Case, Site, Way,
    talk::{connection, echoed, in_pod, listener, transfer, udp_client, udp_pair},
};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::{
    iptables,
    netlink::VethEnd,
    netns::Netns,
    patience::PATIENCE,
    plan::{Family, Plan},
    pod::NODE_SIDE,
    tap::Direction,
    traffic::{Client, Protocol, Server, socket},
};
use ipnet::IpNet;
use socket2::SockRef;

#[test]
fn segments_longer_than_the_mtu_pass_in_both_directions_by_the_way_of_the_connection() -> Result<()>
{
    for exempt in [false, true] {
        bulk(exempt).with_context(|| format!("exempt: {exempt}"))?;
    }
    Ok(())
}

fn bulk(exempt: bool) -> Result<()> {
    let mut site = Site::create(Plan {
        exempt,
        ..Plan::default()
    })?;
    // If everything is slow, the kernel makes small segments: of few packets (tcp_tso_autosize), and no longer than
    // half the receiver's window (tcp_bound_to_half_wnd, both include/net/tcp.h and net/ipv4/tcp_output.c), which grows
    // with the speed of the reader. These settings are for both families.
    for end in [site.client(), &site.pod.netns] {
        end.sysctls(&[
            ("net/ipv4/tcp_min_tso_segs", "7"),
            ("net/ipv4/tcp_rmem", "4096 4194304 6291456"),
        ])?;
    }
    site.each(|case| {
        let listener = listener(case)?;
        let mark = case.mark()?;
        let (client, server) = connection(case, &listener, case.client())?;
        transfer(&client, &server).context("to the pod")?;
        transfer(&server, &client).context("from the pod")?;
        let seen = case.took_its_way(mark)?;
        for direction in [Direction::In, Direction::Out] {
            let longest = in_pod(&seen, direction).map(|packet| packet.length).max();
            // As long as the kernel makes them (`GSO_LEGACY_MAX_SIZE`), or nearly.
            ensure!(longest > Some(60_000), "{direction:?}: {longest:?}");
        }
        Ok(())
    })?;
    site.pod.delete()
}

/// QUIC clients do so behind a NAT: the server identifies them by their content and sends, also unasked, to the port
/// that they used last (RFC 9000, section 9).
#[test]
fn a_client_that_moves_to_another_port_is_answered_there() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    site.each(|case| {
        let (server, first) = udp_pair(case)?;
        let second = udp_client(case)?;
        let mark = case.mark()?;
        for client in [&first, &second, &first] {
            client.send(b"connection 7")?;
            let mut buffer = [0; 64];
            let (_, peer) = server.recv_from(&mut buffer)?;
            for number in 0..3_u8 {
                server.send_to(&[number], peer)?;
                ensure!(client.recv(&mut buffer)? == 1 && buffer[0] == number);
            }
        }
        case.took_its_way(mark).map(drop)
    })?;
    site.pod.delete()
}

#[test]
fn a_udp_client_that_comes_by_another_nic_of_the_node_is_answered_there() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    for family in Family::BOTH {
        let case = site.case(Way::NodePort, family);
        let (server, first) = udp_pair(&case)?;
        let from = first.local_addr()?;
        drop(first);
        for way in [
            Way::NodePort,
            Way::OwnNodePort,
            Way::NodePort,
            Way::OwnNodePort,
        ] {
            let case = Case { way, ..case };
            let client: UdpSocket = socket(site.client(), Protocol::Udp, from)?.into();
            client.connect(case.server())?;
            let mark = case.mark()?;
            client.send(b"now here")?;
            let context = || format!("{family}, {way}");
            echoed(&server, &client, b"now here").with_context(context)?;
            case.took_its_way(mark).with_context(context)?;
        }
    }
    site.lab.vpc.assert_no_violations()?;
    ensure!(site.left_to_enforcement()? == 0);
    site.pod.delete()
}

/// The client closes each connection first, so that the server's end is gone.
///
/// For two minutes afterwards the host's conntrack would give the NodePort's address to the answers of a direct
/// connection: these bypass it by the veth.
#[test]
fn a_tcp_client_s_port_is_used_again_by_another_way() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    let mut failed = Vec::new();
    for family in Family::BOTH {
        for first in Way::ALL {
            for second in Way::ALL.into_iter().filter(|second| *second != first) {
                let case = site.case(first, family);
                let listener = listener(&case)?;
                let mut from = case.client();
                let back = match second {
                    Way::Straight => NODE_SIDE,
                    Way::NodePort | Way::OwnNodePort => second.interface(),
                };
                for (way, back) in [(first, first.interface()), (second, back)] {
                    let case = Case { way, ..case };
                    let mark = case.mark()?;
                    let talk = || -> Result<()> {
                        let (client, server) = connection(&case, &listener, from)?;
                        from = client.local_addr()?;
                        (&client).write_all(b"hello")?;
                        (&server).read_exact(&mut [0; 5])?;
                        (&server).write_all(b"hello")?;
                        (&client).read_exact(&mut [0; 5])?;
                        // The client's last segment is sent before it sees the end, so nothing comes late.
                        client.shutdown(Shutdown::Write)?;
                        ensure!((&server).read(&mut [0; 5])? == 0);
                        drop(server);
                        ensure!((&client).read(&mut [0; 5])? == 0);
                        case.came_back_by(back, mark).map(drop)
                    };
                    if let Err(error) = { talk }() {
                        failed.push(format!(
                            "{family}, {first}, then {second}: {way}: {error:#}"
                        ));
                    }
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    site.lab.vpc.assert_no_violations()?;
    ensure!(site.left_to_enforcement()? == 0);
    site.pod.delete()
}

/// Checks that the client is told that nobody listens.
fn is_refused(case: &Case<'_>, from: SocketAddr) -> Result<()> {
    let client = socket(case.site.client(), Protocol::Tcp, from)?;
    match client.connect_timeout(&case.server().into(), PATIENCE) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => bail!("not refused, but {error}"),
        Ok(()) => bail!("who listens?"),
    }
}

/// The reset is no socket's, so nothing of it was accepted by the way of the second attempt.
fn refused_by_another_way(mode: IpvlanMode) -> Result<()> {
    let site = Site::create(Plan {
        mode,
        ..Plan::default()
    })?;
    let mut failed = Vec::new();
    for family in Family::BOTH {
        for first in Way::ALL {
            for second in Way::ALL.into_iter().filter(|second| *second != first) {
                let case = site.case(first, family);
                let then = Case {
                    way: second,
                    ..case
                };
                let back = match (mode, second) {
                    // Past the host's conntrack, which knows the connection by the other way.
                    (IpvlanMode::L3, Way::Straight) => NODE_SIDE,
                    _ => second.interface(),
                };
                let talk = || -> Result<()> {
                    let listener = listener(&case)?;
                    let (client, server) = connection(&case, &listener, case.client())?;
                    let from = client.local_addr()?;
                    drop(listener);
                    client.shutdown(Shutdown::Write)?;
                    ensure!((&server).read(&mut [0; 5])? == 0);
                    drop(server);
                    ensure!((&client).read(&mut [0; 5])? == 0);
                    let mark = case.mark()?;
                    is_refused(&then, from)?;
                    then.came_back_by(back, mark).map(drop)
                };
                if let Err(error) = { talk }() {
                    failed.push(format!("{family}, {first}, then {second}: {error:#}"));
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    site.lab.vpc.assert_no_violations()?;
    site.pod.delete()
}

#[test]
fn where_nobody_listens_any_more_a_client_is_refused_by_another_way() -> Result<()> {
    refused_by_another_way(IpvlanMode::L3)
}

#[test]
fn where_nobody_listens_any_more_a_client_is_refused_by_another_way_in_l2() -> Result<()> {
    refused_by_another_way(IpvlanMode::L2)
}

/// Connects by a NodePort, and from the same port directly. The host's conntrack still has the first connection, and
/// nothing of the node's can correct what it would do to the answers of the direct one.
fn directly_after_a_node_port(site: &Site, prepare: fn(&TcpListener) -> Result<()>) -> Result<()> {
    for family in Family::BOTH {
        for first in [Way::NodePort, Way::OwnNodePort] {
            let case = site.case(first, family);
            let listener = listener(&case)?;
            prepare(&listener)?;
            let mut from = case.client();
            for way in [first, Way::Straight] {
                let case = Case { way, ..case };
                let mark = case.mark()?;
                let context = || format!("{family}, {first}, now {way}");
                let (client, server) = connection(&case, &listener, from).with_context(context)?;
                from = client.local_addr()?;
                (&server).write_all(b"hello")?;
                (&client).read_exact(&mut [0; 5]).with_context(context)?;
                client.shutdown(Shutdown::Write)?;
                ensure!((&server).read(&mut [0; 5])? == 0);
                drop(server);
                ensure!((&client).read(&mut [0; 5])? == 0);
                if way == Way::Straight {
                    case.came_back_by(NODE_SIDE, mark).with_context(context)?;
                }
            }
        }
    }
    site.lab.vpc.assert_no_violations()
}

/// No accepted socket inherits a mark there.
#[test]
fn a_client_of_a_server_with_a_mark_of_its_own_may_come_directly_after_a_node_port() -> Result<()> {
    let site = Site::create(Plan::default())?;
    directly_after_a_node_port(&site, |listener| {
        Ok(SockRef::from(listener).set_mark(0x40_0000)?)
    })?;
    site.pod.delete()
}

/// The SYN is forgotten by then: the socket is made of the client's next segment.
#[test]
fn a_client_that_is_answered_with_syn_cookies_may_come_directly_after_a_node_port() -> Result<()> {
    let site = Site::create(Plan::default())?;
    let always = [("net/ipv4/tcp_syncookies", "2")];
    site.pod.netns.sysctls(&always)?;
    directly_after_a_node_port(&site, |_| Ok(()))?;
    site.pod.delete()
}

/// Creates a container inside the pod, which the pod reaches by its own forwarding.
fn container(site: &Site) -> Result<Netns> {
    let inner = Netns::new("container")?;
    let (pod, netlink) = (&site.pod.netns, site.pod.netns.netlink()?);
    // The addresses can be used at once.
    let no_dad = [
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ];
    pod.sysctls(&no_dad)?;
    inner.sysctls(&no_dad)?;
    let ends = [(pod, "inner0", 1), (&inner, "eth0", 2)];
    let [near, far] = ends.map(|(netns, name, last)| VethEnd {
        netns,
        name,
        mac: [2, 0, 0, 0, 7, last],
    });
    netlink.add_veth(&near, &far, 1500)?;
    let inside = inner.netlink()?;
    inside.set_up("eth0")?;
    for (net, gateway, everything) in [
        ("10.200.0.0/24", "10.200.0.1", "0.0.0.0/0"),
        ("fd00:200::/64", "fd00:200::1", "::/0"),
    ] {
        let net: IpNet = net.parse()?;
        let mut hosts = net.hosts().filter(|host| *host != net.network());
        let (first, second) = (hosts.next(), hosts.next());
        let on = |address: Option<IpAddr>| -> Result<IpNet> {
            Ok(IpNet::new(
                address.context("an address")?,
                net.prefix_len(),
            )?)
        };
        netlink.add_address("inner0", on(first)?)?;
        inside.add_address("eth0", on(second)?)?;
        inside.add_route(everything.parse()?, gateway.parse()?)?;
    }
    pod.sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    Ok(inner)
}

/// Starts a server in the container, to which the pod forwards requests for its own address.
fn pass_on(case: &Case<'_>, inner: &Netns, protocol: Protocol) -> Result<Server> {
    let target: IpAddr = match case.family {
        Family::V4 => "10.200.0.2".parse()?,
        Family::V6 => "fd00:200::2".parse()?,
    };
    let (port, target) = (case.port, SocketAddr::new(target, case.port));
    let script = format!(
        "*nat\n-A PREROUTING -p {protocol} --dport {port} -j DNAT --to-destination {target}\nCOMMIT\n"
    );
    iptables::restore(&case.site.pod.netns, case.family, &script)?;
    let any = SocketAddr::new(case.family.any(), port);
    Server::start(inner, protocol, any)
}

/// Checks flows that only the programs remember, since no socket of the pod receives them.
fn pass_on_by_every_way(plan: Plan) -> Result<()> {
    let mut site = Site::create(plan)?;
    let inner = container(&site)?;
    site.each(|case| {
        for protocol in Protocol::BOTH {
            let _server = pass_on(case, &inner, protocol)?;
            let mark = case.mark()?;
            let client = Client::new(case.site.client(), protocol).from(case.client());
            let context = || protocol.to_string();
            client.ask(case.server()).with_context(context)?;
            case.took_its_way(mark).with_context(context)?;
        }
        Ok(())
    })?;
    site.pod.delete()
}

#[test]
fn what_a_pod_passes_on_by_its_own_dnat_is_answered_where_it_came_in() -> Result<()> {
    pass_on_by_every_way(Plan::default())
}

#[test]
fn what_a_pod_passes_on_by_its_own_dnat_is_answered_where_it_came_in_in_l2() -> Result<()> {
    pass_on_by_every_way(Plan {
        mode: IpvlanMode::L2,
        ..Plan::default()
    })
}

#[test]
fn what_a_pod_passes_on_by_its_own_dnat_is_answered_where_it_came_in_past_the_host() -> Result<()> {
    pass_on_by_every_way(Plan {
        exempt: true,
        ..Plan::default()
    })
}
