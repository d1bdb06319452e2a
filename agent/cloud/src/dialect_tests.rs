//! What the parsers of all dialects must do: the shapes of real answers, with addresses of our own.

use crate::{CloudNic, Kind, Reading, Tree, Unreadable, alibaba, aws, azure, gcp, tencent};

mod random;

type Leaves<'a> = &'a [(&'a str, &'a str)];

fn tree(list: &str, mac: &str, leaves: Leaves<'_>) -> Tree {
    let leaves = leaves.iter();
    let leaves = leaves.map(|(key, text)| (format!("{mac}/{key}"), (*text).to_owned()));
    leaves.chain([(String::new(), list.to_owned())]).collect()
}

/// Writes a NIC in a line, as `id | primary | kind: blocks; ... | subnets | gateways`.
fn line(nic: &CloudNic) -> String {
    let join = |texts: Vec<String>| texts.join(" ");
    let blocks = nic.blocks.iter().map(|(kind, blocks)| {
        let kind = match kind {
            Kind::V4Addresses => "4",
            Kind::V4Prefixes => "4p",
            Kind::V6Addresses => "6",
            Kind::V6Prefixes => "6p",
        };
        let blocks = blocks
            .iter()
            .map(|net| match net.prefix_len() == net.max_prefix_len() {
                true => net.addr().to_string(),
                false => net.to_string(),
            });
        format!("{kind}: {}", join(blocks.collect()))
    });
    [
        nic.id.clone(),
        join(nic.primary.iter().map(ToString::to_string).collect()),
        blocks.collect::<Vec<_>>().join("; "),
        join(nic.subnets.iter().map(ToString::to_string).collect()),
        join(nic.gateways.iter().map(ToString::to_string).collect()),
    ]
    .join(" | ")
}

fn lines(reading: Result<Reading, Unreadable>) -> Vec<String> {
    reading.unwrap().view.nics.iter().map(line).collect()
}

const A: &str = "02:0a:00:00:00:01";

