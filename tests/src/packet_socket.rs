//! Packet sockets (packet(7)): frames past the namespace's own IP and netfilter.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use nix::libc;

use crate::{netlink::Mac, netns::Netns};

/// A packet socket on one interface of the calling thread's namespace, of the kind `SOCK_DGRAM` or
/// `SOCK_RAW`, that takes packets of this protocol (`ETH_P_ALL`; none if 0).
pub(crate) fn open(interface: &str, kind: libc::c_int, protocol: libc::c_int) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("there is no interface {interface}"))?;
    // SAFETY: plain socket(2).
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            kind | libc::SOCK_CLOEXEC,
            // Nothing before bind(2) says from which interface.
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("opening a packet socket");
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all of `sockaddr_ll` may be zero.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the pointer and the length are those of one `sockaddr_ll`.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error()).context("binding a packet socket");
    }
    Ok(socket)
}

/// Sends frames as they are, but for the link-layer addresses, lengths and IPv4 checksums, which are
/// made right.
///
/// # Errors
/// When there is no such interface, or a frame does not fit it.
pub fn send(
    netns: &Netns,
    interface: &str,
    [from, to]: [Mac; 2],
    frames: impl IntoIterator<Item = Vec<u8>>,
) -> Result<()> {
    let socket = netns.run(|| open(interface, libc::SOCK_RAW, 0))?;
    for mut frame in frames {
        ensure!(frame.len() > IP + 20, "a frame of {} bytes", frame.len());
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
        put_right(&mut frame[IP..]);
        let sent = nix::unistd::write(&socket, &frame)
            .with_context(|| format!("sending by {interface} in {}", netns.name()))?;
        ensure!(sent == frame.len(), "only {sent} bytes were sent");
    }
    Ok(())
}

/// Length of an Ethernet header.
const IP: usize = 14;

/// Length and IPv4 checksum (RFC 791, RFC 8200).
fn put_right(packet: &mut [u8]) {
    let length = packet.len() as u16;
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        let header = usize::from(packet[0] & 15) * 4;
        let sum = crate::ping::checksum(&packet[..header.min(packet.len())]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    }
}
