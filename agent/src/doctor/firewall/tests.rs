//! Tests of the findings about firewalls.

use ebbtide_kernel::netfilter::Ruleset;

use super::*;

fn pods() -> BTreeSet<Pod> {
    let pod = |(address, nic, veth): (&str, &str, &str)| Pod {
        address: address.parse().unwrap(),
        nic: nic.to_owned(),
        is_seen: true,
        veth: Some(veth.to_owned()),
    };
    let pods = [
        ("172.31.16.4", "ens5", "veth00000000001"),
        ("172.31.16.5", "ens5", "veth00000000002"),
        ("210.22.16.11", "ens6", "veth00000000003"),
        ("fd00:16::4", "ens5", "veth00000000001"),
    ];
    pods.map(pod).into()
}

#[test]
fn a_rule_is_one_finding_however_many_pods_it_catches() {
    let pods = pods();
    let nat = |rule: &str| format!("*nat\n-A POSTROUTING {rule}\nCOMMIT\n");
    let invalid = "*filter\n-A OUTPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
    use Severity::{Serious, Warning};
    let cases: [(String, &[(Severity, &str)]); 5] = [
        (String::new(), &[]),
        (nat("-o ens7 -j MASQUERADE"), &[]),
        (
            nat("-o ens5 -j MASQUERADE"),
            &[(Serious, "would give another source address to 2 pod")],
        ),
        (
            nat("! -d 10.0.0.0/8 -j MASQUERADE"),
            &[(Warning, "may give another source address to 3 pod")],
        ),
        (
            invalid.to_owned(),
            &[(Serious, "would drop replies of TCP servers")],
        ),
    ];
    for (text, expected) in cases {
        let rules = Rules {
            sets: vec![(Family::V4, Ruleset::parse(&text))],
            unseen: Vec::new(),
        };
        let found = judge(&rules, &pods);
        assert_eq!(found.len(), expected.len(), "{text}: {found:?}");
        for (finding, (severity, what)) in found.iter().zip(expected) {
            assert_eq!(finding.severity, *severity, "{finding}");
            assert!(finding.what.contains(what), "{finding}");
        }
    }
}

/// A name, a `filter` table, and the expected finding: its severity and its words.
type Case<'a> = (&'a str, String, Option<(Severity, &'a [&'a str])>);

/// The findings for a `filter` table: their severity and their words.
#[test]
fn a_firewall_that_shuts_pods_off_is_one_finding_that_says_what_suffers_and_what_to_do() {
    use Severity::{Serious, Warning};
    let known = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n\
                 -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n";
    let open = |ports: &str| format!("-A INPUT -p tcp -m multiport --dports {ports} -j ACCEPT\n");
    let reject = "-A INPUT -j REJECT --reject-with icmp-host-prohibited";
    let forward = [
        "would drop new connections to and from 3 pod address(es)",
        "NodePorts and Services",
        "-P FORWARD DROP",
        "`iptables -I FORWARD -d PODS -j ACCEPT`",
        "`iptables -I FORWARD -s PODS -j ACCEPT`",
    ];
    let input = [
        "would drop what 3 pod address(es) send to this node",
        "the kubelet (TCP 10250), node-local DNS (UDP 53), the API server",
        "-A INPUT -j REJECT",
        "`iptables -I INPUT -i veth+ -s PODS -j ACCEPT`",
    ];
    let cases: [Case<'_>; 9] = [
        ("all is accepted", ":FORWARD ACCEPT [0:0]".into(), None),
        ("FORWARD DROP", ":FORWARD DROP [0:0]".into(), Some((Serious, &forward))),
        (
            "FORWARD DROP, but for what has a mark",
            ":FORWARD DROP [0:0]\n-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT".into(),
            Some((Warning, &["may drop new connections to and from 3 pod"])),
        ),
        (
            "FORWARD lets pods in, but not out",
            ":FORWARD DROP [0:0]\n-A FORWARD -o veth+ -j ACCEPT".into(),
            Some((Serious, &["would drop new connections from 3 pod"])),
        ),
        (
            "FORWARD for one subnet, and for what others have to do with it",
            ":FORWARD DROP [0:0]\n-A FORWARD -s 172.31.0.0/16 -j ACCEPT\n-A FORWARD -d 172.31.0.0/16 -j ACCEPT"
                .into(),
            Some((Warning, &["to and from 1 pod"])),
        ),
        ("INPUT REJECT", format!("{known}{reject}"), Some((Serious, &input))),
        (
            "INPUT DROP",
            format!(":INPUT DROP [0:0]\n{known}"),
            Some((Serious, &["-P INPUT DROP"])),
        ),
        (
            "INPUT with a kubelet",
            format!("{known}{}{reject}", open("10250,30000:32767")),
            Some((Warning, &["reach: node-local DNS (UDP 53), the API server"])),
        ),
        (
            "INPUT with everything",
            format!("{known}{}-A INPUT -p udp --dport 53 -j ACCEPT\n{reject}", open("6000:7000,10250")),
            None,
        ),
    ];
    for (name, rules, expected) in cases {
        let text = format!("*filter\n{rules}\nCOMMIT\n");
        let rules = Rules {
            sets: vec![(Family::V4, Ruleset::parse(&text))],
            unseen: Vec::new(),
        };
        let found = judge(&rules, &pods());
        assert_eq!(
            found.len(),
            usize::from(expected.is_some()),
            "{name}: {found:?}"
        );
        for (finding, (severity, parts)) in found.iter().zip(expected) {
            assert_eq!(finding.severity, severity, "{name}: {finding}");
            let said = finding.to_string();
            assert!(
                parts.iter().all(|part| said.contains(part)),
                "{name}: {said}"
            );
        }
    }
}

#[test]
fn a_pod_without_a_veth_meets_neither_forward_nor_input() {
    let rules = ":INPUT DROP [0:0]\n:FORWARD DROP [0:0]";
    let rules = Rules {
        sets: vec![(
            Family::V4,
            Ruleset::parse(&format!("*filter\n{rules}\nCOMMIT\n")),
        )],
        unseen: Vec::new(),
    };
    let without = |pod| Pod { veth: None, ..pod };
    let pods = pods().into_iter().map(without).collect();
    assert_eq!(judge(&rules, &pods), []);
}
