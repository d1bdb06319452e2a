//! AWS: instance metadata of version 2, a tree of text behind session tokens.
//!
//! Lists are lines. What a NIC has none of is not found, and there is no gateway.

use serde_json::json;

use super::{
    Cloud, Knobs,
    exchange::{Asked, Reply},
    tokens::{Form, Tokens},
    told::{Told, ToldNic, joined},
    tree::Tree,
};
use crate::plan::Family;

const FORM: Form = Form {
    cloud: Cloud::Aws,
    life_header: "x-aws-ec2-metadata-token-ttl-seconds",
    token_header: "x-aws-ec2-metadata-token",
};

/// Some of the versions; the root lists them.
const VERSIONS: [&str; 7] = [
    "2009-04-04",
    "2016-09-02",
    "2018-09-24",
    "2019-10-01",
    "2021-03-23",
    "2024-04-11",
    "latest",
];
const ACCOUNT: &str = "123456789012";
const REGION: &str = "eu-central-1";
const ZONE: &str = "eu-central-1a";
const TYPE: &str = "m5.large";
const IMAGE: &str = "ami-0eb8000000000001a";

/// Answers a request.
pub(super) fn answer(asked: &Asked, told: &Told, tokens: &Tokens, knobs: &Knobs) -> Reply {
    let screened = tokens.screen(asked, &told.node, &FORM, knobs.token_life, true);
    if let Some(reply) = screened {
        return reply.with("server", "EC2ws");
    }
    reply(&asked.parts(), told).with("server", "EC2ws")
}

fn reply(path: &[&str], told: &Told) -> Reply {
    match path {
        [] => Reply::text(200, VERSIONS.join("\n")),
        [version, ..] if !VERSIONS.contains(version) => Reply::failure(404),
        [_] => Reply::text(200, "dynamic\nmeta-data"),
        [_, "meta-data", path @ ..] => meta_data(told).reply(path),
        [_, "dynamic", path @ ..] => dynamic(told).reply(path),
        _ => Reply::failure(404),
    }
}

fn meta_data(told: &Told) -> Tree {
    let macs = told.nics.iter().fold(Tree::empty(), |macs, nic| {
        macs.branch(&nic.mac(), interface(nic, told))
    });
    let macs = Tree::empty().branch("macs", macs);
    let placement = Tree::empty()
        .leaf("availability-zone", ZONE)
        .leaf("availability-zone-id", "euc1-az2")
        .leaf("region", REGION);
    let services = Tree::empty()
        .leaf("domain", "amazonaws.com")
        .leaf("partition", "aws");
    let mac = told.first().map(ToldNic::mac).unwrap_or_default();
    Tree::empty()
        .leaf("ami-id", IMAGE)
        .leaf("ami-launch-index", "0")
        .leaf("ami-manifest-path", "(unknown)")
        .leaf("hostname", hostname(&told.address()))
        .leaf("instance-action", "none")
        .leaf("instance-id", instance_id(told))
        .leaf("instance-life-cycle", "on-demand")
        .leaf("instance-type", TYPE)
        .leaf("local-hostname", hostname(&told.address()))
        .leaf("local-ipv4", told.address())
        .leaf("mac", mac)
        .branch("network", Tree::empty().branch("interfaces", macs))
        .branch("placement", placement)
        .leaf("profile", "default-hvm")
        .leaf("reservation-id", format!("r-0{:016x}", told.number()))
        .leaf("security-groups", "nodes")
        .branch("services", services)
}

fn interface(nic: &ToldNic, told: &Told) -> Tree {
    if nic.is_bare {
        return Tree::empty();
    }
    let [v4, v6] = [Family::V4, Family::V6].map(|family| nic.addresses(family));
    let subnet = nic.subnet(Family::V4);
    let id = || format!("eni-0{:0>16}", nic.mac_with(""));
    let [vpc4, vpc6] = Family::BOTH.map(|family| told.subnets(family));
    Tree::empty()
        .leaf("device-number", nic.number.to_string())
        .leaf("interface-id", nic.id.clone().unwrap_or_else(id))
        .some("ipv4-prefix", joined(&nic.prefixes(Family::V4), "\n"))
        .some("ipv6-prefix", joined(&nic.prefixes(Family::V6), "\n"))
        .some("ipv6s", joined(&v6, "\n"))
        .leaf("local-hostname", hostname(&joined(&v4[..1], "")))
        .leaf("local-ipv4s", joined(&v4, "\n"))
        .leaf("mac", nic.mac())
        .leaf("owner-id", ACCOUNT)
        .leaf("security-group-ids", "sg-0eb80000000000001")
        .leaf("security-groups", "nodes")
        .leaf("subnet-id", format!("subnet-0{:0>16}", nic.mac_with("")))
        .leaf("subnet-ipv4-cidr-block", subnet.to_string())
        .leaf(
            "subnet-ipv6-cidr-blocks",
            nic.subnet(Family::V6).to_string(),
        )
        .leaf("vpc-id", "vpc-0eb80000000000001")
        .leaf(
            "vpc-ipv4-cidr-block",
            vpc4.first().cloned().unwrap_or_default(),
        )
        .leaf("vpc-ipv4-cidr-blocks", vpc4.join("\n"))
        .leaf("vpc-ipv6-cidr-blocks", vpc6.join("\n"))
}

fn dynamic(told: &Told) -> Tree {
    let document = json!({
        "accountId": ACCOUNT,
        "architecture": "x86_64",
        "availabilityZone": ZONE,
        "billingProducts": null,
        "devpayProductCodes": null,
        "imageId": IMAGE,
        "instanceId": instance_id(told),
        "instanceType": TYPE,
        "kernelId": null,
        "marketplaceProductCodes": null,
        "pendingTime": "2026-01-01T00:00:00Z",
        "privateIp": told.address(),
        "ramdiskId": null,
        "region": REGION,
        "version": "2017-09-30",
    });
    let identity = Tree::empty().leaf("document", format!("{document:#}"));
    Tree::empty().branch("instance-identity", identity)
}

fn instance_id(told: &Told) -> String {
    format!("i-0{:016x}", told.number())
}

fn hostname(address: &str) -> String {
    format!("ip-{}.{REGION}.compute.internal", address.replace('.', "-"))
}
