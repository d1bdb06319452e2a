//! Foreign marks: marks of sockets, firewalls and service meshes stay as they are, in the pod and in the host, and do
//! not misroute replies.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_layout::{DEFAULT_MARK, DEFAULT_POD_NICS};
use ebbtide_tests::two_ways::{
    Case, Site, Way,
    talk::{connection, echoed, listener, set_option, transfer, udp_pair},
};
use ebbtide_vpc::{
    iptables,
    netns::Netns,
    patience::{PATIENCE, eventually},
    ping::ping,
    plan::{Family, Plan},
    snapshot::{ip, run},
    traffic::{Client, Protocol, Server, socket},
};
use nix::libc;

/// Istio's mark, and a bit that nobody uses.
const THEIRS: u32 = 1337 | 0x40_0000;
/// That bit alone, as a firewall of the node sets it.
const FIREWALL: u32 = 0x40_0000;

/// Installs rules that count packets, each with a name.
fn count(netns: &Netns, family: Family, rules: &[(&str, String)]) -> Result<()> {
    let lines = rules
        .iter()
        .map(|(name, rule)| format!("-A {rule} -m comment --comment {name}\n"));
    let script = format!("*mangle\n{}COMMIT\n", lines.collect::<String>());
    iptables::restore(netns, family, &script)
}

/// Returns the count of a rule of [`count`].
fn counted(netns: &Netns, family: Family, name: &str) -> Result<u64> {
    let rules = iptables::save(netns, family, "mangle")?;
    let line = rules.lines().find(|line| line.contains(name));
    let line = line.with_context(|| format!("no {name} in {rules}"))?;
    let count = line.trim_start_matches('[').split(':').next();
    Ok(count.context("a counter")?.parse()?)
}

#[test]
fn the_mark_of_a_udp_server_s_socket_is_on_its_answers_whatever_interface_they_leave_by()
-> Result<()> {
    let mut site = Site::create(Plan::default())?;
    let theirs = format!("{THEIRS:#x}");
    // Behind the program that redirects replies to the veth.
    let seen = [
        "filter", "add", "dev", "veth0", "egress", "prio", "7", "protocol", "all",
    ];
    let fits = ["handle", theirs.as_str(), "fw", "action", "ok"];
    run(&site.pod.netns, "tc", &[&seen[..], &fits].concat())?;
    let count_of = |site: &Site| -> Result<u64> {
        let text = run(
            &site.pod.netns,
            "tc",
            &["-s", "filter", "show", "dev", "veth0", "egress"],
        )?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let packets = words.windows(2).filter(|pair| pair[1].starts_with("pkt"));
        Ok(packets.filter_map(|pair| pair[0].parse::<u64>().ok()).sum())
    };
    site.each(|case| {
        let (pod, port) = (&case.site.pod.netns, case.port);
        let came = match case.way {
            Way::Straight => 0,
            Way::NodePort | Way::OwnNodePort => DEFAULT_MARK,
        };
        // By which of the node's NICs it came is for the mark to say.
        let only = |mark: u32| format!("-m mark --mark {mark:#x}/{:#x}", !DEFAULT_POD_NICS);
        count(
            pod,
            case.family,
            &[
                (
                    &format!("came-{port}"),
                    format!("INPUT -p udp --dport {port} {}", only(came)),
                ),
                (
                    &format!("went-{port}"),
                    format!("POSTROUTING -p udp --sport {port} {}", only(THEIRS)),
                ),
            ],
        )?;
        let (server, client) = udp_pair(case)?;
        socket2::SockRef::from(&server).set_mark(THEIRS)?;
        let before = count_of(case.site)?;
        let mark = case.mark()?;
        for _ in 0..3 {
            client.send(b"hello")?;
            echoed(&server, &client, b"hello")?;
        }
        case.took_its_way(mark)?;
        for name in ["came", "went"] {
            let packets = counted(pod, case.family, &format!("{name}-{port}"))?;
            ensure!(
                packets == 3,
                "{name}: {packets} of 3 with the mark and no other bit"
            );
        }
        let by_veth = count_of(case.site)? - before;
        let expected = if case.way == Way::Straight { 0 } else { 3 };
        ensure!(by_veth == expected, "{by_veth} by the veth with the mark");
        Ok(())
    })?;
    site.pod.delete()
}

