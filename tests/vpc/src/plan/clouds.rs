//! The predefined VPCs: those of the guides for AWS and for Alibaba Cloud.

use std::net::Ipv4Addr;

use ebbtide_types::IpvlanMode;

use super::{MadeOf, Nic, Node, Plan, Subnet, mac, net, v4, v6};

impl Default for Plan {
    /// Returns the plan for AWS: two nodes with two NICs each, every NIC in a subnet of its own.
    fn default() -> Self {
        let master = node(
            "master",
            [
                (
                    "ens5",
                    0x15,
                    subnet([172, 31, 22, 228], 20, [172, 31, 16, 4], [172, 31, 16, 1]),
                    subnet6(0x16, 0x228, 0x4),
                ),
                (
                    "ens6",
                    0x16,
                    subnet([210, 22, 16, 10], 24, [210, 22, 16, 11], [210, 22, 16, 1]),
                    subnet6(0x2116, 0x10, 0x11),
                ),
            ],
        );
        let worker = node(
            "worker1",
            [
                (
                    "ens5",
                    0x25,
                    subnet([180, 17, 16, 17], 24, [180, 17, 16, 11], [180, 17, 16, 1]),
                    subnet6(0x17, 0x17, 0x11),
                ),
                (
                    "ens6",
                    0x26,
                    subnet([210, 22, 32, 10], 24, [210, 22, 32, 11], [210, 22, 32, 1]),
                    subnet6(0x2132, 0x10, 0x11),
                ),
            ],
        );
        Self::of(vec![master, worker])
    }
}

impl Plan {
    /// The node of the control plane in [`Plan::cluster`].
    pub const CONTROL: &str = "control";

    /// Returns the plan for Alibaba Cloud: two nodes with two NICs each, and both nodes in both subnets.
    #[must_use]
    pub fn alibaba() -> Self {
        let eth0 = |own, first| {
            subnet(
                [172, 31, 199, own],
                20,
                [172, 31, 199, first],
                [172, 31, 207, 253],
            )
        };
        let eth1 = |own, first| {
            subnet(
                [192, 168, 0, own],
                24,
                [192, 168, 0, first],
                [192, 168, 0, 253],
            )
        };
        let master = node(
            "master",
            [
                ("eth0", 0x15, eth0(183, 185), subnet6(0x172, 0x183, 0x185)),
                ("eth1", 0x16, eth1(154, 156), subnet6(0x192, 0x154, 0x156)),
            ],
        );
        let worker = node(
            "worker",
            [
                ("eth0", 0x25, eth0(184, 190), subnet6(0x172, 0x184, 0x190)),
                ("eth1", 0x26, eth1(155, 161), subnet6(0x192, 0x155, 0x161)),
            ],
        );
        Self::of(vec![master, worker])
    }

    /// Turns the nodes into machines with kernels of their own, and adds a namespace for a control plane in a subnet of
    /// its own.
    #[must_use]
    pub fn cluster(mut self) -> Self {
        // The MTU of user-mode Linux's NICs.
        self.mtu = 1500;
        for node in &mut self.nodes {
            node.made_of = MadeOf::Machine;
        }
        let address = subnet([10, 40, 0, 10], 24, [10, 40, 0, 11], [10, 40, 0, 1]);
        let address6 = subnet6(0x40, 0x10, 0x11);
        self.nodes
            .push(node(Self::CONTROL, [("ens5", 0x35, address, address6)]));
        self
    }

    fn of(nodes: Vec<Node>) -> Self {
        Self {
            nodes,
            mtu: 9001,
            strict_rp_filter: true,
            mode: IpvlanMode::L3,
            asks: false,
            answers: false,
            exempt: false,
            metadata: None,
        }
    }
}

/// Creates a node of this kernel. Of each NIC: its name, the last byte of its MAC, and its addresses.
fn node<const N: usize>(name: &str, nics: [(&str, u8, Subnet, Subnet); N]) -> Node {
    let nics = nics.map(|(nic, last, v4, v6)| Nic {
        node: name.into(),
        name: nic.into(),
        mac: mac(last),
        v4,
        v6,
    });
    Node {
        name: name.into(),
        nics: nics.into(),
        made_of: MadeOf::Namespace,
    }
}

/// Creates the IPv4 addresses of a NIC: five secondary ones, from `first` on.
fn subnet(primary: [u8; 4], prefix: u8, first: [u8; 4], gateway: [u8; 4]) -> Subnet {
    let address = |[a, b, c, d]: [u8; 4]| v4(a, b, c, d);
    let first = u32::from(Ipv4Addr::from(first));
    Subnet {
        primary: net(address(primary), prefix),
        secondary: (first..first + 5)
            .map(|bits| Ipv4Addr::from(bits).into())
            .collect(),
        gateway: address(gateway),
    }
}

/// Creates the addresses of a NIC in `fd00:<id>::/64`: five secondary ones, from `first` on.
fn subnet6(id: u16, primary: u16, first: u16) -> Subnet {
    let address = |last| v6(0xfd00, id, 0, 0, last);
    Subnet {
        primary: net(address(primary), 64),
        secondary: (first..first + 5).map(address).collect(),
        gateway: address(1),
    }
}
