//! What each dialect tells of a NIC, in the same words for all, and what it should.

use std::collections::BTreeSet;

use ebbtide_vpc::{
    metadata::Cloud,
    plan::{Family, Nic},
    vpc::Vpc,
};
use ipnet::IpNet;
use serde_json::Value;

use super::asker::{AZURE, Asker, GCP, GOOGLE, MACS, METADATA, mac};

/// What a dialect told of a NIC: all its addresses and prefixes of both families, and its gateway.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) v4: BTreeSet<String>,
    pub(super) v6: BTreeSet<String>,
    pub(super) gateway: Option<String>,
}

/// What should be told of a NIC.
pub(super) fn truth(vpc: &Vpc, nic: &Nic) -> View {
    let all = |family| {
        let blocks = vpc.assigned(&nic.node, &nic.name).into_iter();
        blocks
            .filter(|block| Family::of(block.addr()) == family)
            .map(shown)
            .chain([nic.primary(family).to_string()])
            .collect()
    };
    View {
        v4: all(Family::V4),
        v6: all(Family::V6),
        gateway: Some(nic.v4.gateway.to_string()),
    }
}

pub(super) fn shown(block: IpNet) -> String {
    if block.prefix_len() == block.max_prefix_len() {
        return block.addr().to_string();
    }
    block.to_string()
}

pub(super) fn lines(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(str::to_owned)
}

pub(super) fn view_of_aws(asker: Asker<'_>, nic: &Nic) -> View {
    let key = |key| asker.aws_key(nic, key);
    View {
        v4: lines(&key("local-ipv4s"))
            .chain(lines(&key("ipv4-prefix")))
            .collect(),
        v6: lines(&key("ipv6s"))
            .chain(lines(&key("ipv6-prefix")))
            .collect(),
        gateway: None,
    }
}

pub(super) fn view_of_alibaba(asker: Asker<'_>, nic: &Nic) -> View {
    let key = |key| {
        let answer = asker.get(Cloud::Alibaba, &format!("{MACS}{}/{key}", mac(nic)), &[]);
        if answer.status == 404 {
            return String::new();
        }
        assert_eq!(answer.status, 200);
        answer.text()
    };
    let v4: Vec<String> = serde_json::from_str(&key("private-ipv4s")).unwrap();
    let v6 = key("ipv6s");
    assert!(
        serde_json::from_str::<Value>(&v6).is_err(),
        "there are no quotes: {v6}"
    );
    let v6 = v6.trim_matches(['[', ']']).split(',').map(str::to_owned);
    View {
        v4: v4.into_iter().chain(lines(&key("ipv4-prefixes"))).collect(),
        v6: v6.chain(lines(&key("ipv6-prefixes"))).collect(),
        gateway: Some(key("gateway")),
    }
}

pub(super) fn view_of_azure(asker: Asker<'_>, nic: &Nic) -> View {
    let all = asker.get(Cloud::Azure, AZURE, &[METADATA]).json();
    let wanted = mac(nic).replace(':', "").to_uppercase();
    let interfaces = all["interface"].as_array().unwrap();
    let found = interfaces
        .iter()
        .find(|found| found["macAddress"] == wanted.as_str());
    let found = found.unwrap();
    let addresses = |family: &str| -> BTreeSet<String> {
        let all = found[family]["ipAddress"].as_array().unwrap();
        all.iter()
            .map(|address| address["privateIpAddress"].as_str().unwrap().to_owned())
            .collect()
    };
    let subnet = &found["ipv4"]["subnet"][0];
    let subnet = ["address", "prefix"].map(|key| subnet[key].as_str().unwrap().to_owned());
    assert_eq!(subnet.join("/"), nic.v4.primary.trunc().to_string());
    View {
        v4: addresses("ipv4"),
        v6: addresses("ipv6"),
        gateway: None,
    }
}

pub(super) fn view_of_gcp(asker: Asker<'_>, nic: &Nic) -> View {
    let answer = asker.get(Cloud::Gcp, GCP, &[GOOGLE]);
    assert_eq!(answer.headers["metadata-flavor"], "Google");
    let all = answer.json();
    let found = all
        .as_array()
        .unwrap()
        .iter()
        .find(|found| found["mac"] == mac(nic).as_str());
    let found = found.unwrap();
    let ranges = |key: &str, own: &Value| -> BTreeSet<String> {
        let ranges = found[key].as_array().unwrap().iter();
        ranges
            .map(|range| shown(range.as_str().unwrap().parse().unwrap()))
            .chain([own.as_str().unwrap().to_owned()])
            .collect()
    };
    View {
        v4: ranges("ipAliases", &found["ip"]),
        v6: ranges("forwardedIpv6s", &found["ipv6s"][0]),
        gateway: found["gateway"].as_str().map(str::to_owned),
    }
}

pub(super) fn view_of_tencent(asker: Asker<'_>, nic: &Nic) -> View {
    let path = format!("{MACS}{}/local-ipv4s/", mac(nic).to_uppercase());
    let get = |path: &str| asker.get(Cloud::Tencent, path, &[]).text();
    let v4: BTreeSet<String> = get(&path)
        .lines()
        .map(|line| line.strip_suffix('/').unwrap().to_owned())
        .collect();
    let gateways: BTreeSet<String> = v4
        .iter()
        .map(|address| get(&format!("{path}{address}/gateway")))
        .collect();
    assert_eq!(gateways.len(), 1);
    View {
        v4,
        v6: BTreeSet::new(),
        gateway: gateways.into_iter().next(),
    }
}

/// Every dialect tells the truth of every NIC of a node, as far as it can.
pub(super) fn assert_true(vpc: &Vpc, node: &str) {
    let asker = Asker::of(vpc.node(node));
    for nic in &vpc.plan.node(node).unwrap().nics {
        let truth = truth(vpc, nic);
        let single = |all: &BTreeSet<String>| -> BTreeSet<String> {
            all.iter()
                .filter(|block| !block.contains('/'))
                .cloned()
                .collect()
        };
        let without_gateway = View {
            gateway: None,
            v4: truth.v4.clone(),
            v6: truth.v6.clone(),
        };
        assert_eq!(view_of_aws(asker, nic), without_gateway);
        assert_eq!(view_of_alibaba(asker, nic), truth);
        assert_eq!(view_of_gcp(asker, nic), truth);
        let azure = View {
            v4: single(&truth.v4),
            v6: single(&truth.v6),
            gateway: None,
        };
        assert_eq!(view_of_azure(asker, nic), azure);
        let tencent = View {
            v4: single(&truth.v4),
            v6: BTreeSet::new(),
            gateway: truth.gateway.clone(),
        };
        assert_eq!(view_of_tencent(asker, nic), tencent);
    }
}