/// A firewall of the node marks all packets, requests and replies, with a bit of its own.
#[test]
fn a_bit_that_the_node_s_firewall_sets_stays_set_and_answers_leave_where_they_should() -> Result<()>
{
    let mut site = Site::create(Plan::default())?;
    for family in Family::BOTH {
        let set = format!("-j MARK --set-xmark {FIREWALL:#x}/{FIREWALL:#x}");
        let script = format!("*mangle\n-A PREROUTING {set}\n-A FORWARD {set}\nCOMMIT\n");
        iptables::restore(site.node(), family, &script)?;
    }
    site.each(|case| {
        let (node, port) = (case.site.node(), case.port);
        let veth = &case.site.pod.host_interface;
        let nic = case.way.nic();
        let has = format!("-m mark --mark {FIREWALL:#x}/{FIREWALL:#x}");
        count(
            node,
            case.family,
            &[
                (
                    &format!("in-{port}"),
                    format!("POSTROUTING -o {veth} -p udp --dport {port} {has}"),
                ),
                (
                    &format!("out-{port}"),
                    format!("POSTROUTING -o {nic} -p udp --sport {port} {has}"),
                ),
            ],
        )?;
        for protocol in Protocol::BOTH {
            let any = SocketAddr::new(case.family.any(), port);
            let _server = Server::start(&case.site.pod.netns, protocol, any)?;
            let mark = case.mark()?;
            let client = Client::new(case.site.client(), protocol).from(case.client());
            client
                .ask(case.server())
                .with_context(|| protocol.to_string())?;
            case.took_its_way(mark)
                .with_context(|| protocol.to_string())?;
        }
        if case.way != Way::Straight {
            for name in ["in", "out"] {
                let packets = counted(node, case.family, &format!("{name}-{port}"))?;
                ensure!(
                    packets == 3,
                    "{name}: {packets} of 3 have the firewall's bit"
                );
            }
        }
        Ok(())
    })?;
    site.pod.delete()
}

/// An accepted socket does not inherit a packet's mark if its listener has one (`inet_request_mark`,
/// include/net/inet_sock.h). Its replies follow the routing table, and source-NIC enforcement redirects them.
#[test]
fn a_tcp_server_with_a_mark_of_its_own_is_answered_with_the_help_of_source_nic_enforcement()
-> Result<()> {
    let mut site = Site::create(Plan::default())?;
    for family in Family::BOTH {
        for way in Way::ALL {
            let case = site.case(way, family);
            let context = || format!("{family}, {way}");
            let listener = listener(&case)?;
            socket2::SockRef::from(&listener).set_mark(THEIRS)?;
            let mark = case.mark()?;
            let (mut client, mut server) =
                connection(&case, &listener, case.client()).with_context(context)?;
            client.write_all(b"hello\n")?;
            server.write_all(b"hello\n")?;
            let mut line = String::new();
            BufReader::new(&client).read_line(&mut line)?;
            ensure!(socket2::SockRef::from(&server).mark()? == THEIRS);
            case.came_back_by("eth0", mark).with_context(context)?;
        }
    }
    site.lab.vpc.assert_no_violations()?;
    ensure!(site.left_to_enforcement()? > 0, "who helped?");
    site.pod.delete()
}

/// Starts a proxy like a mesh's sidecar: it forwards redirected connections to the application; the redirection does
/// not change the mark.
fn proxy(pod: &Netns, any: SocketAddr, application: SocketAddr) -> Result<()> {
    let listener = socket(pod, Protocol::Tcp, any)?;
    listener.listen(16)?;
    let listener: TcpListener = listener.into();
    let _ends_with_the_first = pod.spawn(move || {
        let (mut accepted, _) = listener.accept()?;
        let upstream = socket2::Socket::new(
            socket2::Domain::for_address(application),
            socket2::Type::STREAM,
            None,
        )?;
        upstream.set_mark(1337)?;
        upstream.connect(&application.into())?;
        let mut upstream: TcpStream = upstream.into();
        for line in BufReader::new(accepted.try_clone()?).lines() {
            upstream.write_all(format!("{}\n", line?).as_bytes())?;
            let mut answer = String::new();
            BufReader::new(&upstream).read_line(&mut answer)?;
            accepted.write_all(answer.as_bytes())?;
        }
        Ok(())
    });
    Ok(())
}