#[test]
fn aws_tells_addresses_and_prefixes_by_the_line() {
    let cases: [(Leaves<'_>, &str); 5] = [
        (
            &[
                ("interface-id", "eni-0a1b2c3d4e5f60718"),
                ("local-ipv4s", "172.31.16.139\n172.31.16.140\n172.31.25.7"),
                ("ipv4-prefix", "172.31.28.32/28\n172.31.28.16/28"),
                ("ipv6s", "2001:db8:f00:ba00::1\n2001:db8:f00:ba00::2"),
                ("ipv6-prefix", "2001:db8:f00:ba00:7::/80"),
                ("subnet-ipv4-cidr-block", "172.31.16.0/20"),
                ("subnet-ipv6-cidr-blocks", "2001:db8:f00:ba00::/64"),
            ],
            "eni-0a1b2c3d4e5f60718 | 172.31.16.139 2001:db8:f00:ba00::1 | 4: 172.31.16.140 172.31.25.7; \
             4p: 172.31.28.16/28 172.31.28.32/28; 6: 2001:db8:f00:ba00::2; 6p: 2001:db8:f00:ba00:7::/80 | \
             172.31.16.0/20 2001:db8:f00:ba00::/64 | 172.31.16.1",
        ),
        // One address, nothing else: what answers 404 is not known to be empty.
        (
            &[
                ("local-ipv4s", "10.0.0.10"),
                ("subnet-ipv4-cidr-block", "10.0.0.0/24"),
            ],
            " | 10.0.0.10 | 4:  | 10.0.0.0/24 | 10.0.0.1",
        ),
        // IPv6 alone.
        (
            &[("ipv6s", "2001:db8::5\n"), ("ipv6-prefix", "")],
            " | 2001:db8::5 | 6:  |  | ",
        ),
        // A detached NIC that is still listed (vpc-cni #194).
        (&[], " |  |  |  | "),
        // The same address twice.
        (
            &[("local-ipv4s", "10.0.0.10\n10.0.0.11\n10.0.0.11\n10.0.0.10")],
            " | 10.0.0.10 | 4: 10.0.0.11 |  | ",
        ),
    ];
    for (leaves, expected) in cases {
        let tree = tree("02:0a:00:00:00:01/", A, leaves);
        assert_eq!(lines(aws::parse(&tree)), [expected]);
    }
}

#[test]
fn alibaba_tells_lists_in_brackets_and_its_gateways() {
    let cases: [(Leaves<'_>, &str); 3] = [
        (
            &[
                ("network-interface-id", "eni-bp1b2c0jvnj0g17b"),
                ("primary-ip-address", "172.16.101.215"),
                (
                    "private-ipv4s",
                    "[\"172.16.101.9\",\"172.16.101.215\",\"172.16.101.10\"]",
                ),
                ("ipv4-prefixes", "172.16.101.64/28"),
                ("ipv6s", "[2001:db8:325:a204::1,2001:db8:325:a204::2]"),
                ("ipv6-prefixes", "[\"2001:db8:325:a204:1::/80\"]"),
                ("vswitch-cidr-block", "172.16.101.0/24"),
                ("vswitch-ipv6-cidr-block", "2001:db8:325:a204::/64"),
                ("gateway", "172.16.101.253"),
                ("ipv6-gateway", "2001:db8:325:a204:ffff:ffff:ffff:fff7"),
            ],
            "eni-bp1b2c0jvnj0g17b | 172.16.101.215 2001:db8:325:a204::1 | 4: 172.16.101.9 172.16.101.10; \
             4p: 172.16.101.64/28; 6: 2001:db8:325:a204::2; 6p: 2001:db8:325:a204:1::/80 | \
             172.16.101.0/24 2001:db8:325:a204::/64 | \
             172.16.101.253 2001:db8:325:a204:ffff:ffff:ffff:fff7",
        ),
        (
            &[
                ("primary-ip-address", "10.0.0.10"),
                ("private-ipv4s", "[\"10.0.0.10\"]"),
            ],
            " | 10.0.0.10 | 4:  |  | ",
        ),
        // Without its primary address any of the others may be it.
        (
            &[("private-ipv4s", "[\"10.0.0.10\",\"10.0.0.11\"]")],
            " |  |  |  | ",
        ),
    ];
    for (leaves, expected) in cases {
        let tree = tree(A, A, leaves);
        assert_eq!(lines(alibaba::parse(&tree)), [expected]);
    }
}

#[test]
fn tencent_tells_addresses_as_directories() {
    let mac = "52:54:00:BF:B3:51";
    let all: Leaves<'_> = &[
        ("primary-local-ipv4", "10.104.13.59"),
        ("local-ipv4s/", "10.104.13.60/\n10.104.13.59/\n"),
        ("local-ipv4s/10.104.13.59/gateway", "10.104.0.1"),
        ("local-ipv4s/10.104.13.59/subnet-mask", "255.255.192.0"),
    ];
    for (leaves, expected) in [
        (
            all,
            " | 10.104.13.59 | 4: 10.104.13.60 | 10.104.0.0/18 | 10.104.0.1",
        ),
        (&all[1..], " |  |  |  | "),
        (&all[..1], " | 10.104.13.59 |  |  | "),
    ] {
        let reading = tencent::parse(&tree("52:54:00:BF:B3:51/\n", mac, leaves));
        assert_eq!(lines(reading), [expected]);
    }
}

#[test]
fn azure_tells_all_in_strings() {
    let json = r#"{"interface":[
        {"ipv4":{"ipAddress":[{"privateIpAddress":"10.2.0.9","publicIpAddress":""}],
                 "subnet":[{"address":"10.2.0.0","prefix":"23"}]},
         "ipv6":{"ipAddress":[]},"macAddress":"7C1E52100001"},
        {"ipv4":{"ipAddress":[{"privateIpAddress":"10.0.0.4","publicIpAddress":"203.0.113.7"},
                              {"privateIpAddress":"10.0.0.6","publicIpAddress":""},
                              {"privateIpAddress":"10.0.0.5"},
                              {"privateIpAddress":"10.0.0.32/28"}],
                 "subnet":[{"address":"10.0.0.0","prefix":"24"}]},
         "ipv6":{"ipAddress":[{"privateIpAddress":"2001:db8:dead::4"},{"privateIpAddress":"2001:db8:dead::5"}]},
         "macAddress":"000D3A1B00FF"}]}"#;
    let reading = azure::parse(json).unwrap();
    assert_eq!(reading.view.nics[0].mac.to_string(), "00:0d:3a:1b:00:ff");
    assert_eq!(
        lines(Ok(reading)),
        [
            " | 10.0.0.4 2001:db8:dead::4 | 4: 10.0.0.5 10.0.0.6; 4p: 10.0.0.32/28; 6: 2001:db8:dead::5; 6p:  | \
             10.0.0.0/24 | 10.0.0.1",
            " | 10.2.0.9 | 4: ; 4p: ; 6: ; 6p:  | 10.2.0.0/23 | 10.2.0.1",
        ]
    );
}

