//! The double of the metadata services tells what the VPC does, in each cloud's own way, and lies only as its knobs say.
//! Without this, what is proven against it would prove little.
//!
//! Needs root and no ipvlan.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what cannot go on fails here"
)]

mod asker;
mod views;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ebbtide_vpc::{
    metadata::{AWS_V6, Cloud, Does, Fault, Listing, MetadataDouble, Torn},
    netns::Netns,
    patience::{IMPATIENCE, PATIENCE},
    ping::ping,
    plan::{Family, Plan},
    snapshot::ip,
    strict::Reason,
    traffic::{Client, Protocol, Server},
    vpc::Vpc,
};
use ipnet::IpNet;
use serde_json::Value;

use asker::*;
use views::*;

fn start(plan: Plan) -> (Vpc, MetadataDouble) {
    let vpc = Vpc::build(plan).unwrap();
    let metadata = MetadataDouble::start(&vpc).unwrap();
    (vpc, metadata)
}

#[test]
fn a_node_is_told_of_its_own_nics_and_no_others_in_every_dialect() {
    for plan in [Plan::default(), Plan::alibaba()] {
        let (vpc, _metadata) = start(plan);
        for node in &vpc.plan.nodes {
            assert_true(&vpc, &node.name);
            let asker = Asker::of(vpc.node(&node.name));
            let macs: BTreeSet<String> = node.nics.iter().map(|nic| mac(nic) + "/").collect();
            let upper: BTreeSet<String> = macs.iter().map(|mac| mac.to_uppercase()).collect();
            let listed = |answer: Answer| lines(&answer.text()).collect::<BTreeSet<_>>();
            assert_eq!(listed(asker.aws(MACS)), macs);
            assert_eq!(listed(asker.get(Cloud::Alibaba, MACS, &[])), macs);
            assert_eq!(listed(asker.get(Cloud::Tencent, MACS, &[])), upper);
            let gcp = asker.get(Cloud::Gcp, GCP, &[GOOGLE]).json();
            assert_eq!(gcp.as_array().unwrap().len(), macs.len());
            // The primary address is the first one, and the first NIC is number 0.
            let first = &node.nics[0];
            let own = first.primary(Family::V4).to_string();
            assert_eq!(
                lines(&asker.aws_key(first, "local-ipv4s")).next(),
                Some(own.clone())
            );
            assert_eq!(asker.aws_key(first, "device-number"), "0");
            assert_eq!(asker.aws("/latest/meta-data/local-ipv4").text(), own);
            assert_eq!(asker.aws("/latest/meta-data/mac").text(), mac(first));
        }
        vpc.assert_no_violations().unwrap();
    }
}

#[test]
fn what_programs_of_the_images_ask_for_is_there() {
    let (vpc, metadata) = start(Plan::default());
    let asker = Asker::of(vpc.node("master"));
    let top = asker.aws("/2021-03-23/meta-data/").text();
    for key in [
        "hostname",
        "instance-id",
        "mac",
        "network/",
        "security-groups",
    ] {
        assert!(top.lines().any(|line| line == key), "{key}: {top}");
    }
    let nic = vpc.nic("master", "ens6");
    for (key, value) in [
        ("device-number", "1"),
        ("subnet-ipv4-cidr-block", "210.22.16.0/24"),
        ("subnet-ipv6-cidr-blocks", "fd00:2116::/64"),
        ("mac", &mac(nic)),
        ("ipv4-prefix", ""),
        ("network-card", ""),
    ] {
        assert_eq!(asker.aws_key(nic, key), value, "{key}");
    }
    assert!(
        asker
            .aws_key(nic, "vpc-ipv4-cidr-blocks")
            .contains("172.31.16.0/20")
    );
    let document = asker
        .aws("/latest/dynamic/instance-identity/document")
        .json();
    assert_eq!(document["privateIp"], "172.31.22.228");
    assert_eq!(asker.aws("/latest/user-data").status, 404);

    let all = asker
        .get(Cloud::Alibaba, "/2016-01-01/meta-data/all", &[])
        .json();
    let macs = &all["network"]["interfaces"]["macs"];
    assert_eq!(macs[mac(nic)]["vswitch-cidr-block"], "210.22.16.0/24");

    let path = "/computeMetadata/v1/?timeout_sec=60&last_etag=NONE&alt=json&recursive=true";
    let all = asker.get(Cloud::Gcp, path, &[GOOGLE]).json();
    assert_eq!(all["instance"]["attributes"], serde_json::json!({}));
    assert_eq!(all["project"]["attributes"], serde_json::json!({}));
    let first = &all["instance"]["networkInterfaces"][0];
    for (key, value) in [
        ("subnetmask", Value::from("255.255.240.0")),
        ("mtu", 9001.into()),
        ("dnsServers", vec!["169.254.169.254"].into()),
        ("forwardedIps", Value::Array(Vec::new())),
    ] {
        assert_eq!(first[key], value, "{key}");
    }
    let base = "/computeMetadata/v1/instance/network-interfaces";
    let text = |path: &str| asker.get(Cloud::Gcp, &format!("{base}{path}"), &[GOOGLE]);
    assert_eq!(text("/").text(), "0/\n1/\n");
    assert_eq!(text("/1/mac").text(), mac(nic));
    assert_eq!(text("").status, 301);
    assert_eq!(text("/2/mac").status, 404);
    let v6 = || asker.get(Cloud::Azure, AZURE, &[METADATA]).json()["interface"][1]["ipv6"].clone();
    assert_eq!(v6()["subnet"], Value::Null);
    metadata.everywhere(|knobs| knobs.azure_v6_subnets = true);
    assert_eq!(v6()["subnet"][0]["prefix"], "64");
    let leaf = "/metadata/instance/network/interface/1/macAddress?api-version=2021-08-01";
    assert_eq!(asker.get(Cloud::Azure, leaf, &[METADATA]).status, 404);
    let leaf = format!("{leaf}&format=text");
    let leaf = asker.get(Cloud::Azure, &leaf, &[METADATA]).text();
    assert_eq!(leaf, mac(nic).replace(':', "").to_uppercase());
}

