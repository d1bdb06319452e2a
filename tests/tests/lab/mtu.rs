//! The NIC's MTU holds on every path, and each sender learns a smaller one further on.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::two_ways::{
    Case, Site, Way,
    talk::{connection, echoed, in_pod, listener, option, pattern, set_option, transfer, udp_pair},
};
use ebbtide_vpc::{
    iptables,
    patience::PATIENCE,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    tap::Direction,
    traffic::{Protocol, socket},
    vpc::EDGE_PORT,
};
use nix::libc;

/// The MTU of clouds.
const MTU: usize = 9001;
/// The MTU beyond the gateway.
const NARROW: usize = 1400;

/// Returns the length of the IP and UDP headers.
fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

/// Forbids fragmentation, here and on the path.
fn whole(family: Family, socket: &UdpSocket) -> Result<()> {
    let (level, name) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    set_option(socket, level, name, &libc::IP_PMTUDISC_DO.to_ne_bytes())
}

fn is_too_long(sent: &std::io::Result<usize>) -> bool {
    matches!(sent, Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE))
}

/// Without and with the option that makes pods' packets bypass the node's stack.
const EXEMPT: [bool; 2] = [false, true];

fn site(exempt: bool) -> Result<Site> {
    Site::create(Plan {
        exempt,
        ..Plan::default()
    })
}

#[test]
fn packets_as_long_as_the_nics_mtu_pass_whole_by_every_way_and_longer_ones_by_none() -> Result<()> {
    EXEMPT.into_iter().try_for_each(longest_packets)
}

fn longest_packets(exempt: bool) -> Result<()> {
    let mut site = site(exempt)?;
    site.each(|case| {
        let (server, client) = udp_pair(case)?;
        whole(case.family, &server)?;
        whole(case.family, &client)?;
        let longest = pattern(MTU - headers(case.family));
        let mark = case.mark()?;
        client.send(&longest)?;
        echoed(&server, &client, &longest)?;
        let seen = case.took_its_way(mark)?;
        for direction in [Direction::In, Direction::Out] {
            let lengths: Vec<usize> = in_pod(&seen, direction).map(|p| p.length).collect();
            ensure!(lengths == [MTU], "{direction:?}: {lengths:?}");
        }
        let longer = pattern(longest.len() + 1);
        ensure!(is_too_long(&client.send(&longer)), "the client's");
        let to = client.local_addr()?;
        ensure!(is_too_long(&server.send_to(&longer, to)), "the server's");
        Ok(())
    })?;
    let links = [
        (&site.pod.netns, "eth0"),
        (&site.pod.netns, "veth0"),
        (site.node(), site.pod.host_interface.as_str()),
    ];
    for (netns, link) in links {
        let shown = ip(netns, &["link", "show", "dev", link])?;
        ensure!(shown.contains("mtu 9001"), "{shown}");
    }
    // The redirect device has no limit of its own.
    let shown = ip(site.node(), &["link", "show", "dev", "ebbtide0"])?;
    ensure!(shown.contains("mtu 65535"), "{shown}");
    site.pod.delete()
}

/// A ClusterIP without masquerading: the answer comes in by the pod's NIC and is redirected into the host, which undoes
/// the DNAT and forwards it by the veth.
#[test]
fn packets_as_long_as_the_nics_mtu_pass_the_redirect_device() -> Result<()> {
    let site = Site::create(Plan::default())?;
    for family in Family::BOTH {
        let case = site.case(Way::Straight, family);
        let service: SocketAddr = match family {
            Family::V4 => "10.96.0.99:80".parse()?,
            Family::V6 => "[fd00:10:96::99]:80".parse()?,
        };
        let backend: UdpSocket = socket(site.client(), Protocol::Udp, case.client())?.into();
        let target = backend.local_addr()?;
        let rule = format!(
            "*nat\n-A PREROUTING -d {} -p udp --dport 80 -j DNAT --to-destination {target}\nCOMMIT\n",
            service.ip()
        );
        iptables::restore(site.node(), family, &rule)?;
        let any = SocketAddr::new(family.any(), case.port);
        let pod: UdpSocket = socket(&site.pod.netns, Protocol::Udp, any)?.into();
        pod.connect(service)?;
        whole(family, &pod)?;
        whole(family, &backend)?;
        let longest = pattern(MTU - headers(family));
        let mark = case.mark()?;
        pod.send(&longest)?;
        echoed(&backend, &pod, &longest).with_context(|| family.to_string())?;
        let seen = site.lab.taps.since(mark)?;
        let by_veth = Way::NodePort.interface();
        for direction in [Direction::In, Direction::Out] {
            let passed = in_pod(&seen, direction)
                .any(|packet| packet.length == MTU && packet.is_in_pod_at(by_veth));
            ensure!(passed, "{family}, {direction:?}: {seen:#?}");
        }
    }
    site.lab.vpc.assert_no_violations()?;
    site.pod.delete()
}

