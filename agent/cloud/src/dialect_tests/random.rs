//! What holds for every answer, however odd.

use std::{collections::BTreeSet, net::IpAddr};

use ebbtide_types::Family;
use ipnet::IpNet;
use proptest::prelude::*;

use crate::{Reading, Tree, Unreadable, alibaba, aws, azure, gcp, tencent, text::items};

fn is_sound(reading: Result<Reading, Unreadable>) {
    let Ok(reading) = reading else { return };
    let nics = &reading.view.nics;
    assert!(nics.array_windows().all(|[one, two]| one.mac < two.mac));
    assert!((1..=64).contains(&nics.len()));
    for nic in nics {
        for (kind, blocks) in &nic.blocks {
            assert!(blocks.array_windows().all(|[one, two]| one < two));
            for net in blocks {
                assert_eq!(Family::of_net(net), kind.family());
                assert!(net.prefix_len() >= 8 && net.addr() == net.network());
                let is_primary = |own: &IpAddr| *net == IpNet::from(*own);
                assert!(!nic.primary.iter().any(is_primary));
            }
        }
        let families = |list: &[IpAddr]| {
            let families: BTreeSet<_> = list.iter().map(|ip| Family::of(*ip)).collect();
            families.len() == list.len()
        };
        assert!(families(&nic.primary) && families(&nic.gateways));
    }
}

/// A text that is nearly one of a metadata service.
fn nearly() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "(10|127|224)\\.0\\.0\\.[0-9]{1,2}(/(0|8|28|32|33))?",
        "2001:db8::[0-9a-f]{1,2}(/(0|64|80|128))?",
        Just("fe80::1".to_owned()),
        Just("255.255.240.0".to_owned()),
        "[\\PC]{0,4}",
    ];
    let between = prop_oneof![Just("\n"), Just("/\n"), Just(","), Just("\",\""), Just(" ")];
    let list = proptest::collection::vec((word, between), 0..6);
    list.prop_map(|words| {
        words
            .into_iter()
            .map(|(word, between)| word + between)
            .collect()
    })
}

proptest! {
    #[test]
    fn parsers_of_trees_are_sound(
        list in "(02:0[aA]:00:00:00:0[1-3]/?[\n,]){0,4}",
        leaves in proptest::collection::vec((1_u8..4, 0_usize..20, nearly()), 0..30),
    ) {
        let keys = [
            "interface-id", "local-ipv4s", "ipv4-prefix", "ipv6s", "ipv6-prefix", "subnet-ipv4-cidr-block",
            "subnet-ipv6-cidr-blocks", "network-interface-id", "primary-ip-address", "private-ipv4s",
            "ipv4-prefixes", "ipv6-prefixes", "vswitch-cidr-block", "vswitch-ipv6-cidr-block", "gateway",
            "ipv6-gateway", "primary-local-ipv4", "local-ipv4s/", "local-ipv4s/10.0.0.1/gateway",
            "local-ipv4s/10.0.0.1/subnet-mask",
        ];
        let mut leaves: Vec<(String, String)> = leaves
            .into_iter()
            .map(|(nic, key, text)| (format!("02:0a:00:00:00:0{nic}/{}", keys[key]), text))
            .collect();
        leaves.push((String::new(), list));
        let tree: Tree = leaves.into_iter().collect();
        for parse in [aws::parse, alibaba::parse, tencent::parse] {
            is_sound(parse(&tree));
        }
    }

    #[test]
    fn parsers_of_documents_are_sound(
        text in "\\PC{0,200}",
        nics in proptest::collection::vec((0_u8..8, proptest::collection::vec(nearly(), 0..5)), 0..4),
    ) {
        for parse in [azure::parse, gcp::parse] {
            is_sound(parse(&text));
        }
        let words = |texts: &[String]| -> Vec<String> {
            texts.iter().flat_map(|text| items(text)).map(str::to_owned).collect()
        };
        let google: Vec<_> = nics.iter().map(|(mac, texts)| serde_json::json!({
            "mac": format!("42:01:0a:80:00:0{mac}"), "ip": words(texts).first(), "subnetmask": "255.255.255.0",
            "gateway": words(texts).last(), "ipAliases": words(texts), "ipv6s": words(texts),
        })).collect();
        is_sound(gcp::parse(&serde_json::Value::from(google).to_string()));
        let azures: Vec<_> = nics.iter().map(|(mac, texts)| {
            let list: Vec<_> = words(texts).iter().map(|ip| serde_json::json!({"privateIpAddress": ip})).collect();
            let subnet = serde_json::json!([{"address": words(texts).first(), "prefix": "24"}]);
            let family = serde_json::json!({"ipAddress": list, "subnet": subnet});
            serde_json::json!({"macAddress": format!("420A0A80000{mac}"), "ipv4": family, "ipv6": family})
        }).collect();
        is_sound(azure::parse(&serde_json::json!({"interface": azures}).to_string()));
    }
}