#[test]
fn bad_manners_are_refused_as_each_cloud_refuses_them() {
    let (vpc, metadata) = start(Plan::default());
    let (master, worker) = (vpc.node("master"), vpc.node("worker1"));
    let asker = Asker::of(master);
    let put = |headers: &[(&str, &str)]| {
        let answer = asker.ask(Cloud::Aws.address(), "PUT", "/latest/api/token", headers);
        answer.unwrap().status
    };
    assert_eq!(put(&[]), 400);
    assert_eq!(put(&[(LIFE.0, "21601")]), 400);
    assert_eq!(put(&[LIFE, PROXY]), 403);
    assert_eq!(asker.get(Cloud::Aws, MACS, &[]).status, 401);
    assert_eq!(asker.get(Cloud::Aws, MACS, &[(TOKEN, "no")]).status, 401);
    assert_eq!(asker.get(Cloud::Aws, "/latest/api/token", &[]).status, 405);
    let token = asker.token();
    assert_eq!(asker.get(Cloud::Aws, MACS, &[(TOKEN, &token)]).status, 200);
    let other = Asker::of(worker).get(Cloud::Aws, MACS, &[(TOKEN, &token)]);
    assert_eq!(other.status, 401, "a token is its machine's");
    metadata.expire_tokens("master");
    assert_eq!(asker.get(Cloud::Aws, MACS, &[(TOKEN, &token)]).status, 401);
    metadata.at("master", |knobs| {
        knobs.token_life = Duration::from_millis(1)
    });
    let token = asker.token();
    thread::sleep(Duration::from_millis(5));
    assert_eq!(asker.get(Cloud::Aws, MACS, &[(TOKEN, &token)]).status, 401);

    assert_eq!(asker.get(Cloud::Alibaba, MACS, &[]).status, 200);
    metadata.everywhere(|knobs| knobs.hardened = true);
    assert_eq!(asker.get(Cloud::Alibaba, MACS, &[]).status, 401);

    // It allows five requests a second.
    let azure = Asker::of(worker);
    for (path, headers, status) in [
        (AZURE, &[][..], 400),
        (AZURE, &[METADATA, PROXY], 400),
        ("/metadata/instance/network", &[METADATA], 400),
        (AZURE, &[METADATA], 200),
    ] {
        assert_eq!(
            azure.get(Cloud::Azure, path, headers).status,
            status,
            "{path}"
        );
    }
    let mut statuses = (0..40).map(|_| azure.get(Cloud::Azure, AZURE, &[METADATA]).status);
    assert!(statuses.any(|status| status == 429));
    let secondary = vpc.nic("worker1", "ens5").v4.secondary[0];
    let netlink = worker.netlink().unwrap();
    netlink.add_address("lo", secondary.into()).unwrap();
    let pod = azure.from(secondary).impatient();
    pod.ask(Cloud::Azure.address(), "GET", AZURE, &[METADATA])
        .err()
        .unwrap();

    for (headers, status) in [(&[][..], 403), (&[GOOGLE, PROXY], 403), (&[GOOGLE], 200)] {
        let answer = asker.get(Cloud::Gcp, GCP, headers);
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers["metadata-flavor"], "Google");
    }
    metadata.everywhere(|knobs| knobs.speaks = vec![Cloud::Azure]);
    assert_eq!(asker.get(Cloud::Gcp, GCP, &[GOOGLE]).status, 404);
    assert_eq!(asker.get(Cloud::Azure, AZURE, &[METADATA]).status, 200);
}

