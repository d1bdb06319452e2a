//! Protocols other than plain TCP and UDP, with real sockets and kernels: the reply leaves by the path of its request,
//! directly or through the node, at either NIC. `native/protocols.rs` has the same for each program alone.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_programs::packets::{extended, fragments};
use ebbtide_tests::two_ways::{
    Site,
    talk::{echoed, in_pod, pattern, set_option, udp_client, udp_pair},
};
use ebbtide_vpc::{
    netns::Netns,
    patience::PATIENCE,
    ping::ping,
    plan::{Family, Plan},
    skip::{Need, skip},
    tap::Direction,
    traffic::{Client, Protocol},
};
use nix::libc;
use socket2::{Domain, Socket, Type};

/// The time limit for what must not arrive.
const SHORT: Duration = Duration::from_millis(300);
/// An MTU by which 8000 bytes make six fragments.
const NARROW: u32 = 1500;
/// The request. With the UDP header it has 32 bytes, a length that frames can be split into fragments of.
const QUESTION: &[u8; 24] = b"which way did this come?";

fn narrow() -> Result<Site> {
    Site::create(Plan {
        mtu: NARROW,
        ..Plan::default()
    })
}

#[test]
fn a_datagram_of_many_fragments_is_answered_in_fragments_by_the_way_it_came() -> Result<()> {
    let mut site = narrow()?;
    site.each(|case| {
        let (server, client) = udp_pair(case)?;
        let mark = case.mark()?;
        let question = pattern(8000);
        client.send(&question)?;
        echoed(&server, &client, &question)?;
        let seen = case.took_its_way(mark)?;
        for direction in [Direction::In, Direction::Out] {
            let count = in_pod(&seen, direction).count();
            ensure!(count == 6, "{count} fragments {direction:?}");
        }
        Ok(())
    })?;
    site.pod.delete()
}

#[test]
fn fragments_in_another_order_are_put_together_and_a_lost_one_harms_nobody() -> Result<()> {
    let mut site = narrow()?;
    site.each(|case| {
        let (server, client) = udp_pair(case)?;
        let question = case.datagram(client.local_addr()?.port(), QUESTION)?;
        let mark = case.mark()?;
        for (id, order) in [(1, [2, 1, 0]), (2, [1, 0, 2]), (3, [0, 2, 1])] {
            let parts = fragments(&question, id);
            case.send(order.map(|part| parts[part].clone()))?;
            echoed(&server, &client, QUESTION).with_context(|| format!("{order:?}"))?;
        }
        let [_lost, second, third] = fragments(&question, 4);
        case.send([second, third])?;
        server.set_read_timeout(Some(SHORT))?;
        ensure!(server.recv(&mut [0; 16]).is_err(), "half a packet came");
        server.set_read_timeout(Some(PATIENCE))?;
        case.send(fragments(&question, 5))?;
        echoed(&server, &client, QUESTION).context("after a lost one")?;
        case.took_its_way(mark).map(drop)
    })?;
    site.pod.delete()
}

#[test]
fn echo_requests_are_answered_by_the_way_they_came() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    site.each(|case| {
        let mark = case.mark()?;
        let from = Some(case.client().ip());
        for _ in 0..2 {
            ping(case.site.client(), from, case.address(), PATIENCE)?;
        }
        case.took_its_way(mark).map(drop)
    })?;
    site.pod.delete()
}

#[test]
fn refusals_of_closed_ports_leave_by_the_way_of_the_question() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    site.each(|case| {
        let mark = case.mark()?;
        let client = udp_client(case)?;
        client.send(b"anybody there?")?;
        match client.recv(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            other => bail!("UDP: {other:?}"),
        }
        let connecting = Client::new(case.site.client(), Protocol::Tcp);
        let error = connecting.connect(case.server()).map(drop);
        let error = error.err().context("TCP: connected")?;
        ensure!(format!("{error:#}").contains("refused"), "TCP: {error:#}");
        let seen = case.took_its_way(mark)?;
        let errors = in_pod(&seen, Direction::Out).filter(|packet| packet.icmp.is_some());
        let resets = in_pod(&seen, Direction::Out).filter(|packet| packet.reset);
        ensure!(errors.count() == 1 && resets.count() == 1, "{seen:#?}");
        Ok(())
    })?;
    site.pod.delete()
}

