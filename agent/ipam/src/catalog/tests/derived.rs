use std::net::IpAddr;

use ebbtide_types::settings::CloudSetting;

use super::*;

/// Two networks of ens6, one of ens7 with pools of its own.
fn networks() -> String {
    let of = |name: &str, master: &str| {
        network(
            name,
            &format!("{{cniType: ipvlan, ipvlan: {{master: [{master}]}}}}"),
        )
    };
    [
        of(
            "name: a, annotations: {ebbtide.io/addresses: metadata}",
            "ens6",
        ),
        of(
            "name: b, namespace: x, annotations: {ebbtide.io/addresses: metadata}",
            "ens6",
        ),
        of("name: c", "ens6"),
    ]
    .concat()
}

fn nets(text: &str) -> Vec<IpNet> {
    let net = |text: &str| {
        text.parse()
            .unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()))
    };
    text.split_whitespace().map(net).collect()
}

fn nic(link: &str, blocks: &str) -> DerivedNic {
    let blocks = nets(blocks);
    DerivedNic {
        node: "worker1".into(),
        link: link.into(),
        family: blocks.first().map_or(Family::V4, Family::of_net),
        blocks,
        primary: vec!["10.0.0.4".parse().unwrap()],
        gateway: Some("10.0.0.1".parse().unwrap()),
        subnets: nets("10.0.0.0/24"),
        source: "aws eni-1".into(),
    }
}

fn shown(catalog: &Catalog) -> Vec<String> {
    let derived = catalog
        .pools()
        .iter()
        .filter(|pool| pool.derived_of().is_some());
    let shown = derived.map(|pool| format!("{} {}: {}", pool.name, pool.subnet, pool.ranges));
    shown.collect()
}

#[test]
fn what_a_nic_was_given_is_a_pool_for_the_networks_on_it() {
    let declared = catalog(&networks());
    let derived = declared.with_derived(&[nic("ens6", "10.0.0.5 10.0.0.6 10.0.0.16/28")], &[]);
    assert_eq!(derived.problems(), []);
    let [pool] = derived.pools() else {
        panic!("{:?}", derived.pools())
    };
    assert_eq!(pool.name, "worker1-ens6-v4");
    assert_eq!(
        pool.ranges.to_string(),
        "10.0.0.5-10.0.0.6, 10.0.0.16-10.0.0.31"
    );
    assert_eq!(pool.declared, pool.ranges);
    assert_eq!(pool.gateway, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(pool.node_names, ["worker1"]);
    let networks: Vec<String> = pool.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["default/a", "x/b"]);
    assert!(pool.default && !pool.disabled && !pool.is_shared());
    assert_eq!(
        pool.source,
        PoolSource::Derived {
            link: "ens6".into(),
            from: "aws eni-1".into()
        }
    );
    // Pure, and the newest one counts.
    assert_eq!(declared.pools(), []);
    let newer = derived.with_derived(&[nic("ens6", "10.0.0.6")], &[]);
    assert_eq!(shown(&newer), ["worker1-ens6-v4 10.0.0.0/24: 10.0.0.6"]);
    assert_eq!(derived.with_derived(&[], &[]), declared);
}