/// Creates a site whose router has a smaller MTU towards the client. Nobody else knows it: the client's own link has
/// 9001, and so does its MSS.
fn narrowed(exempt: bool) -> Result<Site> {
    let site = site(exempt)?;
    let mtu = NARROW.to_string();
    for family in Family::BOTH {
        let client = Plan::edge_link(family).edge.addr();
        let to = format!("{client}/{}", family.host_prefix());
        // An MTU that is not locked does not limit forwarded packets (`ip_dst_mtu_maybe_forward`).
        let route = ["route", "add", &to, "dev", EDGE_PORT, "mtu", "lock", &mtu];
        ip(&site.lab.vpc.router, &route)?;
    }
    Ok(site)
}

/// Runs an exchange on each path, each with a pod of its own, since the pod's knowledge about the client holds for all
/// paths. Nobody else learns: a router that cannot forward a packet sends the error to the pod.
fn by_each_way(exchange: impl Fn(&Case<'_>) -> Result<()>) -> Result<()> {
    for (exempt, ways) in [(false, &Way::ALL[..]), (true, &[Way::Straight])] {
        let mut site = narrowed(exempt)?;
        let mut others = Vec::new();
        for (number, way) in ways.iter().enumerate() {
            others.push(site.replace_pod(&format!("c{number}"))?);
            for family in Family::BOTH {
                let context = || format!("{family}, {way}, exempt: {exempt}\n{}", site.lab.logs());
                exchange(&site.case(*way, family)).with_context(context)?;
            }
            site.lab.vpc.assert_no_violations()?;
            ensure!(
                site.left_to_enforcement()? == 0,
                "{way}: to source-NIC enforcement"
            );
        }
        others.push(site.pod);
        others.into_iter().try_for_each(Pod::delete)?;
    }
    Ok(())
}

#[test]
fn a_tcp_server_in_a_pod_learns_a_smaller_mtu_by_the_way_of_the_connection() -> Result<()> {
    by_each_way(|case| {
        let listener = listener(case)?;
        let mark = case.mark()?;
        let (client, server) = connection(case, &listener, case.client())?;
        let (level, name) = match case.family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let before = option(&server, level, name)?;
        ensure!(before == MTU as i32, "{before} before it could know");
        transfer(&server, &client)?;
        let after = option(&server, level, name)?;
        ensure!(after == NARROW as i32, "{after}");
        let seen = case.seen(mark)?;
        let too_big = in_pod(&seen, Direction::In).filter(|packet| packet.icmp.is_some());
        ensure!(too_big.count() == 0, "the client complained");
        case.took_its_way(mark).map(drop)
    })
}

#[test]
fn a_udp_server_in_a_pod_learns_a_smaller_mtu_by_the_way_of_the_question() -> Result<()> {
    by_each_way(|case| {
        let (server, client) = udp_pair(case)?;
        whole(case.family, &server)?;
        client.send(b"hello")?;
        let mut buffer = vec![0; 65536];
        let (_, peer) = server.recv_from(&mut buffer)?;
        let mark = case.mark()?;
        let longest = pattern(MTU - headers(case.family));
        let start = Instant::now();
        let mut sent = server.send_to(&longest, peer);
        ensure!(sent.is_ok(), "it could not know yet: {sent:?}");
        while !is_too_long(&sent) {
            ensure!(start.elapsed() < PATIENCE, "it never learned: {sent:?}");
            std::thread::yield_now();
            sent = server.send_to(&longest, peer);
        }
        let fits = pattern(NARROW - headers(case.family));
        server.send_to(&fits, peer)?;
        ensure!(
            client.recv(&mut buffer)? == fits.len(),
            "the longest that fits"
        );
        let longer = server.send_to(&pattern(fits.len() + 1), peer);
        ensure!(is_too_long(&longer), "{longer:?}");
        let seen = case.seen(mark)?;
        ensure!(in_pod(&seen, Direction::Out).all(|p| p.is_in_pod_at(case.back())));
        // Packets that may be fragmented are, for IPv6 by the sender, and replies still leave by the same path.
        let (level, name) = match case.family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        };
        set_option(&server, level, name, &libc::IP_PMTUDISC_WANT.to_ne_bytes())?;
        let mark = case.mark()?;
        client.send(b"more")?;
        let (_, peer) = server.recv_from(&mut buffer)?;
        server.send_to(&longest, peer)?;
        match client.recv(&mut buffer) {
            Ok(length) => ensure!(length == longest.len()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => anyhow::bail!("lost"),
            Err(error) => return Err(error.into()),
        }
        let seen = case.took_its_way(mark)?;
        let fragments = in_pod(&seen, Direction::Out);
        ensure!(
            fragments.filter(|p| p.length <= NARROW).count() == 7,
            "{seen:#?}"
        );
        Ok(())
    })
}
