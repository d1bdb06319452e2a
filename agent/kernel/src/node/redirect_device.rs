//! The redirect device, and how it is made.

use ebbtide_layout::HOST_MAC;
use ebbtide_types::Mac;
use tracing::warn;

use crate::netlink::{self, Batch, Netlink, model::Sysctl, sysctl};

/// The redirect device: a link without a network, created for its ingress. A packet that is redirected there is in the
/// host's stack, past the NIC's ipvlan handler. The pod's veth would do as well but for reverse path filtering (no far
/// address is behind it) and ICMP redirects (in and out by one link).
pub const REDIRECT_DEVICE: &str = "ebbtide0";

/// MTU of the redirect device, which no packet exceeds: kernels before 5.12 drop what is redirected to a link with a
/// smaller MTU (`is_skb_forwardable` in `__bpf_rx_skb`, net/core/filter.c).
const REDIRECT_DEVICE_MTU: u32 = 65535;

/// Returns the index of the link [`REDIRECT_DEVICE`], if it exists in the desired state.
pub async fn find_redirect_device(host: &Netlink) -> Option<u32> {
    let link = host.link(REDIRECT_DEVICE).await.ok().flatten()?;
    (link.up && link.mac == Some(Mac(HOST_MAC))).then_some(link.ifindex)
}

/// Creates the link [`REDIRECT_DEVICE`] and returns its index. Returns `None`, and logs a warning, if the kernel has no
/// such links.
pub async fn redirect_device(host: &Netlink) -> Option<u32> {
    match make_redirect_device(host).await {
        Ok(index) => index,
        Err(e) => {
            warn!(
                "pods will reach Services only where the proxy masquerades (is the kernel module \
                 `dummy` there?): {e}"
            );
            None
        }
    }
}

async fn make_redirect_device(host: &Netlink) -> Result<Option<u32>, netlink::Error> {
    if host.link(REDIRECT_DEVICE).await?.is_none() {
        let mut batch = Batch::default();
        batch.add_dummy(REDIRECT_DEVICE, Mac(HOST_MAC));
        batch.run(host).await?;
    }
    let setting = |family: &str, name: &str, value: &str| Sysctl {
        path: format!("net/{family}/conf/{REDIRECT_DEVICE}/{name}"),
        value: value.to_owned(),
    };
    // Packets with any source come in here. Where `all` filters, the mark and its rule satisfy it. Forwarding may be
    // off in `default`, which a new link inherits.
    let mut settings = vec![
        setting("ipv4", "rp_filter", "0"),
        setting("ipv4", "forwarding", "1"),
    ];
    if sysctl::root().join("net/ipv6").exists() {
        // No link-local address, no router solicitations (`IN6_ADDR_GEN_MODE_NONE`).
        settings.push(setting("ipv6", "addr_gen_mode", "1"));
    }
    sysctl::write_all(&settings)?;
    let Some(link) = host.link(REDIRECT_DEVICE).await? else {
        return Ok(None);
    };
    let mut batch = Batch::default();
    batch.repair(&link, REDIRECT_DEVICE_MTU, Some(Mac(HOST_MAC)));
    batch.set_up(REDIRECT_DEVICE, link.ifindex, Some("ebbtide"));
    batch.run(host).await?;
    Ok(Some(link.ifindex))
}
