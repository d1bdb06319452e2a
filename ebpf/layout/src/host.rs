//! The data that the programs in the host's namespace share with the agent: those on each NIC, and on the host's ends
//! of the pods' veth pairs.

use crate::Counters;

/// The bits of `skb->mark` that the programs in the host use, unless configured otherwise: apart from kube-proxy
/// (0x4000, 0x8000), Calico (0xffff0000), Cilium (0x0f00), AWS VPC CNI (0x80), Terway (0x10), portmap (0x2000) and
/// Spiderpool (0x1). The highest bit ([`reply_bit`]) stands for "came out of a pod's veth", the others identify the
/// NIC.
pub const DEFAULT_NIC_MARKS: u32 = 0x6e;

/// The API server's default range of node ports (`--service-node-port-range`), the first in the upper half.
pub const DEFAULT_NODE_PORTS: u32 = 30_000 << 16 | 32_767;

/// Maximum number of NICs per node.
pub const MAX_NICS: u32 = 256;

/// Returns the bit of the field `marks` for "came out of a pod's veth". With a NIC's bits beside it, the packet must
/// leave by that NIC; alone, the host forwards it for the pod. A NIC's bits without it are those of a request that came
/// in there while the NIC filters strictly ([`NIC_IS_STRICT`]).
///
/// # Examples
///
/// ```
/// use ebbtide_layout::{DEFAULT_NIC_MARKS, reply_bit};
///
/// assert_eq!(DEFAULT_NIC_MARKS, 0x6e);
/// assert_eq!(reply_bit(DEFAULT_NIC_MARKS), 0x40);
/// ```
#[inline(always)]
#[must_use]
pub const fn reply_bit(marks: u32) -> u32 {
    match marks {
        0 => 0,
        _ => 1 << (31 - marks.leading_zeros()),
    }
}

/// [`NodeAddress::flags`]: the host has forwarded something for the pod, so that answers are to be looked up. Set by the
/// programs.
pub const OWNER_FORWARDS: u32 = 4;

/// [`NodeAddress::flags`]: a pod has the address, not the node itself.
pub const OWNER_IS_POD: u32 = 1;

/// [`NodeAddress::flags`]: what reaches the pod directly, past its veth, is followed by the NIC's program and by those of
/// the other pods on the NIC. Else it is by `nic_ingress` in the pod.
pub const OWNER_IS_FOLLOWED: u32 = 8;

/// [`NodeAddress::flags`]: the pod's interface is an ipvlan one in l3.
pub const OWNER_IN_L3: u32 = 16;

/// [`NodeAddress::flags`]: the NIC has a table of its own with a gateway in this family, the next hop of whatever must
/// leave by it.
pub const OWNER_HAS_GATEWAY: u32 = 2;

/// [`Nic::flags`]: reverse path filtering is strict there for IPv4, so that requests for Services need a mark that
/// makes the lookup of their reverse path use the NIC's own table.
pub const NIC_IS_STRICT: u32 = 1;

/// [`NIC_IS_STRICT`], for IPv6.
pub const NIC_IS_STRICT6: u32 = 2;

/// [`Nic::flags`]: the shift of the prefix length of the NIC's IPv4 subnet, that of [`Nic::asks_as`]; zero for none. What
/// comes from there gets no mark for strict filtering: the main table leads back to it by the NIC.
pub const NIC_SUBNET_SHIFT: u32 = 8;

/// The NIC that an address belongs to: the only one a cloud lets it leave by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The NIC, in the host.
    pub ifindex: u32,
    /// [`OWNER_IS_POD`], [`OWNER_HAS_GATEWAY`], [`OWNER_FORWARDS`], [`OWNER_IS_FOLLOWED`], [`OWNER_IN_L3`].
    pub flags: u32,
    /// The pod's number ([`PodCounters::pod`](crate::PodCounters::pod)); zero for the node's own address.
    pub pod: u32,
    /// The NIC's number ([`Nic::number`]).
    pub nic: u32,
}

/// A NIC's configuration for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its number: it counts packets of the NIC ([`NicCounters`]), and is written into frames to pods
    /// ([`NIC_BYTE`](crate::NIC_BYTE)). It stays the same as long as the NIC exists. Zero if there are too many.
    pub number: u32,
    /// Its bits of the mark; zero if there were not enough values for all NICs.
    pub mark: u32,
    /// [`NIC_IS_STRICT`], [`NIC_IS_STRICT6`], [`NIC_SUBNET_SHIFT`].
    pub flags: u32,
    /// The IPv4 sender of ARP requests there, in network byte order: the node's address on it, else a pod's; zero for
    /// none.
    pub asks_as: u32,
    /// The gateway of the main table's IPv4 default route over it, in network byte order; zero for none.
    pub gateway4: u32,
    /// As [`Nic::gateway4`], for IPv6.
    pub gateway6: [u32; 4],
}

