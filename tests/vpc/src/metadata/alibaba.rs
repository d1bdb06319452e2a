//! Alibaba Cloud: a tree of text after AWS', with tokens only in the hardened mode.
//!
//! Lists look like JSON, but those of IPv6 addresses have no quotes. `meta-data/all` is the whole tree as JSON.

use super::{
    Cloud, Knobs,
    exchange::{Asked, Reply},
    tokens::{Form, Tokens},
    told::{Told, ToldNic, joined},
    tree::Tree,
};
use crate::plan::Family;

const FORM: Form = Form {
    cloud: Cloud::Alibaba,
    life_header: "x-aliyun-ecs-metadata-token-ttl-seconds",
    token_header: "x-aliyun-ecs-metadata-token",
};

const REGION: &str = "cn-hangzhou";
const ZONE: &str = "cn-hangzhou-i";
const ACCOUNT: &str = "1234567890123456";
const VPC: &str = "vpc-bp1ebbtide000000001";
const TYPE: &str = "ecs.g7.xlarge";
const IMAGE: &str = "debian_12_x64_20G_alibase.vhd";

/// Answers a request.
pub(super) fn answer(asked: &Asked, told: &Told, tokens: &Tokens, knobs: &Knobs) -> Reply {
    let longest = knobs.token_life;
    if let Some(reply) = tokens.screen(asked, &told.node, &FORM, longest, knobs.hardened) {
        return reply;
    }
    match asked.parts().as_slice() {
        [] => Reply::text(200, "2016-01-01\nlatest"),
        ["2016-01-01" | "latest", below @ ..] => match below {
            [] => Reply::text(200, "dynamic/\nmeta-data/"),
            ["meta-data", "all"] => Reply::text(200, meta_data(told).json().to_string()),
            ["meta-data", path @ ..] => meta_data(told).reply(path),
            ["dynamic", path @ ..] => dynamic(told).reply(path),
            _ => Reply::failure(404),
        },
        _ => Reply::failure(404),
    }
}

fn meta_data(told: &Told) -> Tree {
    let macs = told.nics.iter().fold(Tree::empty(), |macs, nic| {
        macs.branch(&nic.mac(), interface(nic, told))
    });
    let macs = Tree::empty().branch("macs", macs);
    let instance = Tree::empty()
        .leaf("instance-name", told.node.clone())
        .leaf("instance-type", TYPE);
    let tree = Tree::empty()
        .leaf("hostname", told.node.clone())
        .leaf("image-id", IMAGE)
        .branch("instance", instance)
        .leaf("instance-id", instance_id(told));
    let tree = match told.first() {
        Some(first) => tree
            .leaf("mac", first.mac())
            .leaf(
                "sub-private-ipv4-list",
                joined(&first.secondary(Family::V4), ","),
            )
            .leaf("vswitch-cidr-block", first.subnet(Family::V4).to_string())
            .leaf("vswitch-id", vswitch_id(first)),
        None => tree,
    };
    tree.branch("network", Tree::empty().branch("interfaces", macs))
        .leaf("network-type", "vpc")
        .leaf("owner-account-id", ACCOUNT)
        .leaf("private-ipv4", told.address())
        .leaf("region-id", REGION)
        .leaf("serial-number", format!("{:032x}", told.number()))
        .leaf("source-address", "http://mirrors.cloud.aliyuncs.com")
        .leaf("vpc-cidr-block", vpc(told))
        .leaf("vpc-id", VPC)
        .leaf("zone-id", ZONE)
}

fn interface(nic: &ToldNic, told: &Told) -> Tree {
    if nic.is_bare {
        return Tree::empty();
    }
    let v4: Vec<String> = nic
        .addresses(Family::V4)
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect();
    Tree::empty()
        .leaf("gateway", nic.gateway(Family::V4).to_string())
        .some("ipv4-prefixes", joined(&nic.prefixes(Family::V4), "\n"))
        .leaf("ipv6-gateway", nic.gateway(Family::V6).to_string())
        .some("ipv6-prefixes", joined(&nic.prefixes(Family::V6), "\n"))
        .leaf(
            "ipv6s",
            format!("[{}]", joined(&nic.addresses(Family::V6), ",")),
        )
        .leaf("netmask", nic.netmask())
        .leaf(
            "network-interface-id",
            format!("eni-bp1{}", nic.mac_with("")),
        )
        .leaf(
            "primary-ip-address",
            nic.nic.primary(Family::V4).to_string(),
        )
        .leaf("private-ipv4s", format!("[{}]", v4.join(",")))
        .leaf("vpc-cidr-block", vpc(told))
        .leaf("vpc-id", VPC)
        .leaf(
            "vpc-ipv6-cidr-blocks",
            format!("[{}]", told.subnets(Family::V6).join(",")),
        )
        .leaf("vswitch-cidr-block", nic.subnet(Family::V4).to_string())
        .leaf("vswitch-id", vswitch_id(nic))
        .leaf(
            "vswitch-ipv6-cidr-block",
            nic.subnet(Family::V6).to_string(),
        )
}

fn dynamic(told: &Told) -> Tree {
    let document = serde_json::json!({
        "zone-id": ZONE,
        "instance-id": instance_id(told),
        "region-id": REGION,
        "private-ipv4": told.address(),
        "owner-account-id": ACCOUNT,
        "mac": told.first().map(ToldNic::mac),
        "image-id": IMAGE,
        "instance-type": TYPE,
    });
    let identity = Tree::empty().leaf("document", document.to_string());
    Tree::empty().branch("instance-identity", identity)
}

fn instance_id(told: &Told) -> String {
    format!("i-bp1{:016x}", told.number())
}

fn vswitch_id(nic: &ToldNic) -> String {
    format!("vsw-bp1{}", nic.mac_with(""))
}

/// The VPC's block, of which there is one. The plan's subnets have no block in common, so it is the first of them.
fn vpc(told: &Told) -> String {
    told.subnets(Family::V4)
        .first()
        .cloned()
        .unwrap_or_default()
}
