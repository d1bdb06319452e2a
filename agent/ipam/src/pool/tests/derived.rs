//! Addresses that the cloud has assigned to a NIC: who gets them, and who keeps them.

use ebbtide_types::{Family, ObjectName, settings::CloudSetting};

use super::*;
use crate::catalog::{DerivedNic, DerivedNote};

const LINK: &str = "ens6";

fn declared() -> Catalog {
    catalog("any: {subnet: 10.7.0.0/24, ips: [10.7.0.5-10.7.0.9], default: true}")
}

fn nic(blocks: &[&str]) -> DerivedNic {
    let net = |text: &&str| text.parse::<IpAddr>().unwrap().into();
    DerivedNic {
        node: "node".into(),
        link: LINK.into(),
        family: Family::V4,
        blocks: blocks.iter().map(net).collect(),
        primary: vec!["10.0.0.4".parse().unwrap()],
        gateway: Some("10.0.0.1".parse().unwrap()),
        subnets: vec!["10.0.0.0/24".parse().unwrap()],
        source: "aws eni-1".into(),
    }
}

fn derived(blocks: &[&str]) -> Catalog {
    let notes = [DerivedNote::of_nic(LINK, CloudSetting::Aws, "eni-1")];
    declared().with_derived(&[nic(blocks)], &notes)
}