#[test]
fn extension_headers_of_questions_and_answers_change_no_way() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    site.each(|case| {
        if case.family == Family::V4 {
            return Ok(());
        }
        let (server, client) = udp_pair(case)?;
        // Eight bytes of destination options, all padding, before everything that the server sends.
        let padding = [0_u8, 0, 1, 4, 0, 0, 0, 0];
        set_option(&server, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &padding)?;
        let question = case.datagram(client.local_addr()?.port(), QUESTION)?;
        let mark = case.mark()?;
        for headers in [&[60_u8][..], &[0], &[0, 60]] {
            case.send([extended(&question, headers)])?;
            echoed(&server, &client, QUESTION).with_context(|| format!("{headers:?}"))?;
        }
        let seen = case.took_its_way(mark)?;
        // 40 bytes of IPv6, 8 of options, 8 of UDP.
        let lengths: Vec<usize> = in_pod(&seen, Direction::Out).map(|p| p.length).collect();
        ensure!(
            lengths == [56 + QUESTION.len(); 3],
            "answers of {lengths:?} bytes"
        );
        Ok(())
    })?;
    site.pod.delete()
}

/// A sender can give one large packet to the kernel, which splits it into datagrams as late as possible
/// (`UDP_SEGMENT`): in namespaces at the receiving socket.
#[test]
fn a_packet_of_nearly_64_kib_is_cut_only_behind_the_last_interface() -> Result<()> {
    const SEGMENT: u16 = 1000;
    const COUNT: usize = 60;
    let mut site = Site::create(Plan::default())?;
    site.each(|case| {
        let (server, client) = udp_pair(case)?;
        let segment = libc::c_int::from(SEGMENT).to_ne_bytes();
        let all = pattern(COUNT * usize::from(SEGMENT));
        let mark = case.mark()?;
        let mut buffer = [0; 2000];
        client.send(b"hello")?;
        let (_, peer) = server.recv_from(&mut buffer)?;
        for (from, to) in [(&client, &server), (&server, &client)] {
            set_option(from, libc::SOL_UDP, libc::UDP_SEGMENT, &segment)?;
            set_option(
                to,
                libc::SOL_SOCKET,
                libc::SO_RCVBUF,
                &(4_i32 << 20).to_ne_bytes(),
            )?;
            let sent = match from.peer_addr() {
                Ok(_) => from.send(&all)?,
                Err(_) => from.send_to(&all, peer)?,
            };
            ensure!(sent == all.len(), "sent {sent}");
            for expected in all.chunks(SEGMENT.into()) {
                let (length, _) = to.recv_from(&mut buffer)?;
                ensure!(
                    buffer.get(..length) == Some(expected),
                    "{length} other bytes"
                );
            }
        }
        let seen = case.took_its_way(mark)?;
        for direction in [Direction::In, Direction::Out] {
            let longest = in_pod(&seen, direction).map(|packet| packet.length).max();
            ensure!(longest > Some(all.len()), "{direction:?}: {longest:?}");
        }
        Ok(())
    })?;
    site.pod.delete()
}

const SCTP: i32 = 132;

fn sctp(netns: &Netns, address: SocketAddr) -> Result<Socket> {
    netns.run(|| {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(SCTP.into()))?;
        // An association announces all addresses of its sockets; these are bound to one.
        socket.bind(&address.into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
}

#[test]
fn sctp_associations_stay_on_the_way_they_came() -> Result<()> {
    let mut site = Site::create(Plan::default())?;
    let probe = sctp(&site.pod.netns, "127.0.0.1:0".parse()?);
    if let Err(reason) = probe {
        skip(
            Need::Sctp,
            format_args!("this kernel has no SCTP: {reason:#}"),
        );
        return site.pod.delete();
    }
    site.each(|case| {
        let server = sctp(
            &case.site.pod.netns,
            case.site.pod.socket(case.family, case.port),
        )?;
        server.listen(4)?;
        let mark = case.mark()?;
        let client = sctp(case.site.client(), case.client())?;
        client
            .connect_timeout(&case.server().into(), PATIENCE)
            .context("associating")?;
        let (accepted, _) = server.accept()?;
        accepted.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 16];
        (&client).write_all(b"hello")?;
        ensure!((&accepted).read(&mut buffer).context("the question")? == 5);
        (&accepted).write_all(b"hello")?;
        ensure!((&client).read(&mut buffer).context("the answer")? == 5);
        let seen = case.took_its_way(mark)?;
        let all = seen.iter().all(|packet| packet.protocol == SCTP as u8);
        ensure!(all && seen.len() >= 16, "{seen:#?}");
        Ok(())
    })?;
    site.pod.delete()
}