#[test]
fn google_tells_ranges_outside_the_subnet_and_the_subnet_s_own_mask() {
    let json = r#"[
        {"accessConfigs":[{"externalIp":"203.0.113.9","type":"ONE_TO_ONE_NAT"}],"dnsServers":["169.254.169.254"],
         "forwardedIps":["198.51.100.7"],"gateway":"10.128.0.1","ip":"10.128.0.5","ipAliases":["10.24.3.0/24"],
         "mac":"42:01:0a:80:00:05","mtu":1460,"network":"projects/1/networks/default","subnetmask":"255.255.240.0",
         "targetInstanceIps":[]},
        {"gateway":"10.200.0.1","ip":"10.200.0.2","ipAliases":["10.200.0.9","10.200.0.8/32","10.200.1.0/28"],
         "mac":"42:01:0a:c8:00:02","subnetmask":"255.255.254.0","ipv6s":["2001:db8:4::","2001:db8:4::5"]},
        {"ip":"","mac":"42:01:0a:c8:00:03"}]"#;
    assert_eq!(
        lines(gcp::parse(json)),
        [
            "nic0 | 10.128.0.5 | 4: ; 4p: 10.24.3.0/24 | 10.128.0.0/20 | 10.128.0.1",
            "nic1 | 10.200.0.2 2001:db8:4:: | 4: 10.200.0.8 10.200.0.9; 4p: 10.200.1.0/28; 6: 2001:db8:4::5 | \
             10.200.0.0/23 | 10.200.0.1",
            "nic2 |  |  |  | ",
        ]
    );
}

#[test]
fn what_cannot_be_a_pod_s_is_left_out_and_said() {
    let tree = tree(
        A,
        A,
        &[
            ("interface-id", "eni 1\u{1b}"),
            (
                "local-ipv4s",
                "10.0.0.10\n10.0.0.11\n2001:db8::1\n127.0.0.1\n0.0.0.0\n224.0.0.1\n169.254.169.254",
            ),
            (
                "ipv4-prefix",
                "0.0.0.0/0\n10.0.0.33/28\n10.0.0.48/28\n2001:db8::/80",
            ),
            ("ipv6s", "2001:db8::1\nfe80::1\n::ffff:10.0.0.1"),
            ("subnet-ipv4-cidr-block", "0.0.0.0/0"),
        ],
    );
    let reading = aws::parse(&tree).unwrap();
    assert_eq!(reading.left_out.len(), 11, "{:#?}", reading.left_out);
    let said: Vec<String> = reading.left_out.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|text| text
            .starts_with("10.0.0.33/28 of 02:0a:00:00:00:01 is left out: it has bits set")),
        "{said:#?}"
    );
    assert_eq!(
        lines(Ok(reading)),
        [" | 10.0.0.10 2001:db8::1 | 4: 10.0.0.11; 4p: 10.0.0.48/28; 6:  |  | "]
    );
}