/// What a request gets, or the error's text.
fn given(pools: &Pools, container: &str, request: &Request<'_>) -> Result<Vec<String>, String> {
    let owner = owner(container);
    let request = Request {
        owner: &owner,
        ..*request
    };
    match pools.reserve(&request) {
        Ok(Reserved::New(grant)) => Ok(texts(&wait(grant.commit(json!({}))).unwrap().assigned)),
        Ok(Reserved::Existing(allocation)) => Ok(texts(&allocation.assigned)),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_network_of_the_metadata_has_that_nic_s_addresses_alone_and_no_other_network_has_them() {
    let lab = Lab::new();
    let pools = lab.open();
    let catalog = derived(&["10.0.0.5", "10.0.0.6"]);
    let nobody = owner("");
    let plain = Request::new(&nobody, "node", &catalog);
    let metadata = Request {
        metadata: Some(LINK),
        ..plain
    };
    assert_eq!(given(&pools, "a", &plain), Ok(vec!["10.7.0.5".into()]));
    assert_eq!(given(&pools, "b", &metadata), Ok(vec!["10.0.0.5".into()]));
    // Not by name either, neither this way nor that.
    for names in [["node-ens6-v4".to_owned()], ["node-*".to_owned()]] {
        let request = Request {
            source: Source::Named {
                ipv4: &names,
                ipv6: &[],
            },
            ..plain
        };
        let error = given(&pools, "c", &request).unwrap_err();
        assert!(error.contains("is of the metadata of NIC ens6"), "{error}");
        let request = Request {
            metadata: Some(LINK),
            ..request
        };
        assert_eq!(given(&pools, "c", &request), Ok(vec!["10.0.0.6".into()]));
        release(&pools, "c").unwrap();
        lab.pass(3600);
    }
    let other = ["any".to_owned()];
    let request = Request {
        source: Source::Named {
            ipv4: &other,
            ipv6: &[],
        },
        ..metadata
    };
    let error = given(&pools, "d", &request).unwrap_err();
    assert!(
        error.contains("pool any is none of the metadata of NIC ens6"),
        "{error}"
    );
    // Full: no default pool helps out.
    assert_eq!(given(&pools, "c", &metadata), Ok(vec!["10.0.0.6".into()]));
    let error = given(&pools, "e", &metadata).unwrap_err();
    assert!(
        error.contains("node-ens6-v4 has 2 of 2 in use")
            && error
                .contains("assign more addresses to the NIC: aws ec2 assign-private-ip-addresses"),
        "{error}"
    );
    for container in ["f", "g", "h", "i"] {
        given(&pools, container, &plain).unwrap();
    }
    let error = given(&pools, "j", &plain).unwrap_err();
    assert!(
        error.contains("spec.ips") && !error.contains("ens6"),
        "{error}"
    );
}

#[test]
fn a_namespace_s_default_pools_are_not_for_networks_of_the_metadata() {
    let lab = Lab::new();
    let pools = lab.open();
    let catalog = derived(&["10.0.0.5", "10.0.0.6"]);
    let nobody = owner("");
    let mut subject = Subject::UNKNOWN;
    let mut of_namespace = Object::named("shop");
    of_namespace.annotations = [(
        "ipam.spidernet.io/default-ipv4-ippool".into(),
        r#"["any"]"#.into(),
    )]
    .into();
    subject.namespace = of_namespace;
    let request = Request {
        metadata: Some(LINK),
        subject: &subject,
        ..Request::new(&nobody, "node", &catalog)
    };
    assert_eq!(given(&pools, "a", &request), Ok(vec!["10.0.0.5".into()]));
}

#[test]
fn without_addresses_the_error_says_what_to_do_at_the_cloud() {
    let lab = Lab::new();
    let pools = lab.open();
    let nobody = owner("");
    let name = ObjectName {
        namespace: "default".into(),
        name: "ens6-metadata".into(),
    };
    let error = |catalog: &Catalog| {
        let request = Request {
            metadata: Some(LINK),
            network: Some(&name),
            ..Request::new(&nobody, "node", catalog)
        };
        given(&pools, "a", &request).unwrap_err()
    };
    let notes = [
        DerivedNote::of_nic(LINK, CloudSetting::Aws, "eni-1"),
        DerivedNote::not_read("no route to 169.254.169.254"),
    ];
    assert_eq!(
        error(&declared().with_derived(&[], &notes)),
        "no address of NIC ens6 serves node \"node\" and network default/ens6-metadata: no secondary addresses are \
         assigned to NIC eni-1 yet. Assign some: aws ec2 assign-private-ip-addresses --network-interface-id eni-1 \
         --secondary-private-ip-address-count 1"
    );
    assert_eq!(
        error(&declared().with_derived(&[], &notes[1..])),
        "no address of NIC ens6 serves node \"node\" and network default/ens6-metadata: the cloud's metadata service \
         has not been read yet (no route to 169.254.169.254)"
    );
    let text = error(&declared());
    assert!(
        text.contains("has told of no NIC ens6") && text.contains("`cloud`"),
        "{text}"
    );
}

#[test]
fn who_names_another_pool_is_told_the_nic_s_own() {
    let lab = Lab::new();
    let pools = lab.open();
    let nobody = owner("");
    let catalog = derived(&["10.0.0.5"]);
    let names = ["other-ens6-v4".to_owned()];
    let request = Request {
        metadata: Some(LINK),
        source: Source::Named {
            ipv4: &names,
            ipv6: &[],
        },
        ..Request::new(&nobody, "node", &catalog)
    };
    let error = given(&pools, "a", &request).unwrap_err();
    assert!(
        error.ends_with(
            "pool other-ens6-v4 is named but not declared, or invalid; the addresses of NIC ens6 on this node are in \
             pool node-ens6-v4. Name that one, or none"
        ),
        "{error}"
    );
}

#[test]
fn a_pod_keeps_an_address_that_the_cloud_took_away_and_nobody_else_gets_it() {
    let lab = Lab::new();
    let pools = lab.open();
    let nobody = owner("");
    let full = derived(&["10.0.0.5", "10.0.0.6"]);
    let ask = |container: &str, catalog: &Catalog| {
        let request = Request {
            metadata: Some(LINK),
            ..Request::new(&nobody, "node", catalog)
        };
        given(&pools, container, &request)
    };
    assert_eq!(ask("a", &full), Ok(vec!["10.0.0.5".into()]));
    for catalog in [derived(&["10.0.0.6"]), derived(&[]), declared()] {
        // A repeated ADD, and the record.
        assert_eq!(ask("a", &catalog), Ok(vec!["10.0.0.5".into()]));
        assert_eq!(
            get(&pools, &owner("a")).unwrap().assigned[0].pool,
            "node-ens6-v4"
        );
        let kept = catalog.clone().keeping_used_pools(&full, |_| true);
        assert_eq!(kept, catalog);
    }
    let rest = derived(&["10.0.0.6"]);
    assert_eq!(ask("b", &rest), Ok(vec!["10.0.0.6".into()]));
    // It is released, and not handed out again, not even to the pod that had it.
    release(&pools, "a").unwrap();
    lab.pass(3600);
    for catalog in [&rest, &derived(&[])] {
        let error = ask("a", catalog).unwrap_err();
        assert!(
            error.contains("Delete pods, wait, or assign more addresses"),
            "{error}"
        );
    }
    assert_eq!(ask("a", &full), Ok(vec!["10.0.0.5".into()]));
    // So it is after a restart.
    drop(pools);
    let pools = lab.open();
    let request = Request {
        metadata: Some(LINK),
        ..Request::new(&nobody, "node", &rest)
    };
    assert_eq!(given(&pools, "a", &request), Ok(vec!["10.0.0.5".into()]));
    assert!(given(&pools, "c", &request).is_err());
}
