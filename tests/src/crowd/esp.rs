//! ESP in transport mode between the node itself and a host, by each NIC.

use anyhow::Result;
use ebbtide_vpc::family::Family::V4;

use super::{
    cell::By,
    site::{Asking, HOST_PORT, Site, batch},
};

const CRYPTO: &str = "enc cbc(aes) 0x000102030405060708090a0b0c0d0e0f \
                      auth hmac(sha1) 0x000102030405060708090a0b0c0d0e0f10111213";

/// Builds the connections. Returns what this kernel lacks.
pub(super) fn set_up(site: &mut Site) -> Result<Option<String>> {
    let (node, far) = (site.node.clone(), site.far.clone());
    let there = site.vpc.nic("worker1", "ens5").v4.secondary[3];
    for (number, nic) in (0..).zip(["ens5", "ens6"]) {
        let own = site.near_address(nic, V4);
        for (host, local, remote) in [(&node, own, there), (&far, there, own)] {
            let lines: Vec<String> = [(own, there, 0x800 + number), (there, own, 0x810 + number)]
                .into_iter()
                .map(|(from, to, spi)| {
                    format!("xfrm state add src {from} dst {to} proto esp spi {spi:#x} mode transport {CRYPTO}")
                })
                .chain([("out", local, remote), ("in", remote, local)].map(|(way, from, to)| {
                    format!(
                        "xfrm policy add src {from}/32 dst {to}/32 dir {way} tmpl src {from} dst {to} \
                         proto esp mode transport"
                    )
                }))
                .collect();
            if let Err(error) = batch(host, V4, &lines) {
                return Ok(Some(format!("ESP, transport mode: {error:#}")));
            }
        }
        let group = "ESP, transport mode";
        let name = format!("node, {nic} → host");
        let outwards = Asking::new(group, name, &node, (there, HOST_PORT));
        site.ask(&outwards.from(own), &By::ALL);
        let name = format!("host → node, {nic}");
        let inwards = Asking::new(group, name, &far, (own, HOST_PORT));
        site.ask(&inwards.from(there), &By::ALL);
    }
    site.serve(&far, there, HOST_PORT);
    Ok(None)
}
