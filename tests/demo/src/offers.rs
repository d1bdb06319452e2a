//! The Services of the demonstration, as data.

use std::net::{IpAddr, SocketAddr};

use ebbtide_vpc::{
    plan::Family,
    proxy::ExternalTrafficPolicy::{self, Cluster, Local},
};

/// Port of every ClusterIP.
pub(super) const SERVICE_PORT: u16 = 80;

/// A Service of the demonstration, for both families and protocols.
pub(super) struct Offer {
    pub(super) name: &'static str,
    /// The last part of the ClusterIP.
    cluster: u8,
    /// The port on the nodes, and of the load balancer that leads to them.
    pub(super) node_port: u16,
    pub(super) policy: ExternalTrafficPolicy,
    /// Whether the proxy masquerades traffic to its ClusterIP.
    pub(super) masquerade: bool,
    /// The pod behind it.
    pub(super) pod: &'static str,
}

pub(super) const FAR: Offer = offer("FAR", 10, 30010, Cluster, "d");
pub(super) const NEAR: Offer = offer("NEAR", 11, 30011, Cluster, "b");
pub(super) const CLUSTER_FAR: Offer = offer("CFAR", 12, 30012, Cluster, "e");
pub(super) const CLUSTER_NEAR: Offer = offer("CNEAR", 13, 30013, Cluster, "c");
pub(super) const LOCAL_SAME: Offer = offer("LSAME", 14, 30080, Local, "a");
pub(super) const LOCAL_OTHER: Offer = offer("LOTHER", 15, 30081, Local, "c");
pub(super) const PLAIN_FAR: Offer = Offer {
    masquerade: false,
    ..offer("PFAR", 16, 30016, Cluster, "d")
};
pub(super) const PLAIN_NEAR: Offer = Offer {
    masquerade: false,
    ..offer("PNEAR", 17, 30017, Cluster, "b")
};
pub(super) const OFFERS: [Offer; 8] = [
    FAR,
    NEAR,
    CLUSTER_FAR,
    CLUSTER_NEAR,
    LOCAL_SAME,
    LOCAL_OTHER,
    PLAIN_FAR,
    PLAIN_NEAR,
];

/// A Service of the demonstration whose backend is a server of a node itself (hostNetwork).
pub(super) struct HostOffer {
    pub(super) name: &'static str,
    /// The last part of the ClusterIP.
    cluster: u8,
    /// As [`Offer::masquerade`].
    pub(super) masquerade: bool,
    /// The node of the server, and the NIC whose address it has.
    pub(super) node: &'static str,
    pub(super) nic: &'static str,
}

pub(super) const HOST_OFFERS: [HostOffer; 6] = [
    host_offer("HOST5", 20, true, "master", "ens5"),
    host_offer("HOST6", 21, true, "master", "ens6"),
    host_offer("HFAR", 22, true, "worker1", "ens5"),
    host_offer("PHOST5", 23, false, "master", "ens5"),
    host_offer("PHOST6", 24, false, "master", "ens6"),
    host_offer("PHFAR", 25, false, "worker1", "ens5"),
];

const fn offer(
    name: &'static str,
    cluster: u8,
    node_port: u16,
    policy: ExternalTrafficPolicy,
    pod: &'static str,
) -> Offer {
    Offer {
        name,
        cluster,
        node_port,
        policy,
        masquerade: true,
        pod,
    }
}

const fn host_offer(
    name: &'static str,
    cluster: u8,
    masquerade: bool,
    node: &'static str,
    nic: &'static str,
) -> HostOffer {
    HostOffer {
        name,
        cluster,
        masquerade,
        node,
        nic,
    }
}

impl Offer {
    /// Returns the ClusterIP of a family.
    pub(super) fn cluster(&self, family: Family) -> SocketAddr {
        cluster_ip(family, self.cluster)
    }
}

impl HostOffer {
    /// Returns the ClusterIP of a family.
    pub(super) fn cluster(&self, family: Family) -> SocketAddr {
        cluster_ip(family, self.cluster)
    }
}

/// Returns the ClusterIP with this last part.
fn cluster_ip(family: Family, last: u8) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => [10, 96, 0, last].into(),
        Family::V6 => [0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(last)].into(),
    };
    SocketAddr::new(address, SERVICE_PORT)
}
