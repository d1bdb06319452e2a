//! The kinds of tunnels of the kernel, as data: how each is made, what it carries, and over what.
//!
//! The same lines make both ends. Names in braces are replaced: `{dev}` by its name, `{n}` by its number, `{local}` and
//! `{remote}` by the outer addresses, `{nic}` by the NIC that it uses, `{port}` by a UDP port of its own, `{out}` and
//! `{in}` by the SPIs, `{ours}` and `{theirs}` by the inner networks, `{crypto}` by keys.

use ebbtide_vpc::family::Family::{self, V4, V6};

/// A kind of tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Its name in the matrix.
    pub(super) name: &'static str,
    /// The prefix of its links' names.
    pub(super) stem: &'static str,
    /// The family of the outer packets.
    pub(super) outer: Family,
    /// The families of inner packets that it can carry.
    pub(super) inner: &'static [Family],
    /// The kind of link that leads into it.
    pub(super) link: Link,
    /// The far host's address that is its other end.
    pub(super) far: Far,
    /// Whether most overlays use it or a similar one.
    pub(super) is_common: bool,
    /// The lines for `ip -batch`, at both ends.
    pub(super) lines: &'static [&'static str],
}

/// How inner packets are routed into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// By a link with neighbours, like Ethernet.
    Ethernet,
    /// By a link with one peer.
    PointToPoint,
    /// By no link: IPsec policies transform packets when they leave the NIC.
    Policy,
}

/// The far host's address that is the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Far {
    /// Its address on its NIC.
    Own,
    /// The one that the NIC's routes lead to, for kinds whose outer source cannot be set.
    Routed,
    /// A secondary address for ESP.
    Esp,
    /// Another secondary address for VTI: such a link receives all IPIP, 6in4 and ESP of its addresses
    /// (net/ipv4/ip_vti.c, `vti_input`).
    Vti,
}

const BOTH: &[Family] = &[V4, V6];

const fn kind(
    name: &'static str,
    stem: &'static str,
    link: Link,
    lines: &'static [&'static str],
) -> Kind {
    Kind {
        name,
        stem,
        outer: V4,
        inner: &[V4],
        link,
        far: Far::Own,
        is_common: false,
        lines,
    }
}