#[test]
fn a_nic_s_pools_have_its_subnets_and_alias_ranges_have_their_own() {
    let declared = catalog(&networks());
    let with = |change: &dyn Fn(&mut DerivedNic), blocks: &str| {
        let mut nic = nic("ens6", blocks);
        change(&mut nic);
        shown(&declared.with_derived(&[nic], &[]))
    };
    for (what, change, blocks, expected) in [
        (
            "a NIC's own, its gateway, the subnet's first and last",
            (&|_: &mut DerivedNic| {}) as &dyn Fn(&mut DerivedNic),
            "10.0.0.0/28 10.0.0.240/28",
            vec![
                "worker1-ens6-v4 10.0.0.0/24: 10.0.0.2-10.0.0.3, 10.0.0.5-10.0.0.15, 10.0.0.240-10.0.0.254",
            ],
        ),
        (
            "all of an alias range, with the gateway outside",
            &|_: &mut DerivedNic| {},
            "10.24.3.0/24 10.0.0.9 10.24.9.7",
            vec![
                "worker1-ens6-v4 10.0.0.0/24: 10.0.0.9",
                "worker1-ens6-v4-10-24-3-0-24 10.24.3.0/24: 10.24.3.0-10.24.3.255",
                "worker1-ens6-v4-10-24-9-7-32 10.24.9.7/32: 10.24.9.7",
            ],
        ),
        (
            "another subnet of the NIC",
            &|nic: &mut DerivedNic| nic.subnets = nets("10.0.1.0/24 10.0.0.0/24"),
            "10.0.1.9 10.0.0.9",
            vec![
                "worker1-ens6-v4 10.0.0.0/24: 10.0.0.9",
                "worker1-ens6-v4-10-0-1-0-24 10.0.1.0/24: 10.0.1.9",
            ],
        ),
        (
            "nothing usable now: full, not missing",
            &|_: &mut DerivedNic| {},
            "",
            vec!["worker1-ens6-v4 10.0.0.0/24: "],
        ),
        (
            "no subnet known",
            &|nic: &mut DerivedNic| nic.subnets.clear(),
            "10.0.0.9",
            vec!["worker1-ens6-v4-10-0-0-9-32 10.0.0.9/32: 10.0.0.9"],
        ),
        (
            "IPv6, whose subnet's first address is all routers'",
            &|nic: &mut DerivedNic| {
                nic.subnets = nets("10.0.0.0/24 fd00:0:0:1::/64");
                nic.gateway = Some("fe80::1".parse().unwrap());
            },
            "fd00:0:0:1::/80 fd00:0:0:1:2::5 fd00:0:0:1:2::6 fd00:9::/80 10.0.0.9",
            vec![
                "worker1-ens6-v6 fd00:0:0:1::/64: fd00:0:0:1::1-fd00::1:0:ffff:ffff:ffff, fd00::1:2:0:0:5-fd00::1:2:0:0:6",
                "worker1-ens6-v6-fd00-9-80 fd00:9::/80: fd00:9::-fd00:9::ffff:ffff:ffff",
            ],
        ),
        (
            "what no pod can have",
            &|_: &mut DerivedNic| {},
            "224.0.0.0/28 0.0.0.0/0 127.0.0.1 10.0.0.9",
            vec!["worker1-ens6-v4 10.0.0.0/24: 10.0.0.9"],
        ),
        (
            "odd names",
            &|nic: &mut DerivedNic| {
                nic.node = "Node_1".into();
                nic.link = "eth0.100@x".into();
            },
            "10.0.0.9",
            vec![],
        ),
    ] {
        let found = with(change, blocks);
        if what == "odd names" {
            let name = found[0].split(' ').next().unwrap();
            assert!(
                name.starts_with("node-1-") && name.contains("-eth0.100-x-"),
                "{name}"
            );
            assert!(
                ebbtide_types::is_name(name) && name.to_lowercase() == name,
                "{name}"
            );
            continue;
        }
        assert_eq!(found, expected, "{what}");
    }
    // No two links have one name.
    let two = [nic("eth_1", "10.0.0.8"), nic("eth-1", "10.0.0.9")];
    assert_eq!(shown(&declared.with_derived(&two, &[])).len(), 2);
    // Another NIC's own address is nobody's.
    let two = [
        nic("ens6", "10.0.0.8 10.0.0.9"),
        DerivedNic {
            primary: vec!["10.0.0.8".parse().unwrap()],
            ..nic("ens7", "10.0.0.9")
        },
    ];
    assert_eq!(
        shown(&declared.with_derived(&two, &[])),
        [
            "worker1-ens6-v4 10.0.0.0/24: 10.0.0.9",
            "worker1-ens7-v4 10.0.0.0/24: "
        ]
    );
}