#[test]
fn behind_a_mesh_s_redirection_answers_leave_as_their_questions_came() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    site.each(|case| {
        let (pod, family, port) = (&case.site.pod.netns, case.family, case.port);
        let loopback = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let application = SocketAddr::new(loopback, port);
        let _server = Server::start(pod, Protocol::Tcp, application)?;
        let inbound = SocketAddr::new(family.any(), port + 7000);
        let to_proxy = format!("-j REDIRECT --to-ports {}", inbound.port());
        // Everything is redirected to the proxy, except what the proxy itself sends.
        let script = format!(
            "*nat\n-A PREROUTING -p tcp --dport {port} {to_proxy}\n\
             -A OUTPUT -m mark --mark 1337 -j RETURN\n\
             -A OUTPUT -p tcp --dport {port} {to_proxy}\nCOMMIT\n"
        );
        iptables::restore(pod, family, &script)?;
        let only = format!("-m mark --mark {:#x}/0xffffffff", 1337);
        let upstream = format!("OUTPUT -o lo -p tcp --dport {port} {only}");
        count(pod, family, &[(&format!("upstream-{port}"), upstream)])?;
        proxy(pod, inbound, application)?;
        let mark = case.mark()?;
        let asking = Client::new(case.site.client(), Protocol::Tcp).from(case.client());
        let answer = asking.connect(case.server())?.ask()?;
        ensure!(
            answer.seen_as.ip() == loopback,
            "seen as {}",
            answer.seen_as
        );
        case.took_its_way(mark)?;
        let packets = counted(pod, family, &format!("upstream-{port}"))?;
        ensure!(
            packets >= 3,
            "{packets} with the proxy's mark and no other bit"
        );
        Ok(())
    })?;
    site.pod.delete()
}

/// Installs rules of a transparent proxy: connections to some ports go to the proxy, by a mark and a rule.
fn proxy_transparently(pod: &Netns, ports: &str) -> Result<()> {
    for family in Family::BOTH {
        let by = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        ip(pod, &[by, "rule", "add", "fwmark", "1337", "lookup", "133"])?;
        let route = [
            "route", "add", "local", "default", "dev", "lo", "table", "133",
        ];
        ip(pod, &[&[by], &route[..]].concat())?;
        let proxied = format!("--on-port {PROXY} --tproxy-mark 1337/0xffffffff");
        let script =
            format!("*mangle\n-A PREROUTING -p tcp --dport {ports} -j TPROXY {proxied}\nCOMMIT\n");
        iptables::restore(pod, family, &script)?;
    }
    Ok(())
}

/// The port of the transparent proxy.
const PROXY: u16 = 15006;

/// Opens the proxy's socket, which accepts connections to foreign addresses.
fn transparent(case: &Case<'_>) -> Result<TcpListener> {
    let listener = listener(&Case {
        port: PROXY,
        ..*case
    })?;
    let (level, name) = match case.family {
        Family::V4 => (libc::SOL_IP, libc::IP_TRANSPARENT),
        Family::V6 => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    set_option(&listener, level, name, &1_i32.to_ne_bytes())?;
    Ok(listener)
}

/// Waits until the pod's sockets do not take marks any more.
fn followed(pod: &Netns) -> Result<()> {
    eventually("the pod's connections to be followed", || {
        let accept = run(pod, "sysctl", &["-n", "net.ipv4.tcp_fwmark_accept"])?;
        ensure!(accept.trim() == "0", "tcp_fwmark_accept is {accept}");
        Ok(())
    })
}

/// Checks a connection with data in both directions, and the path of each packet.
fn talk(case: &Case<'_>, listener: &TcpListener) -> Result<()> {
    let mark = case.mark()?;
    let (client, server) = connection(case, listener, case.client())?;
    transfer(&client, &server)?;
    transfer(&server, &client)?;
    drop((client, server));
    case.took_its_way(mark)?;
    Ok(())
}

#[test]
fn behind_a_transparent_proxy_answers_leave_as_their_questions_came() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    proxy_transparently(&site.pod.netns, "8000:14999")?;
    followed(&site.pod.netns)?;
    site.each(|case| talk(case, &transparent(case)?))
        .context("proxied")?;
    for family in Family::BOTH {
        iptables::restore(&site.pod.netns, family, "*mangle\n-F\nCOMMIT\n")?;
    }
    site.each(|case| talk(case, &listener(case)?))
        .context("not proxied, in the same pod")?;
    site.pod.delete()
}

#[test]
fn a_transparent_proxy_that_came_while_no_agent_ran_is_found() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    site.lab.agent("master").kill()?;
    proxy_transparently(&site.pod.netns, "8000:14999")?;
    site.lab.agent("master").launch()?;
    site.lab.agent("master").wait_ready()?;
    followed(&site.pod.netns)?;
    site.each(|case| talk(case, &transparent(case)?))?;
    // The next agent reads it from the record.
    site.lab.agent("master").stop()?;
    site.lab.agent("master").launch()?;
    site.lab.agent("master").wait_ready()?;
    site.each(|case| talk(case, &transparent(case)?))
        .context("with another agent")?;
    site.pod.delete()
}

