//! The clouds' metadata services, which tell everybody who reaches them the credentials of the node's role.

use crate::{Address, mapped};

/// The addresses of the services. Bit [`POD_METADATA_SHIFT`](crate::POD_METADATA_SHIFT) plus the index of
/// [`PodCounters::flags`](crate::PodCounters::flags) is for one of them.
///
/// # Examples
///
/// ```
/// use ebbtide_layout::{METADATA, mapped};
///
/// assert_eq!(METADATA[0], mapped([169, 254, 169, 254]));
/// ```
pub const METADATA: [Address; 9] = [
    // AWS, Azure, Google Cloud, OpenStack, Oracle, and most others.
    mapped([169, 254, 169, 254]),
    // Tencent Cloud.
    mapped([169, 254, 0, 23]),
    // Alibaba Cloud.
    mapped([100, 100, 100, 200]),
    AZURE_HOST,
    // AWS: fd00:ec2::254.
    [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54],
    // Google Cloud: fd20:ce::254.
    [0xfd, 0x20, 0, 0xce, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54],
    // Alibaba Cloud: fd00:100::100:200.
    [0xfd, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0],
    // Oracle: fd00:c1::a9fe:a9fe.
    [
        0xfd, 0, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0xa9, 0xfe, 0xa9, 0xfe,
    ],
    // OpenStack: fe80::a9fe:a9fe.
    [
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa9, 0xfe, 0xa9, 0xfe,
    ],
];

/// Azure's host, which is a DNS server too. Its agent's port is [`AZURE_AGENT`].
pub const AZURE_HOST: Address = mapped([168, 63, 129, 16]);

/// The port of all services. Others of the same address are DNS and NTP servers.
pub const METADATA_PORT: [u8; 2] = 80_u16.to_be_bytes();

/// The port of Azure's host agent.
pub const AZURE_AGENT: [u8; 2] = 32_526_u16.to_be_bytes();

/// Numbers modulo 64 in which the last byte of an address of [`METADATA`] is found. A comparison with all addresses is
/// for packets to these alone: one in eleven of all addresses.
pub const METADATA_ENDS: u64 = ends();

const fn ends() -> u64 {
    let mut bits = 0;
    let mut i = 0;
    while i < METADATA.len() {
        bits |= 1 << (METADATA[i][15] & 63);
        i += 1;
    }
    bits
}

const _: () = assert!(METADATA_ENDS.count_ones() == 6);