#[test]
fn pods_addresses_are_answered_and_nobody_elses() {
    let (vpc, _metadata) = start(Plan::default());
    let master = vpc.node("master");
    let netlink = master.netlink().unwrap();
    let path = "/latest/meta-data/instance-id";
    let own = Asker::of(master).aws(path).text();
    let get = |address: IpAddr| {
        netlink.add_address("lo", address.into()).unwrap();
        let asker = Asker::of(master).from(address).impatient();
        asker.ask(Cloud::Alibaba.address(), "GET", MACS, &[])
    };
    for family in Family::BOTH {
        let pod = vpc.nic("master", "ens5").subnet(family).secondary[0];
        netlink.add_address("lo", pod.into()).unwrap();
        let server = match family {
            Family::V4 => Cloud::Aws.address(),
            Family::V6 => SocketAddr::new(AWS_V6, 80),
        };
        let asker = Asker::of(master).from(pod);
        let token = asker
            .ask(server, "PUT", "/latest/api/token", &[LIFE])
            .unwrap()
            .text();
        let answer = asker.ask(server, "GET", path, &[(TOKEN, &token)]).unwrap();
        assert_eq!(answer.text(), own, "{family}");
    }
    vpc.assert_no_violations().unwrap();

    // Another node's, another NIC's, and nobody's.
    let stranger: IpAddr = "10.9.8.7".parse().unwrap();
    let others = vpc.nic("worker1", "ens5").v4.secondary[0];
    for source in [others, vpc.nic("master", "ens6").v4.secondary[0], stranger] {
        get(source).err().unwrap();
        let violations = vpc.violations().unwrap();
        assert_eq!(violations[0].reason, Reason::Source);
        assert_eq!(violations[0].source, source);
    }
    // The edge is in the VPC, but it has no NIC.
    let edge = vpc.edge.netns();
    let router = Plan::edge_link(Family::V4).router.addr().to_string();
    ip(edge, &["route", "add", "100.100.100.200", "via", &router]).unwrap();
    let asker = Asker::of(edge).impatient();
    asker
        .ask(Cloud::Alibaba.address(), "GET", MACS, &[])
        .err()
        .unwrap();
}

