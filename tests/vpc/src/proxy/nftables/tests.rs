use super::{
    super::{
        ExternalTrafficPolicy::{Cluster, Local},
        NodePorts,
        tests::{service, settings},
    },
    *,
};

fn script(node: &str, settings: &Settings, style: Style, services: &[Service]) -> String {
    rules(Family::V4, node, settings, style, services.iter())
}

/// Returns the lines of a chain, set or map, without those that all of its kind have.
fn inside<'a>(script: &'a str, head: &str) -> Vec<&'a str> {
    let lines = script.lines().map(str::trim);
    let found = lines.skip_while(|line| *line != format!("{head} {{"));
    let body = found.skip(1).take_while(|line| *line != "}");
    let body = body.map(|line| line.trim_end_matches(','));
    body.filter(|line| !line.starts_with("type ") && *line != "elements = {")
        .collect()
}

#[test]
fn a_service_of_policy_cluster_is_spread_and_masqueraded() {
    let both = [
        (
            Style::Chains,
            "jump mark-for-masquerade",
            &[
                "ip daddr 10.96.0.10 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade",
                "numgen random mod 2 vmap { 0 : goto endpoint-WEB-0, 1 : goto endpoint-WEB-1 }",
            ][..],
            &[][..],
        ),
        (
            Style::Maps,
            "mark set mark or 0x4000",
            &[
                "meta l4proto tcp dnat ip addr . port to numgen random mod 2 map \
               { 0 : 172.31.16.4 . 8080, 1 : 180.17.16.11 . 8080 }",
            ],
            &["ip daddr @cluster-ips ip saddr != 10.244.0.0/16 mark set mark or 0x4000"],
        ),
    ];
    for (style, mark, all, elsewhere) in both {
        let script = script("master", &settings(), style, &[service(Cluster)]);
        assert_eq!(inside(&script, "chain service-WEB"), all, "{script}");
        let external = inside(&script, "chain external-WEB");
        assert_eq!(external, [mark, "goto service-WEB"], "{script}");
        let dispatch = inside(&script, "chain services");
        let (before, dispatch) = dispatch.split_at(dispatch.len() - 2);
        assert_eq!(before, elsewhere, "{script}");
        assert_eq!(
            dispatch,
            [
                "ip daddr . meta l4proto . th dport vmap @service-ips",
                "fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap \
                 @service-nodeports"
            ]
        );
        for (map, element) in [
            ("service-ips", "10.96.0.10 . tcp . 80 : goto service-WEB"),
            ("service-nodeports", "tcp . 30080 : goto external-WEB"),
        ] {
            assert_eq!(inside(&script, &format!("map {map}")), [element]);
        }
    }
}

#[test]
fn a_service_of_policy_local_keeps_to_its_node() {
    let cases = [
        ("master", 2, Some("0"), None),
        ("worker1", 2, Some("1"), None),
        ("worker1", 1, None, Some("tcp . 30080 : drop")),
    ];
    for style in Style::ALL {
        for (node, backends, near, dropped) in cases {
            let mut service = service(Local);
            service.backends.truncate(backends);
            let script = script(node, &settings(), style, &[service]);
            let local = inside(&script, "chain local-WEB");
            let addresses = ["172.31.16.4 . 8080", "180.17.16.11 . 8080"];
            let expected = near.map(|number: &str| match style {
                Style::Chains => {
                    format!("numgen random mod 1 vmap {{ 0 : goto endpoint-WEB-{number} }}")
                }
                Style::Maps => format!(
                    "meta l4proto tcp dnat ip addr . port to numgen random mod 1 map {{ 0 : {} }}",
                    addresses[number.parse::<usize>().unwrap()]
                ),
            });
            assert_eq!(local, Vec::from_iter(expected), "{script}");
            let external = inside(&script, "chain external-WEB");
            assert_eq!(external[0], "ip saddr 10.244.0.0/16 goto service-WEB");
            assert_eq!(external[2], "fib saddr type local goto service-WEB");
            let last = external.get(3).copied();
            assert_eq!(last, near.map(|_| "goto local-WEB"), "{script}");
            let none = inside(&script, "map no-endpoint-nodeports");
            assert_eq!(none, Vec::from_iter(dropped), "{script}");
        }
    }
}

