//! Rules as `iptables-save` prints them.

use super::*;

fn sent(state: &str) -> Packet<'_> {
    Packet::sent([172, 31, 16, 4].into(), "ens5", state)
}

/// As kube-proxy, Docker and the CNI plugin `portmap` have them.
const HARMLESS: &str = "\
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
*filter
:OUTPUT ACCEPT [0:0]
-A OUTPUT -m conntrack --ctstate INVALID -o docker0 -j DROP
-A FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
";

fn caught(rules: &str) -> Vec<(bool, String)> {
    let ruleset = Ruleset::parse(&format!("*nat\n{rules}\nCOMMIT\n"));
    let found = ruleset.masquerades(&sent("NEW")).into_iter();
    found.map(|one| (one.all, one.rule)).collect()
}

#[test]
fn what_is_not_for_pods_is_not_found() {
    let ruleset = Ruleset::parse(HARMLESS);
    assert_eq!(ruleset.masquerades(&sent("NEW")), []);
    let invalid = sent("INVALID");
    assert_eq!(ruleset.drops(&invalid), []);
}

#[test]
fn what_takes_a_pods_address_away_is_found() {
    // Rules, the index of the one that is found, and whether it matches everything.
    let cases: [(&str, Option<(usize, bool)>); 9] = [
        ("-A POSTROUTING -o ens5 -j MASQUERADE", Some((0, true))),
        (
            "-A POSTROUTING -o ens5 -j SNAT --to-source 172.31.22.228",
            Some((0, true)),
        ),
        (
            "-A POSTROUTING -s 172.31.16.0/24 -j ACCEPT\n-A POSTROUTING -j MASQUERADE",
            None,
        ),
        (
            "-A POSTROUTING -s 172.31.16.0/24 -j RETURN\n-A POSTROUTING -j MASQUERADE",
            None,
        ),
        // ip-masq-agent's.
        (
            "-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ\n\
             -A IP-MASQ -d 10.0.0.0/8 -j RETURN\n-A IP-MASQ -j MASQUERADE",
            Some((2, false)),
        ),
        (
            "-A POSTROUTING -j A\n-A POSTROUTING -j MASQUERADE\n-A A -o ens5 -j ACCEPT",
            None,
        ),
        (
            "-A POSTROUTING -g A\n-A POSTROUTING -j MASQUERADE\n-A A -o ens6 -j ACCEPT",
            None,
        ),
        (
            "-A POSTROUTING -j A\n-A A -j B\n-A A -j MASQUERADE\n-A B -o ens5 -j RETURN",
            Some((2, true)),
        ),
        ("-A POSTROUTING -j LOOP\n-A LOOP -j LOOP", None),
    ];
    for (rules, expected) in cases {
        let lines: Vec<&str> = rules.lines().map(str::trim).collect();
        let expected: Vec<_> = expected
            .map(|(line, all)| (all, format!("-t nat {}", lines[line])))
            .into_iter()
            .collect();
        assert_eq!(caught(&lines.join("\n")), expected, "{rules}");
    }
}

#[test]
fn what_drops_half_seen_connections_is_found() {
    let invalid = sent("INVALID");
    for (rules, found) in [
        ("-A OUTPUT -m conntrack --ctstate INVALID -j DROP", true),
        (
            "-A OUTPUT -m state --state INVALID,UNTRACKED -j REJECT",
            true,
        ),
        (
            "-A OUTPUT -j F\n-A F -p tcp -m conntrack --ctstate INVALID -j DROP",
            true,
        ),
        (
            "-A OUTPUT -s 172.31.0.0/16 -j ACCEPT\n-A OUTPUT -m state --state INVALID -j DROP",
            false,
        ),
        ("-A OUTPUT -d 10.0.0.1/32 -j DROP", false),
        ("-A INPUT -m conntrack --ctstate INVALID -j DROP", false),
    ] {
        let ruleset = Ruleset::parse(&format!("*filter\n{rules}\nCOMMIT\n"));
        assert_eq!(!ruleset.drops(&invalid).is_empty(), found, "{rules}");
    }
}