#[test]
fn assignments_arrive_in_the_metadata_and_the_vpc_delivers_them() {
    let (vpc, _metadata) = start(Plan::default());
    let (master, worker) = (vpc.node("master"), vpc.node("worker1"));
    let netlink = master.netlink().unwrap();
    let short = IMPATIENCE;
    // An address, prefixes of both families, a range of Google Cloud, and the last address that each of them has.
    for (block, address) in [
        ("172.31.16.99/32", "172.31.16.99"),
        ("172.31.17.0/28", "172.31.17.15"),
        ("172.20.3.0/24", "172.20.3.255"),
        ("fd00:16::99/128", "fd00:16::99"),
        ("fd00:16:0:0:1::/80", "fd00:16::1:ffff:ffff:ffff"),
        ("fd00:99::/64", "fd00:99::1"),
    ] {
        let (block, address): (IpNet, IpAddr) = (block.parse().unwrap(), address.parse().unwrap());
        netlink.add_address("lo", address.into()).unwrap();
        let before = vpc.violations().unwrap();
        ping(worker, None, address, short).unwrap_err();

        vpc.assign("master", "ens5", block).unwrap();
        assert!(vpc.assigned("master", "ens5").contains(&block));
        ping(worker, None, address, PATIENCE).unwrap();
        let family = Family::of(address);
        let _servers = Server::on(&vpc.world, Plan::web_server(family), 8080).unwrap();
        let server = SocketAddr::new(Plan::web_server(family), 8080);
        let client = Client::new(master, Protocol::Tcp).from_ip(address);
        client
            .ask(server)
            .with_context(|| format!("{block} to the world"))
            .unwrap();
        assert_eq!(vpc.violations().unwrap(), before);
        vpc.assign("worker1", "ens6", block).unwrap_err();
        vpc.assign("worker1", "ens6", address).unwrap_err();
    }
    assert_true(&vpc, "master");
    assert_true(&vpc, "worker1");
    for (block, address) in [
        ("172.31.16.99/32", "172.31.16.99"),
        ("172.31.17.0/28", "172.31.17.15"),
        ("172.20.3.0/24", "172.20.3.255"),
        ("fd00:16::99/128", "fd00:16::99"),
        ("fd00:16:0:0:1::/80", "fd00:16::1:ffff:ffff:ffff"),
        ("fd00:99::/64", "fd00:99::1"),
        // Of the plan.
        ("172.31.16.4/32", "172.31.16.4"),
        ("fd00:16::4/128", "fd00:16::4"),
    ] {
        let (block, address): (IpNet, IpAddr) = (block.parse().unwrap(), address.parse().unwrap());
        let before = vpc.dropped_at("master", "ens5").unwrap();
        vpc.unassign("master", "ens5", block).unwrap();
        vpc.unassign("master", "ens5", block).unwrap_err();
        ping(worker, None, address, short).unwrap_err();
        // It is dropped as anybody's address.
        if !block.addr().to_string().ends_with("::4") && !block.addr().to_string().ends_with(".4") {
            ping(
                master,
                Some(address),
                vpc.nic("worker1", "ens5").primary(Family::of(address)),
                short,
            )
            .unwrap_err();
            assert!(
                vpc.dropped_at("master", "ens5").unwrap() > before,
                "{block}"
            );
        }
    }
    assert_true(&vpc, "master");
    vpc.unassign("master", "ens6", "172.31.16.5".parse::<IpAddr>().unwrap())
        .unwrap_err();
}

#[test]
fn an_address_moves_between_the_nics_of_a_shared_subnet() {
    let (vpc, _metadata) = start(Plan::alibaba());
    let (master, worker) = (vpc.node("master"), vpc.node("worker"));
    for family in Family::BOTH {
        let moved = vpc.nic("master", "eth0").subnet(family).secondary[0];
        for netns in [master, worker] {
            let netlink = netns.netlink().unwrap();
            netlink.add_address("lo", moved.into()).unwrap();
        }
        // Its own node would answer itself, so the world does: the reply comes to who has the address.
        let to = Plan::web_server(family);
        ping(master, Some(moved), to, PATIENCE).unwrap();
        vpc.reassign("worker", "eth0", moved).unwrap();
        ping(worker, Some(moved), to, PATIENCE).unwrap();
        vpc.assert_no_violations().unwrap();
        vpc.reassign("master", "eth0", moved).unwrap();
        ping(master, Some(moved), to, PATIENCE).unwrap();
        vpc.assert_no_violations().unwrap();
    }
    // The other node finds it on the wire, as anything in the subnet.
    let new: IpAddr = "172.31.199.77".parse().unwrap();
    let prefix: IpNet = "172.31.200.16/28".parse().unwrap();
    let last: IpAddr = "172.31.200.31".parse().unwrap();
    let netlink = worker.netlink().unwrap();
    for address in [new, last] {
        netlink.add_address("lo", address.into()).unwrap();
        ping(master, None, address, IMPATIENCE).unwrap_err();
    }
    vpc.assign("worker", "eth0", new).unwrap();
    vpc.assign("worker", "eth0", prefix).unwrap();
    for address in [new, last] {
        ping(master, None, address, PATIENCE).unwrap();
    }
    vpc.unassign("worker", "eth0", prefix).unwrap();
    vpc.assert_no_violations().unwrap();
    assert_true(&vpc, "master");
    assert_true(&vpc, "worker");
    // As its addresses are answered for one by one.
    let wide: IpNet = "fd00:172:0:0:1::/80".parse().unwrap();
    vpc.assign("worker", "eth0", wide).unwrap_err();
}

#[test]
fn machines_have_assignments_and_metadata_as_well() {
    let (vpc, _metadata) = start(Plan::default().cluster());
    assert_true(&vpc, Plan::CONTROL);
    for block in ["172.31.16.99/32", "172.31.17.0/28", "fd00:16:0:0:1::/80"] {
        let block: IpNet = block.parse().unwrap();
        vpc.assign("master", "ens5", block).unwrap();
        vpc.unassign("master", "ens5", block).unwrap();
    }
    vpc.reassign("worker1", "ens5", vpc.nic("master", "ens5").v4.secondary[1])
        .unwrap();
}

