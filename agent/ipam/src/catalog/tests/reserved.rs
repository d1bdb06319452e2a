use super::*;

fn reserved(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderReservedIP\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_reservation_counts_for_every_pool_wherever_it_is_declared() {
    let catalog = catalog(
        &[
            reserved("first", "{ips: [10.0.0.3, 10.9.0.0-10.9.0.255]}"),
            pool("a", "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9]}"),
            pool("b", "{subnet: 'fd00::/64', ips: ['fd00::1-fd00::3']}"),
            reserved("last", "{ips: [10.0.0.8-10.0.0.20]}"),
            reserved("six", "{ipVersion: 6, ips: ['fd00::2']}"),
        ]
        .concat(),
    );
    assert_eq!(catalog.problems(), []);
    let [a, b] = catalog.pools() else {
        panic!("{:?}", catalog.pools())
    };
    assert_eq!(a.ranges.to_string(), "10.0.0.1-10.0.0.2, 10.0.0.4-10.0.0.7");
    assert_eq!(a.reserved.to_string(), "10.0.0.3, 10.0.0.8-10.0.0.9");
    assert_eq!(b.ranges.to_string(), "fd00::1, fd00::3");
    assert_eq!(catalog.reserved().len(), 3);
}

#[test]
fn two_pools_may_not_share_an_address_even_if_it_is_reserved() {
    let catalog = catalog(
        &[
            reserved("r", "{ips: [10.0.0.5]}"),
            pool("a", "{subnet: 10.0.0.0/24, ips: [10.0.0.5]}"),
            pool("b", "{subnet: 10.0.0.0/24, ips: [10.0.0.5]}"),
        ]
        .concat(),
    );
    assert_eq!(catalog.problems().len(), 1, "{:?}", catalog.problems());
}

#[test]
fn each_rule_names_field_value_and_reason() {
    for (spec, field, message) in [
        ("{}", "spec.ips", "is missing"),
        ("{ips: []}", "spec.ips", "is missing"),
        ("{ips: [x]}", "spec.ips[0]", "neither an address"),
        ("{ips: [10.0.0.9-10.0.0.1]}", "spec.ips[0]", "ends before"),
        ("{ips: [10.0.0.1, 'fd00::1']}", "spec.ips[1]", "is not IPv4"),
        (
            "{ipVersion: 6, ips: [10.0.0.1]}",
            "spec.ips[0]",
            "is not IPv6",
        ),
        (
            "{ipVersion: 5, ips: [10.0.0.1]}",
            "spec.ipVersion",
            "neither 4 nor 6",
        ),
    ] {
        let catalog = catalog(&reserved("r", spec));
        assert_eq!(catalog.reserved(), [], "{spec}");
        let [problem] = catalog.problems() else {
            panic!("{spec}: {:?}", catalog.problems())
        };
        assert_eq!(problem.field.as_deref(), Some(field), "{spec}: {problem}");
        assert!(problem.message.contains(message), "{spec}: {problem}");
    }
    let twice = catalog(&reserved("r", "{ips: [10.0.0.1]}").repeat(2));
    assert_eq!(twice.problems()[0].field.as_deref(), Some("metadata.name"));
}