#[test]
fn without_an_endpoint_a_service_is_refused() {
    for style in Style::ALL {
        let mut service = service(Cluster);
        service.backends.clear();
        let script = script("master", &settings(), style, &[service]);
        for (map, element) in [
            ("service-ips", None),
            ("service-nodeports", None),
            (
                "no-endpoint-services",
                Some("10.96.0.10 . tcp . 80 : goto reject-chain"),
            ),
            (
                "no-endpoint-nodeports",
                Some("tcp . 30080 : goto reject-chain"),
            ),
        ] {
            let elements = inside(&script, &format!("map {map}"));
            assert_eq!(elements, Vec::from_iter(element), "{map}: {script}");
        }
        assert!(!script.contains("chain external-WEB"), "{script}");
    }
}

#[test]
fn who_reaches_itself_is_masqueraded() {
    let services = [service(Cluster)];
    let script = |style| script("master", &settings(), style, &services);
    let chains = script(Style::Chains);
    for (number, address) in ["172.31.16.4", "180.17.16.11"].into_iter().enumerate() {
        assert_eq!(
            inside(&chains, &format!("chain endpoint-WEB-{number}")),
            [
                format!("ip saddr {address} jump mark-for-masquerade"),
                format!("meta l4proto tcp dnat to {address}:8080"),
            ]
        );
    }
    assert!(!chains.contains("hairpin"), "{chains}");
    // A pod elsewhere is masqueraded at this port.
    assert_eq!(
        inside(&script(Style::Maps), "set hairpin-connections"),
        ["172.31.16.4 . 172.31.16.4 . tcp . 8080"]
    );
}

#[test]
fn what_is_not_masqueraded_is_left_out() {
    let plain = Service {
        name: "PLAIN".into(),
        cluster: "10.96.0.11:80".parse().unwrap(),
        masquerade: false,
        ..service(Cluster)
    };
    let script = |style| {
        script(
            "master",
            &settings(),
            style,
            &[service(Cluster), plain.clone()],
        )
    };
    assert_eq!(
        inside(&script(Style::Maps), "chain services")[0],
        "ip daddr { 10.96.0.10 } ip saddr != 10.244.0.0/16 mark set mark or 0x4000"
    );
    let chains = script(Style::Chains);
    assert_eq!(inside(&chains, "chain service-PLAIN").len(), 1, "{chains}");
}

#[test]
fn node_ports_are_served_at_the_addresses_that_are_set() {
    let addresses = ["172.31.16.10", "fd00:31::10"].map(|one| one.parse().unwrap());
    let settings = Settings {
        node_ports: NodePorts::At(addresses.to_vec()),
        ..settings()
    };
    for style in Style::ALL {
        let script = script("master", &settings, style, &[service(Cluster)]);
        assert_eq!(inside(&script, "set nodeport-ips"), ["172.31.16.10"]);
        let last = inside(&script, "chain services").pop();
        assert_eq!(
            last,
            Some("ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports")
        );
    }
}

#[test]
fn each_style_filters_at_its_own_priorities() {
    for (style, hooks) in [
        (
            Style::Chains,
            [
                "filter-prerouting: filter hook prerouting priority -110",
                "filter-input: filter hook input priority -110",
                "filter-forward: filter hook forward priority -110",
                "filter-output: filter hook output priority -110",
                "filter-output-post-dnat: filter hook output priority -90",
            ],
        ),
        (
            Style::Maps,
            [
                "filter-prerouting-pre-dnat: filter hook prerouting priority -110",
                "filter-output-pre-dnat: filter hook output priority -110",
                "filter-input: filter hook input priority 0",
                "filter-forward: filter hook forward priority 0",
                "filter-output: filter hook output priority 0",
            ],
        ),
    ] {
        let script = script("master", &settings(), style, &[]);
        for hook in hooks.into_iter().chain([
            "nat-prerouting: nat hook prerouting priority -100",
            "nat-output: nat hook output priority -100",
            "nat-postrouting: nat hook postrouting priority 100",
        ]) {
            let (name, kind) = hook.split_once(": ").unwrap();
            let head = format!("\tchain {name} {{\n\t\ttype {kind}; policy accept;\n");
            assert!(script.contains(&head), "{hook}: {script}");
        }
        assert_eq!(script.matches(" hook ").count(), 8, "{script}");
    }
}