/// The requests of this family that pass a pod's veth.
fn by_the_veth(family: Family) -> [(&'static str, Packet<'static>); 5] {
    let pod: std::net::IpAddr = match family {
        Family::V4 => [172, 31, 16, 4].into(),
        Family::V6 => "fd00:16::4".parse().unwrap(),
    };
    let (veth, nic) = ("veth0123456789a", "ens5");
    use Protocol::{Tcp, Udp};
    [
        ("to tcp", Packet::to_pod(pod, nic, veth, Tcp)),
        ("to udp", Packet::to_pod(pod, nic, veth, Udp)),
        ("from tcp", Packet::from_pod(pod, veth, nic, Tcp)),
        ("kubelet", Packet::to_node(pod, veth, Tcp, 10250)),
        ("dns", Packet::to_node(pod, veth, Udp, 53)),
    ]
}

/// Returns the names of the requests that are matched, with `?` after those that may be.
fn blocked(ruleset: &Ruleset, family: Family) -> String {
    let caught = by_the_veth(family)
        .into_iter()
        .filter_map(|(name, packet)| {
            let found = ruleset.blocks(&packet);
            let sure = found.iter().any(|one| one.all);
            (!found.is_empty()).then(|| format!("{name}{}", if sure { "" } else { "?" }))
        });
    caught.collect::<Vec<_>>().join(", ")
}

/// Rules of kube-proxy, the kubelet, Docker and Calico, without restrictions.
const OPEN: &str = "\
*mangle
:FORWARD ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
:DOCKER-USER - [0:0]
-A INPUT -m comment --comment \"cali:Cz_u1IQiXIMmKD4c\" -j cali-INPUT
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"externally-visible\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
-A KUBE-EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j DROP
-A KUBE-EXTERNAL-SERVICES -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-PROXY-FIREWALL -d 203.0.113.8/32 -p tcp -m tcp --dport 80 -j DROP
-A KUBE-SERVICES -d 10.96.0.20/32 -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable
-A cali-FORWARD -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
-A cali-FORWARD -i cali+ -j cali-from-wl-dispatch
-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch
-A cali-INPUT -p ipencap -m addrtype --dst-type LOCAL -j DROP
-A cali-INPUT -i cali+ -g cali-wl-to-host
-A cali-INPUT -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-from-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP
-A cali-to-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP
-A cali-wl-to-host -j DROP
-A f2b-sshd -s 198.51.100.9/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-sshd -j RETURN
COMMIT
";

#[test]
fn what_shuts_no_pod_off_is_not_found() {
    let ruleset = Ruleset::parse(OPEN);
    for family in Family::BOTH {
        assert_eq!(blocked(&ruleset, family), "", "{family}");
    }
    // The same where Docker, or an administrator, restricts FORWARD: kube-proxy accepts what has its mark.
    let closed = OPEN.replace(":FORWARD ACCEPT", ":FORWARD DROP");
    let closed = Ruleset::parse(&closed.replacen(":FORWARD DROP", ":FORWARD ACCEPT", 1));
    for family in Family::BOTH {
        assert_eq!(
            blocked(&closed, family),
            "to tcp?, to udp?, from tcp?",
            "{family}"
        );
    }
}