impl Nic {
    /// Whether an IPv4 address, in network byte order, is in the subnet of [`NIC_SUBNET_SHIFT`].
    #[inline(always)]
    #[must_use]
    pub const fn is_beside(&self, address: u32) -> bool {
        let length = self.flags >> NIC_SUBNET_SHIFT & 31;
        let differ = u32::from_be(self.asks_as ^ address);
        length != 0 && differ >> (32 - length) == 0
    }
}

/// The host's configuration for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// The redirect device, whose ingress is in the host's stack past ipvlan; zero without one.
    pub redirect_device: u32,
    /// 1 if there are several NICs, so that the programs must tell requests of one from those of another. Else zero.
    pub several_nics: u32,
    /// The flags of all NICs ([`Nic::flags`]).
    pub nic_flags: u32,
    /// Always zero.
    pub pad: u32,
}

/// The hook of a program in the host's namespace. The discriminant indexes [`NicCounters::hooks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HostHook {
    /// The NIC, into the node.
    NicIngress = 0,
    /// The NIC, out of the node.
    NicEgress = 1,
    /// The host's ends of the veths, towards the pods, for what came in by the NIC.
    VethEgress = 2,
    /// The host's ends of the veths, from the pods, for what must leave by the NIC.
    VethIngress = 3,
}

impl HostHook {
    /// All hooks, in the order of [`NicCounters::hooks`].
    pub const ALL: [Self; 4] = [
        Self::NicIngress,
        Self::NicEgress,
        Self::VethEgress,
        Self::VethIngress,
    ];
}

/// Counters of one NIC, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Indexed by [`HostHook`].
    pub hooks: [Counters; 4],
    /// Packets that would have left by this NIC with the node's address on another one: source-NIC enforcement
    /// redirected them there. A cloud would have dropped them, without a count.
    pub wrong_nic: u64,
    /// The same, but the other NIC has no known gateway, so they left by this one.
    pub wrong_nic_passed: u64,
}

impl NicCounters {
    /// Adds what another CPU counted.
    pub fn add(&mut self, other: &Self) {
        for (total, part) in self.hooks.iter_mut().zip(&other.hooks) {
            total.add(part);
        }
        self.wrong_nic += other.wrong_nic;
        self.wrong_nic_passed += other.wrong_nic_passed;
    }
}

const _: () = {
    assert!(size_of::<NodeAddress>() == 16 && size_of::<Nic>() == 36);
    assert!(size_of::<HostConfig>() == 16);
    assert!(size_of::<NicCounters>() == 208 && align_of::<NicCounters>() == 8);
    assert!(reply_bit(DEFAULT_NIC_MARKS) == 0x40 && reply_bit(0) == 0);
};

#[cfg(not(target_arch = "bpf"))]
mod pod {
    use super::{HostConfig, Nic, NicCounters, NodeAddress};

    // SAFETY: `repr(C)`, no padding (asserted by size above), every bit pattern is valid.
    unsafe impl aya::Pod for NodeAddress {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Nic {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HostConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NicCounters {}
}

#[cfg(test)]
mod tests {
    use super::{NIC_IS_STRICT, NIC_SUBNET_SHIFT, Nic};

    #[test]
    fn an_address_is_beside_the_nic_if_it_is_in_its_subnet() {
        let word = u32::from_ne_bytes;
        for (length, address, expected) in [
            (20, [172, 31, 16, 1], true),
            (20, [172, 31, 31, 254], true),
            (20, [172, 31, 32, 1], false),
            (20, [198, 51, 100, 7], false),
            (31, [172, 31, 22, 229], true),
            (31, [172, 31, 22, 230], false),
            (1, [1, 0, 0, 0], false),
            (1, [200, 0, 0, 0], true),
            (0, [172, 31, 22, 228], false),
        ] {
            let nic = Nic {
                number: 1,
                mark: 2,
                flags: NIC_IS_STRICT | length << NIC_SUBNET_SHIFT,
                asks_as: word([172, 31, 22, 228]),
                gateway4: 0,
                gateway6: [0; 4],
            };
            assert_eq!(
                nic.is_beside(word(address)),
                expected,
                "{address:?}/{length}"
            );
        }
    }
}
