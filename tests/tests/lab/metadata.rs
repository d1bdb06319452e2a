//! Pods and the cloud's metadata service, which gives whoever asks the credentials of the node's role.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use ebbtide_types::IpvlanMode;
use ebbtide_vpc::{
    lab::Lab,
    metadata::{AWS_V6, Cloud, MetadataDouble},
    patience::{IMPATIENCE, PATIENCE},
    plan::Plan,
    pod::{NIC_SIDE, NODE_SIDE, Pod},
    traffic::{Client, Protocol, Server},
};
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// How a pod sends: as its routes say, or bound to an interface, which needs no privilege.
const ROUTED: Option<&str> = None;
const BY_NIC: Option<&str> = Some(NIC_SIDE);
const BY_NODE: Option<&str> = Some(NODE_SIDE);

/// The default, which the lab's agents have not.
const VIA_HOST: &str = "viaHostCIDRs: [169.254.0.0/16]\n";

/// Whether a metadata service answers a pod at all.
fn is_answered(pod: &Pod, server: SocketAddr, by: Option<&str>, patience: Duration) -> bool {
    let ask = || -> Result<usize> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket.bind_device(by.map(str::as_bytes))?;
        socket.connect_timeout(&server.into(), patience)?;
        socket.set_read_timeout(Some(patience))?;
        let mut stream = TcpStream::from(socket);
        write!(
            stream,
            "GET /latest/meta-data/mac HTTP/1.1\r\nHost: {server}\r\n\r\n"
        )?;
        Ok(stream.read(&mut [0; 64])?)
    };
    pod.netns.run(ask).is_ok_and(|length| length > 0)
}

/// Compares which services answer a pod with the expectation.
fn expect(pod: &Pod, rows: &[(SocketAddr, Option<&str>, bool)]) -> Result<()> {
    let mut wrong = Vec::new();
    for (server, by, expected) in rows {
        let patience = if *expected { PATIENCE } else { IMPATIENCE };
        let found = is_answered(pod, *server, *by, patience);
        if found != *expected {
            wrong.push(format!("{server} by {by:?}: {found}"));
        }
    }
    ensure!(wrong.is_empty(), "{}: answered: {wrong:?}", pod.name);
    Ok(())
}

/// Returns the packets to metadata services that were dropped of a pod: by its interface, and at the host's end.
fn dropped(lab: &mut Lab, pod: &str) -> Result<(u64, u64)> {
    let lines = lab.agent("master").control_json(&["datapath"])?;
    let of = |program: &str| {
        let lines = lines.as_array().into_iter().flatten();
        lines
            .filter(|line| line["program"] == program)
            .filter(|line| line["pod"].as_str().is_some_and(|name| name.ends_with(pod)))
            .map(|line| {
                let (all, ours) = (&line["dropped"], &line["toMetadata"]);
                assert_eq!(all, ours, "something else was dropped");
                ours.as_u64().unwrap_or(0)
            })
            .sum()
    };
    Ok((of("nic_egress"), of("host_veth_ingress")))
}

fn every_setting_holds_in(mode: IpvlanMode) -> Result<()> {
    let plan = Plan {
        mode,
        ..Plan::default()
    };
    let mut lab = Lab::configured(plan, VIA_HOST)?;
    let metadata = MetadataDouble::start(&lab.vpc)?;
    let aws = Cloud::Aws.address();
    let tencent = Cloud::Tencent.address();
    let alibaba = Cloud::Alibaba.address();
    let aws6 = SocketAddr::new(AWS_V6, aws.port());
    let _servers = [aws.ip(), alibaba.ip(), AWS_V6].map(|address: IpAddr| {
        let server = Server::on(&lab.vpc.router, address, 53);
        server.unwrap_or_else(|e| panic!("{e:#}"))
    });

    let plain = lab.pod("master", "ens6", "plain")?;
    let field = |text: &str| json!({"metadataForPods": text});
    let open = lab.pod_with("master", "ens6", "open", &field("allow"))?;
    let closed = lab.pod_with("master", "ens6", "closed", &field("drop"))?;

    // The hop limit keeps off who is behind the node, and not who is beside it.
    for hop_limit in [None, Some(1)] {
        metadata.everywhere(|knobs| knobs.hop_limit = hop_limit);
        let reaches = hop_limit.is_none();
        for server in [aws, tencent] {
            let by_node = [(server, ROUTED, reaches), (server, BY_NODE, reaches)];
            expect(&plain, &by_node)?;
            expect(&plain, &[(server, BY_NIC, false)])?;
            expect(&open, &by_node)?;
            expect(&open, &[(server, BY_NIC, true)])?;
            let never = [ROUTED, BY_NODE, BY_NIC].map(|by| (server, by, false));
            expect(&closed, &never)?;
        }
        for server in [alibaba, aws6] {
            let as_routed = [(server, ROUTED, true), (server, BY_NIC, true)];
            expect(&plain, &as_routed)?;
            expect(&open, &as_routed)?;
            let never = [(server, ROUTED, false), (server, BY_NIC, false)];
            expect(&closed, &never)?;
        }
    }
    metadata.everywhere(|knobs| knobs.hop_limit = None);

    // The same addresses serve DNS.
    for pod in [&plain, &open, &closed] {
        for protocol in Protocol::BOTH {
            for address in [aws.ip(), alibaba.ip(), AWS_V6] {
                Client::new(&pod.netns, protocol).ask(SocketAddr::new(address, 53))?;
            }
        }
    }

    let (by_nic, by_node) = dropped(&mut lab, "plain")?;
    ensure!(by_nic > 0 && by_node == 0, "plain: {by_nic}, {by_node}");
    ensure!(dropped(&mut lab, "open")? == (0, 0), "open");
    let (by_nic, by_node) = dropped(&mut lab, "closed")?;
    ensure!(by_nic > 0 && by_node > 0, "closed: {by_nic}, {by_node}");

    // Pods that run follow the agent's configuration, unless they said otherwise.
    let agent = lab.agent("master");
    agent.stop()?;
    agent.configure(&format!("{VIA_HOST}metadataForPods: drop\n"))?;
    agent.launch()?;
    agent.wait_ready()?;
    ebbtide_vpc::patience::eventually("the pods are kept from it", || {
        expect(&plain, &[(aws, ROUTED, false), (aws6, ROUTED, false)])
    })?;
    expect(&open, &[(aws, ROUTED, true), (aws6, ROUTED, true)])?;
    let plan = lab.agent("master").control(&["explain", "plain"])?;
    ensure!(plan.contains("metadata service: dropped"), "{plan}");

    let agent = lab.agent("master");
    agent.stop()?;
    agent.configure(&format!("{VIA_HOST}metadataForPods: allow\n"))?;
    agent.launch()?;
    agent.wait_ready()?;
    ebbtide_vpc::patience::eventually("the pods reach it", || {
        expect(&plain, &[(aws, BY_NIC, true), (aws, ROUTED, true)])
    })?;
    expect(&closed, &[(aws, ROUTED, false), (aws, BY_NIC, false)])?;
    lab.vpc.assert_no_violations()
}

#[test]
fn pods_reach_the_metadata_service_as_the_settings_say_in_l3() -> Result<()> {
    every_setting_holds_in(IpvlanMode::L3)
}

#[test]
fn pods_reach_the_metadata_service_as_the_settings_say_in_l2() -> Result<()> {
    every_setting_holds_in(IpvlanMode::L2)
}