/// What the pod's kernel sends in answer to marked packets, as matches of iptables.
fn kinds(family: Family) -> [(&'static str, &'static str); 7] {
    let (echo, unreachable) = match family {
        Family::V4 => (
            "-p icmp --icmp-type echo-reply",
            "-p icmp --icmp-type port-unreachable",
        ),
        Family::V6 => (
            "-p icmpv6 --icmpv6-type echo-reply",
            "-p icmpv6 --icmpv6-type destination-unreachable",
        ),
    };
    [
        ("syn-ack", "-p tcp --tcp-flags SYN,ACK,RST SYN,ACK"),
        ("data", "-p tcp --tcp-flags SYN,RST,FIN,PSH PSH"),
        ("fin", "-p tcp --tcp-flags SYN,RST,FIN FIN"),
        ("ack", "-p tcp --tcp-flags SYN,RST,FIN,PSH,ACK ACK"),
        ("rst", "-p tcp --tcp-flags RST RST"),
        ("echo", echo),
        ("unreachable", unreachable),
    ]
}

/// Where no rule routes marked packets, the program at `eth0` redirects what has the mark. So each packet must have it,
/// not only the kernel's lookup of its route.
#[test]
fn whatever_the_kernel_answers_to_a_marked_packet_has_the_mark() -> Result<()> {
    let site = Site::create(Plan::default())?;
    let (pod, node) = (&site.pod.netns, site.node());
    let mut missing = Vec::new();
    for family in Family::BOTH {
        let own = site.pod.address(family);
        let mut rules = Vec::new();
        for (kind, fits) in kinds(family) {
            for (with, not) in [("with", ""), ("less", "! ")] {
                let mark = format!("-m mark {not}--mark {DEFAULT_MARK:#x}/{DEFAULT_MARK:#x}");
                let rule = format!("POSTROUTING -s {own} {fits} {mark}");
                rules.push((format!("{with}-{kind}."), rule));
            }
        }
        let rules: Vec<_> = rules
            .iter()
            .map(|(name, rule)| (name.as_str(), rule.clone()))
            .collect();
        count(pod, family, &rules)?;
        let case = site.case(Way::Straight, family);
        let listener = listener(&case)?;
        let connect = || -> Result<(TcpStream, TcpStream)> {
            let from = SocketAddr::new(family.any(), 0);
            let client = socket(node, Protocol::Tcp, from)?;
            client.connect(&SocketAddr::new(own, case.port).into())?;
            Ok((client.into(), listener.accept()?.0))
        };
        let (client, server) = connect()?;
        transfer(&client, &server)?;
        transfer(&server, &client)?;
        drop((client, server));
        // The server closes first: the last acknowledgement is of a socket in TIME_WAIT.
        let (mut client, server) = connect()?;
        drop(server);
        let end = client.read(&mut [0])?;
        ensure!(end == 0);
        let acks = || counted(pod, family, "with-ack.");
        let before = acks()?;
        drop(client);
        let in_time = eventually("the acknowledgement in TIME_WAIT", || {
            ensure!(acks()? > before);
            Ok(())
        });
        if in_time.is_err() {
            missing.push(format!("{family}: an acknowledgement in TIME_WAIT"));
        }
        // A connection that the server aborts, and one that nobody accepts.
        let (client, server) = connect()?;
        (&client).write_all(b"unread")?;
        thread::sleep(Duration::from_millis(100));
        drop(server);
        drop(client);
        let closed = SocketAddr::new(own, 7);
        // With SYN cookies no request is kept, from which the mark could be taken.
        for cookies in ["2", "1"] {
            pod.sysctls(&[("net/ipv4/tcp_syncookies", cookies)])?;
            drop(connect()?);
        }
        let refused = socket(node, Protocol::Tcp, SocketAddr::new(family.any(), 0))?;
        ensure!(refused.connect(&closed.into()).is_err());
        let unheard = socket(node, Protocol::Udp, SocketAddr::new(family.any(), 0))?;
        unheard.connect(&closed.into())?;
        unheard.send(b"hello")?;
        ping(node, None, own, PATIENCE)?;
        for (kind, _) in kinds(family) {
            let [with, less] =
                ["with", "less"].map(|with| counted(pod, family, &format!("{with}-{kind}.")));
            let (with, less) = (with?, less?);
            println!("{family} {kind}: {with} with, {less} without");
            if with == 0 || less > 0 {
                missing.push(format!("{family} {kind}: {with} with, {less} without"));
            }
        }
    }
    ensure!(missing.is_empty(), "{missing:#?}");
    site.pod.delete()
}