/// All kinds.
pub(super) const KINDS: [Kind; 17] = [
    Kind {
        inner: BOTH,
        is_common: true,
        ..kind(
            "VXLAN with dev",
            "flannel.",
            Link::Ethernet,
            &[
                "link add {dev} type vxlan id {n} dev {nic} local {local} remote {remote} dstport {port} nolearning",
            ],
        )
    },
    kind(
        "VXLAN without dev",
        "vx-anyname",
        Link::Ethernet,
        &["link add {dev} type vxlan id {n} local {local} remote {remote} dstport {port}"],
    ),
    Kind {
        outer: V6,
        ..kind(
            "VXLAN over IPv6",
            "vxlan.six",
            Link::Ethernet,
            &[
                "link add {dev} type vxlan id {n} local {local} remote {remote} dstport {port} udp6zerocsumrx",
            ],
        )
    },
    Kind {
        far: Far::Routed,
        ..kind(
            "Geneve",
            "genev_sys_",
            Link::Ethernet,
            &["link add {dev} type geneve id {n} remote {remote} dstport {port}"],
        )
    },
    Kind {
        is_common: true,
        ..kind(
            "IPIP",
            "tunl",
            Link::PointToPoint,
            &["link add {dev} type ipip local {local} remote {remote}"],
        )
    },
    Kind {
        inner: BOTH,
        is_common: true,
        ..kind(
            "GRE",
            "gre",
            Link::PointToPoint,
            &["link add {dev} type gre key {n} local {local} remote {remote}"],
        )
    },
    kind(
        "GRETAP",
        "gt",
        Link::Ethernet,
        &["link add {dev} type gretap key {n} local {local} remote {remote} dev {nic}"],
    ),
    Kind {
        inner: &[V6],
        ..kind(
            "SIT (6in4)",
            "he-ipv6",
            Link::PointToPoint,
            &["link add {dev} type sit local {local} remote {remote}"],
        )
    },
    Kind {
        outer: V6,
        inner: BOTH,
        ..kind(
            "ip6tnl",
            "six",
            Link::PointToPoint,
            &["link add {dev} type ip6tnl mode any local {local} remote {remote} encaplimit none"],
        )
    },
    Kind {
        outer: V6,
        ..kind(
            "ip6gre",
            "sixgre",
            Link::PointToPoint,
            &["link add {dev} type ip6gre key {n} local {local} remote {remote} encaplimit none"],
        )
    },
    kind(
        "FOU",
        "fou",
        Link::PointToPoint,
        &[
            "fou add port {port} ipproto 47",
            "link add {dev} type gre key {n} local {local} remote {remote} encap fou encap-sport {port} encap-dport {port}",
        ],
    ),
    kind(
        "GUE",
        "gue",
        Link::PointToPoint,
        &[
            "fou add port {port} gue",
            "link add {dev} type gre key {n} local {local} remote {remote} encap gue encap-sport {port} encap-dport {port}",
        ],
    ),
    Kind {
        far: Far::Vti,
        ..kind(
            "VTI",
            "vti",
            Link::PointToPoint,
            &[
                "link add {dev} type vti key {n} local {local} remote {remote}",
                "xfrm state add src {local} dst {remote} proto esp spi {out} reqid {n} mode tunnel {crypto}",
                "xfrm state add src {remote} dst {local} proto esp spi {in} reqid {n} mode tunnel {crypto}",
                "xfrm policy add dir out mark {n} tmpl src {local} dst {remote} proto esp reqid {n} mode tunnel",
                "xfrm policy add dir in mark {n} tmpl src {remote} dst {local} proto esp reqid {n} mode tunnel",
                "xfrm policy add dir fwd mark {n} tmpl src {remote} dst {local} proto esp reqid {n} mode tunnel",
            ],
        )
    },
    kind(
        "xfrm interface",
        "ipsec",
        Link::PointToPoint,
        &[
            "link add {dev} type xfrm dev {nic} if_id {n}",
            "xfrm state add src {local} dst {remote} proto esp spi {out} reqid {n} mode tunnel if_id {n} {crypto}",
            "xfrm state add src {remote} dst {local} proto esp spi {in} reqid {n} mode tunnel if_id {n} {crypto}",
            "xfrm policy add dir out if_id {n} tmpl src {local} dst {remote} proto esp reqid {n} mode tunnel",
            "xfrm policy add dir in if_id {n} tmpl src {remote} dst {local} proto esp reqid {n} mode tunnel",
            "xfrm policy add dir fwd if_id {n} tmpl src {remote} dst {local} proto esp reqid {n} mode tunnel",
        ],
    ),
    Kind {
        far: Far::Esp,
        is_common: true,
        ..kind(
            "ESP, tunnel mode",
            "esp",
            Link::Policy,
            &[
                "xfrm state add src {local} dst {remote} proto esp spi {out} reqid {n} mode tunnel {crypto}",
                "xfrm state add src {remote} dst {local} proto esp spi {in} reqid {n} mode tunnel {crypto}",
                "xfrm policy add src {ours} dst {theirs} dir out tmpl src {local} dst {remote} proto esp reqid {n} mode tunnel",
                "xfrm policy add src {theirs} dst {ours} dir in tmpl src {remote} dst {local} proto esp reqid {n} mode tunnel",
                "xfrm policy add src {theirs} dst {ours} dir fwd tmpl src {remote} dst {local} proto esp reqid {n} mode tunnel",
            ],
        )
    },
    kind(
        "L2TPv3 over UDP",
        "l2tp",
        Link::Ethernet,
        &[
            "l2tp add tunnel tunnel_id {n} peer_tunnel_id {n} encap udp local {local} remote {remote} \
         udp_sport {port} udp_dport {port}",
            "l2tp add session name {dev} tunnel_id {n} session_id {n} peer_session_id {n}",
        ],
    ),
    kind(
        "L2TPv3 over IP",
        "l2ip",
        Link::Ethernet,
        &[
            "l2tp add tunnel tunnel_id {n} peer_tunnel_id {n} encap ip local {local} remote {remote}",
            "l2tp add session name {dev} tunnel_id {n} session_id {n} peer_session_id {n}",
        ],
    ),
];