#[test]
fn what_shuts_pods_off_is_found() {
    const ALL: &str = "to tcp, to udp, from tcp";
    const MAYBE: &str = "to tcp?, to udp?, from tcp?";
    let established = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    let dropping = |rules: &str| format!(":FORWARD DROP [0:0]\n{established}{rules}");
    let known = "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n\
                 -A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT\n";
    let ufw = "-A INPUT -j u-before\n-A INPUT -j u-user\n-A u-before -j u-not-local\n\
               -A u-not-local -m addrtype --dst-type LOCAL -j RETURN\n\
               -A u-not-local -m addrtype --dst-type MULTICAST -j RETURN\n-A u-not-local -j DROP\n\
               -A u-user -p tcp -m tcp --dport 22 -j ACCEPT\n";
    let cases: [(&str, String, &str); 24] = [
        ("policy", dropping(""), ALL),
        (
            "policy, and counters",
            dropping("").replace("-A", "[1:40] -A"),
            ALL,
        ),
        (
            "another link",
            dropping("-A FORWARD -i docker0 -j ACCEPT"),
            ALL,
        ),
        (
            "the veths",
            dropping("-A FORWARD -i veth+ -j ACCEPT\n-A FORWARD -o veth+ -j ACCEPT"),
            "",
        ),
        (
            "the NIC",
            dropping("-A FORWARD -i ens5 -j ACCEPT"),
            "from tcp",
        ),
        (
            "DNAT",
            dropping("-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
            "",
        ),
        (
            "a protocol",
            dropping("-A FORWARD -p udp -j ACCEPT"),
            "to tcp, from tcp",
        ),
        (
            "a set",
            dropping("-A FORWARD -m set --match-set pods src -j ACCEPT"),
            MAYBE,
        ),
        (
            "a port",
            dropping("-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT"),
            "to tcp?, to udp, from tcp?",
        ),
        (
            "deep",
            dropping("-A FORWARD -j A\n-A A -j B\n-A B -m mark --mark 0x1 -j ACCEPT"),
            MAYBE,
        ),
        (
            "returned",
            dropping("-A FORWARD -j A\n-A A -m mark --mark 0x1 -j RETURN\n-A A -j ACCEPT"),
            MAYBE,
        ),
        (
            "a queue",
            dropping("-A FORWARD -j NFQUEUE --queue-num 1"),
            "",
        ),
        ("REJECT", format!("{established}-A FORWARD -j REJECT"), ALL),
        (
            "DROP in a chain",
            "-A FORWARD -g A\n-A FORWARD -j ACCEPT\n-A A -j DROP".into(),
            ALL,
        ),
        (
            "some are dropped, and so is the rest",
            dropping("-A FORWARD -p tcp -m tcp --dport 80 -j DROP"),
            ALL,
        ),
        (
            "all but some",
            "-A FORWARD -m set ! --match-set known src -j DROP".into(),
            MAYBE,
        ),
        (
            "one mark",
            "-A FORWARD -m mark --mark 0x8 -j A\n-A A -j DROP".into(),
            "",
        ),
        (
            "a limit",
            "-A FORWARD -m limit --limit 5/min -j DROP".into(),
            "",
        ),
        (
            "Oracle's",
            format!("{known}-A INPUT -j REJECT --reject-with icmp-host-prohibited"),
            "kubelet, dns",
        ),
        (
            "INPUT's policy",
            format!(":INPUT DROP [0:0]\n{known}"),
            "kubelet, dns",
        ),
        (
            "ports",
            format!(":INPUT DROP [0:0]\n{known}-A INPUT -p tcp -m tcp --dport 10000: -j ACCEPT"),
            "dns",
        ),
        (
            "node-local DNS",
            format!(
                ":INPUT DROP [0:0]\n{known}-A INPUT -d 169.254.20.10/32 -p udp -m udp --dport 53 -j ACCEPT"
            ),
            "kubelet, dns?",
        ),
        ("ufw's", format!(":INPUT DROP [0:0]\n{ufw}"), "kubelet, dns"),
        ("ufw's, inactive", format!(":INPUT ACCEPT [0:0]\n{ufw}"), ""),
    ];
    for (name, rules, expected) in cases {
        let ruleset = Ruleset::parse(&format!("*filter\n{rules}\nCOMMIT\n"));
        for family in Family::BOTH {
            assert_eq!(blocked(&ruleset, family), expected, "{name}, {family}");
        }
    }
}

#[test]
fn the_remedy_is_for_the_chain_and_the_family_that_catch() {
    for (table, chain, family, expected) in [
        (
            "filter",
            "FORWARD",
            Family::V4,
            "`iptables -I FORWARD -d PODS -j ACCEPT` and `iptables -I FORWARD -s PODS",
        ),
        (
            "mangle",
            "FORWARD",
            Family::V6,
            "`ip6tables -t mangle -I FORWARD -d PODS -j ACCEPT` and",
        ),
        (
            "filter",
            "INPUT",
            Family::V6,
            "`ip6tables -I INPUT -i veth+ -s PODS -j ACCEPT`",
        ),
    ] {
        let ruleset = Ruleset::parse(&format!("*{table}\n:{chain} DROP [0:0]\nCOMMIT\n"));
        let packets = by_the_veth(family);
        let (_, packet) = &packets[if chain == "INPUT" { 3 } else { 0 }];
        let found = ruleset.blocks(packet);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].rule, format!("-t {table} -P {chain} DROP"));
        assert!(found[0].remedy.contains(expected), "{}", found[0].remedy);
    }
}