#[test]
fn what_is_declared_wins_and_is_said() {
    let text = [
        networks(),
        pool("other", "{subnet: 10.0.0.0/24, ips: [10.0.0.6-10.0.0.8], nodeName: [elsewhere]}"),
        pool("wide", "{subnet: 10.24.0.0/16, ips: [10.24.3.7], disable: true}"),
        "---\n{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderReservedIP, metadata: {name: r}, spec: {ips: [10.0.0.9]}}\n"
            .to_owned(),
    ];
    let declared = catalog(&text.concat());
    assert_eq!(declared.problems(), []);
    let told = [nic(
        "ens6",
        "10.0.0.5 10.0.0.6 10.0.0.7 10.0.0.9 10.24.3.0/29",
    )];
    let derived = declared.with_derived(&told, &[]);
    assert_eq!(
        shown(&derived),
        [
            "worker1-ens6-v4 10.0.0.0/24: 10.0.0.5",
            "worker1-ens6-v4-10-24-3-0-29 10.24.3.0/29: 10.24.3.0-10.24.3.6"
        ]
    );
    assert_eq!(
        derived
            .pool("worker1-ens6-v4")
            .unwrap()
            .reserved
            .to_string(),
        "10.0.0.9"
    );
    let problems: Vec<String> = derived.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains(
            "SpiderIPPool worker1-ens6-v4: 10.0.0.6-10.0.0.7 belong to the declared pool other"
        ),
        "{problems:?}"
    );
    assert_eq!(derived.problems()[0].consequence, Consequence::Narrowed);
    // Once, however often it is read.
    assert_eq!(derived.with_derived(&told, &[]), derived);

    // A declared pool of the name takes the place, with all that it says.
    let text = [
        networks(),
        pool(
            "worker1-ens6-v4",
            "{subnet: 10.0.0.0/24, ips: [10.0.0.77], nodeName: [worker1]}",
        ),
    ];
    let declared = catalog(&text.concat());
    let derived = declared.with_derived(&[nic("ens6", "10.0.0.5")], &[]);
    assert_eq!(
        (derived.pools(), derived.problems()),
        (declared.pools(), declared.problems())
    );
    assert!(derived.is_of_metadata(&derived.pools()[0], "ens6"));
    assert!(!declared.is_of_metadata(&declared.pools()[0], "ens6"));
}

#[test]
fn derived_pools_in_use_are_what_the_cloud_says_now() {
    let declared = catalog(&networks());
    let older = declared.with_derived(&[nic("ens6", "10.0.0.5 10.0.0.6")], &[]);
    // Another subnet, as of a NIC that was replaced; and none.
    let moved = DerivedNic {
        subnets: nets("10.9.0.0/24"),
        ..nic("ens6", "10.9.0.5")
    };
    for newer in [
        declared.with_derived(&[moved], &[]),
        declared.with_derived(&[nic("ens6", "10.0.0.6")], &[]),
        declared.clone(),
    ] {
        assert_eq!(newer.clone().keeping_used_pools(&older, |_| true), newer);
    }
    // Addresses of a declared pool that has to stay as it was are not handed out twice.
    let with = |subnet: &str| {
        let spec = format!("{{subnet: {subnet}.0/24, ips: [{subnet}.6]}}");
        catalog(&[networks(), pool("p", &spec)].concat())
    };
    let older = with("10.0.0");
    let newer = with("10.9.0").with_derived(&[nic("ens6", "10.0.0.5 10.0.0.6")], &[]);
    assert_eq!(
        shown(&newer),
        ["worker1-ens6-v4 10.0.0.0/24: 10.0.0.5-10.0.0.6"]
    );
    let kept = newer.keeping_used_pools(&older, |name| name == "p");
    assert_eq!(shown(&kept), ["worker1-ens6-v4 10.0.0.0/24: 10.0.0.5"]);
    assert_eq!(kept.pool("p").unwrap().ranges.to_string(), "10.0.0.6");
}

#[test]
fn a_note_says_why_there_is_nothing_and_what_gives_more() {
    for (cloud, command) in [
        (
            CloudSetting::Aws,
            "aws ec2 assign-private-ip-addresses --network-interface-id eni-1 --secondary-private-ip-address-count 1",
        ),
        (
            CloudSetting::Alibaba,
            "aliyun ecs AssignPrivateIpAddresses --NetworkInterfaceId eni-1",
        ),
        (
            CloudSetting::Azure,
            "az network nic ip-config create --resource-group GROUP --nic-name eni-1",
        ),
        (CloudSetting::Gcp, "--network-interface eni-1 --aliases"),
        (
            CloudSetting::Tencent,
            "tccli vpc AssignPrivateIpAddresses --NetworkInterfaceId eni-1",
        ),
    ] {
        let note = DerivedNote::of_nic("ens6", cloud, "eni-1");
        assert_eq!(
            note.reason,
            "no secondary addresses are assigned to NIC eni-1 yet"
        );
        assert!(note.more.contains(command), "{}", note.more);
        assert!(!DerivedNote::of_nic("ens6", cloud, "").more.contains("  "));
    }
    let notes = [
        DerivedNote::not_read(""),
        DerivedNote::of_nic("ens6", CloudSetting::None, ""),
    ];
    let catalog = catalog(&networks()).with_derived(&[], &notes);
    let reason = |link: &str| &catalog.derived_note(link).unwrap().reason;
    assert_eq!(
        reason("ens6"),
        "no secondary addresses are assigned to NIC ens6 yet"
    );
    assert_eq!(
        reason("ens7"),
        "the cloud's metadata service has not been read yet (it has not answered)"
    );
}