#[test]
fn the_metadata_are_late_and_torn_as_their_knobs_say() {
    let (vpc, metadata) = start(Plan::default());
    let asker = Asker::of(vpc.node("master"));
    let nic = vpc.nic("master", "ens6");
    let told = |address: IpAddr| {
        lines(&asker.aws_key(nic, "local-ipv4s")).any(|line| line == address.to_string())
    };
    let (old, new): (IpAddr, IpAddr) = (nic.v4.secondary[0], "210.22.16.99".parse().unwrap());
    let long = Duration::from_secs(3600);
    metadata.at("master", |knobs| (knobs.lag, knobs.ghost) = (long, long));
    vpc.assign("master", "ens6", new).unwrap();
    vpc.unassign("master", "ens6", old).unwrap();
    assert!(told(old), "a ghost");
    assert!(!told(new), "not yet");
    metadata.at("master", |knobs| knobs.lag = Duration::from_millis(1));
    assert!(told(old) && told(new));
    metadata.at("master", |knobs| knobs.ghost = Duration::ZERO);
    assert!(!told(old) && told(new));

    // A change between two answers of one reading.
    metadata.at("master", |knobs| {
        knobs.torn = Some(Torn::until("local-ipv4s"))
    });
    let later: IpNet = "210.22.16.128/28".parse().unwrap();
    vpc.unassign("master", "ens6", new).unwrap();
    vpc.assign("master", "ens6", later).unwrap();
    assert_eq!(asker.aws_key(nic, "ipv4-prefix"), "");
    assert!(told(new), "the last answer of the past");
    assert_eq!(asker.aws_key(nic, "ipv4-prefix"), later.to_string());
    assert!(!told(new));
    metadata.at("master", |knobs| knobs.torn = Some(Torn::alternating()));
    vpc.assign("master", "ens6", new).unwrap();
    let path = format!("{MACS}{}/private-ipv4s", mac(nic));
    let answers: BTreeSet<bool> = (0..4)
        .map(|_| {
            asker
                .get(Cloud::Alibaba, &path, &[])
                .text()
                .contains("210.22.16.99")
        })
        .collect();
    assert_eq!(answers.len(), 2);
    metadata.at("master", |knobs| knobs.torn = None);

    metadata.at("master", |knobs| {
        knobs.nics = [("ens6".to_owned(), Listing::Bare)].into();
        knobs.reversed = true;
    });
    let macs = [mac(nic), mac(vpc.nic("master", "ens5"))].map(|mac| mac + "/");
    assert_eq!(asker.aws(MACS).text(), macs.join("\n"));
    assert_eq!(asker.aws(&format!("{MACS}{}/mac", mac(nic))).status, 404);
    metadata.at("master", |knobs| {
        knobs.nics = [("ens6".to_owned(), Listing::Hidden)].into()
    });
    assert_eq!(asker.aws(MACS).text(), macs[1]);
    assert_true(&vpc, "worker1");
}