#[test]
fn where_the_node_s_own_address_is_not_one_the_list_is_not_used() {
    let tree = tree(
        A,
        A,
        &[("local-ipv4s", "2001:db8::1\n10.0.0.10\n10.0.0.11")],
    );
    assert_eq!(lines(aws::parse(&tree)), [" |  |  |  | "]);
}

#[test]
fn odd_answers_are_errors() {
    let nic = |key: &str, text: &str| tree(A, A, &[(key, text)]);
    let many_nics: String = (0..65)
        .map(|n| format!("02:00:00:00:00:{n:02x}/\n"))
        .collect();
    let many: String = (0..5000)
        .map(|n| format!("10.1.{}.{}\n", n / 256, n % 256))
        .collect();
    let of_azure = |text: &str| format!(r#"{{"interface":[{text}]}}"#);
    let deep = "[".repeat(100_000);
    let twice = r#"{"mac":"42:01:0a:80:00:05","ip":"10.0.0.1"},{"mac":"42:01:0A:80:00:05","ip":"10.0.0.2"}"#;
    for (reading, part) in [
        (aws::parse(&Tree::default()), "is empty"),
        (aws::parse(&tree("\n", A, &[])), "is empty"),
        (aws::parse(&tree("<!DOCTYPE html>", A, &[])), "no MAC"),
        (aws::parse(&tree(&many_nics, A, &[])), "65 NICs"),
        (
            aws::parse(&nic("local-ipv4s", "10.0.0.1\nbusy")),
            "local-ipv4s has \"busy\"",
        ),
        (
            aws::parse(&nic("local-ipv4s", &many)),
            "more than any NIC has",
        ),
        (aws::parse(&nic("ipv4-prefix", "10.0.0.16")), "no prefix"),
        (aws::parse(&nic("ipv4-prefix", "10.0.0.16/33")), "no prefix"),
        (
            aws::parse(&nic("subnet-ipv6-cidr-blocks", "null")),
            "no prefix",
        ),
        (
            alibaba::parse(&nic("private-ipv4s", "[\"10.0.0.1\", {}]")),
            "no address",
        ),
        (alibaba::parse(&nic("gateway", "<null>")), "no address"),
        (
            tencent::parse(&nic("local-ipv4s/", "gateway\n")),
            "no address",
        ),
        (azure::parse(""), "documented JSON"),
        (azure::parse("<html>"), "documented JSON"),
        (azure::parse(&deep), "documented JSON"),
        (azure::parse("{\"interface\":[]}"), "is empty"),
        (azure::parse("{\"interface\":null}"), "documented JSON"),
        (azure::parse(&of_azure("{\"macAddress\":\"\"}")), "no MAC"),
        (
            azure::parse(&of_azure(
                r#"{"macAddress":"000D3A1B00FF","ipv4":{"ipAddress":[{"privateIpAddress":""}]}}"#,
            )),
            "no address",
        ),
        (
            azure::parse(&of_azure(
                r#"{"macAddress":"000D3A1B00FF","ipv4":{"subnet":[{"address":"10.0.0.0","prefix":"99"}]}}"#,
            )),
            "no prefix",
        ),
        (gcp::parse("[]"), "is empty"),
        (gcp::parse("{}"), "documented JSON"),
        (gcp::parse(&format!("[{twice}]")), "that differ"),
        (
            gcp::parse(
                r#"[{"mac":"42:01:0a:80:00:05","ip":"10.0.0.1","subnetmask":"255.0.255.0"}]"#,
            ),
            "no prefix",
        ),
    ] {
        let error = reading.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}
