//! Tencent Cloud: a tree of text, in which the addresses of a NIC are directories. It tells no prefixes and no IPv6.

use hyper::Method;

use super::{
    exchange::{Asked, Reply},
    told::{Told, ToldNic},
    tree::Tree,
};
use crate::plan::Family;

/// Answers a request.
pub(super) fn answer(asked: &Asked, told: &Told) -> Reply {
    if asked.method != Method::GET && asked.method != Method::HEAD {
        return Reply::failure(405);
    }
    match asked.parts().as_slice() {
        [] => Reply::text(200, "1.0\nlatest"),
        ["1.0" | "latest"] => Reply::text(200, "meta-data/"),
        ["1.0" | "latest", "meta-data", path @ ..] => meta_data(told).reply(path),
        _ => Reply::failure(404),
    }
}

fn meta_data(told: &Told) -> Tree {
    let macs = told.nics.iter().fold(Tree::empty(), |macs, nic| {
        macs.branch(&mac(nic), interface(nic))
    });
    let macs = Tree::empty().branch("macs", macs);
    let placement = Tree::empty()
        .leaf("region", "ap-guangzhou")
        .leaf("zone", "ap-guangzhou-3");
    let instance = Tree::empty().leaf("instance-type", "S5.LARGE8");
    Tree::empty()
        .branch("instance", instance)
        .leaf("instance-id", format!("ins-{:08x}", told.number() >> 32))
        .leaf("instance-name", told.node.clone())
        .leaf("local-ipv4", told.address())
        .leaf("mac", told.first().map(mac).unwrap_or_default())
        .branch("network", Tree::empty().branch("interfaces", macs))
        .branch("placement", placement)
        .leaf("uuid", format!("{:032x}", told.number()))
}

fn interface(nic: &ToldNic) -> Tree {
    if nic.is_bare {
        return Tree::empty();
    }
    let all = nic.addresses(Family::V4);
    let addresses = all.iter().fold(Tree::empty(), |addresses, address| {
        let one = Tree::empty()
            .leaf("gateway", nic.gateway(Family::V4).to_string())
            .leaf("local-ipv4", address.to_string())
            .leaf("subnet-mask", nic.netmask());
        addresses.branch(&address.to_string(), one)
    });
    Tree::empty()
        .branch("local-ipv4s", addresses)
        .leaf("mac", mac(nic))
        .leaf(
            "primary-local-ipv4",
            nic.nic.primary(Family::V4).to_string(),
        )
        .leaf("subnet-id", format!("subnet-{}", &nic.mac_with("")[4..]))
        .leaf("vpc-id", "vpc-ebbtide1")
}

fn mac(nic: &ToldNic) -> String {
    nic.mac().to_uppercase()
}