#[test]
fn the_metadata_fail_as_their_knobs_say_and_are_counted() {
    let (vpc, metadata) = start(Plan::default());
    let asker = Asker::of(vpc.node("master"));
    let get = |asker: Asker<'_>| asker.ask(Cloud::Alibaba.address(), "GET", MACS, &[]);
    let whole = get(asker).unwrap().body;
    let fault = |fault: Fault| metadata.at("master", |knobs| knobs.faults = vec![fault]);
    for status in [401, 403, 404, 429, 500] {
        fault(Fault::times("/macs", Does::Status(status), 1));
        assert_eq!(get(asker).unwrap().status, status);
        assert_eq!(get(asker).unwrap().body, whole);
    }
    fault(Fault::always("/macs/", Does::Empty));
    assert_eq!(get(asker).unwrap().body, b"");
    assert_eq!(
        asker.aws("/latest/meta-data/mac").status,
        200,
        "another path"
    );
    fault(Fault::always("", Does::Half));
    assert_eq!(get(asker).unwrap().body, whole[..whole.len() / 2]);
    fault(Fault::always("", Does::Garbage));
    String::from_utf8(get(asker).unwrap().body).unwrap_err();
    fault(Fault::always("", Does::Endless));
    assert!(get(asker).unwrap().body.len() > 1 << 20);
    fault(Fault::always("", Does::Hang));
    get(asker.impatient()).err().unwrap();
    assert_eq!(
        get(Asker::of(vpc.node("worker1"))).unwrap().status,
        200,
        "another node"
    );
    metadata.at("master", |knobs| {
        knobs.faults.clear();
        knobs.delay = Duration::from_millis(300);
    });
    let start = Instant::now();
    assert_eq!(get(asker).unwrap().body, whole);
    assert!(start.elapsed() >= Duration::from_millis(300));

    metadata.at("master", |knobs| knobs.delay = Duration::ZERO);
    metadata.forget_requests();
    for _ in 0..3 {
        get(asker).unwrap();
    }
    asker.get(Cloud::Alibaba, "/nothing?x=1", &[]);
    assert_eq!(metadata.count("master", "/macs"), 3);
    assert_eq!(metadata.count("worker1", ""), 0);
    assert!((1..=4).contains(&metadata.busiest_second("master")));
    let requests = metadata.requests();
    let last = requests.last().unwrap();
    assert_eq!(
        (last.path.as_str(), last.status),
        ("/nothing?x=1", Some(404))
    );
    assert_eq!(last.cloud, Some(Cloud::Alibaba));
    assert_eq!(
        last.source.ip(),
        vpc.nic("master", "ens5").primary(Family::V4)
    );
}

#[test]
fn an_answer_of_hop_limit_one_reaches_the_node_and_nobody_behind_it() {
    let (vpc, metadata) = start(Plan::default());
    let master = vpc.node("master");
    let pod = Netns::new("pod").unwrap();
    let address = vpc.nic("master", "ens5").v4.secondary[0];
    let text = address.to_string();
    let name = pod.path();
    let name = name.to_str().unwrap();
    for arguments in [
        &[
            "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", name,
        ][..],
        &["addr", "add", "169.254.1.1/32", "dev", "veth0"],
        &["link", "set", "veth0", "up"],
        &["route", "add", &text, "dev", "veth0"],
    ] {
        ip(master, arguments).unwrap();
    }
    for arguments in [
        &["addr", "add", &text, "dev", "eth0"][..],
        &["link", "set", "eth0", "up"],
        &["route", "add", "169.254.1.1", "dev", "eth0"],
        &["route", "add", "default", "via", "169.254.1.1"],
    ] {
        ip(&pod, arguments).unwrap();
    }
    let get = |asker: Asker<'_>| asker.ask(Cloud::Tencent.address(), "GET", MACS, &[]);
    assert_eq!(get(Asker::of(&pod)).unwrap().status, 200);
    metadata.at("master", |knobs| knobs.hop_limit = Some(1));
    assert_eq!(get(Asker::of(master)).unwrap().status, 200);
    get(Asker::of(&pod).impatient()).err().unwrap();
}

#[test]
fn a_long_poll_is_answered_at_a_change_or_at_its_time() {
    let (vpc, metadata) = start(Plan::default());
    let asker = Asker::of(vpc.node("master"));
    let poll = |etag: &str, seconds: u64| {
        let path = format!("{GCP}&wait_for_change=true&last_etag={etag}&timeout_sec={seconds}");
        asker.get(Cloud::Gcp, &path, &[GOOGLE])
    };
    let first = poll("NONE", 60);
    let etag = &first.headers["etag"];
    let again = poll(etag, 1);
    assert_eq!((&again.headers["etag"], &again.body), (etag, &first.body));

    metadata.everywhere(|knobs| knobs.lag = Duration::from_millis(200));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| poll(etag, 60));
        // Whether it came before or after the change: it is answered with it.
        thread::sleep(Duration::from_millis(100));
        vpc.assign("master", "ens6", "172.20.0.0/24".parse::<IpNet>().unwrap())
            .unwrap();
        let answer = waiting.join().unwrap();
        assert_ne!(&answer.headers["etag"], etag);
        assert_eq!(
            answer.json()[1]["ipAliases"]
                .as_array()
                .unwrap()
                .last()
                .unwrap(),
            "172.20.0.0/24"
        );
    });
    // Another node's change is none of its own.
    let etag = poll("NONE", 60).headers["etag"].clone();
    vpc.assign("worker1", "ens6", "172.20.1.0/24".parse::<IpNet>().unwrap())
        .unwrap();
    assert_eq!(poll(&etag, 1).headers["etag"], etag);
}
