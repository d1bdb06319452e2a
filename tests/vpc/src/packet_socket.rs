//! Packet sockets (packet(7)), which bypass the namespace's own IP stack and netfilter.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use nix::libc;

use crate::{netlink::Mac, netns::Netns};

/// Opens a packet socket on one interface of the calling thread's namespace. `kind` is `SOCK_DGRAM` or `SOCK_RAW`;
/// `protocol` selects the packets that it receives (`ETH_P_ALL` for all, 0 for none).
///
/// # Errors
/// If there is no such interface, or no privilege.
pub fn open(interface: &str, kind: libc::c_int, protocol: libc::c_int) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("there is no interface {interface}"))?;
    // SAFETY: plain socket(2).
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            kind | libc::SOCK_CLOEXEC,
            // bind(2) names the interface; before it the socket would receive from all.
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

/// Sends frames, after correcting their link-layer addresses, lengths and IPv4 checksums.
///
/// # Errors
/// If there is no such interface, or a frame does not fit it.
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
        repair(&mut frame[IP..]);
        let sent = nix::unistd::write(&socket, &frame)
            .with_context(|| format!("sending by {interface} in {}", netns.name()))?;
        ensure!(sent == frame.len(), "only {sent} bytes were sent");
    }
    Ok(())
}

/// Sends frames unchanged. Frames that a program drops, or that the kernel refuses as malformed, are not an error. With
/// `past_programs` they bypass the queueing discipline (`PACKET_QDISC_BYPASS`), and so the programs at the interface's
/// egress.
///
/// # Errors
/// If there is no such interface.
pub fn send_raw(
    netns: &Netns,
    interface: &str,
    frames: &[Vec<u8>],
    past_programs: bool,
) -> Result<()> {
    let (socket, index) = netns.run(|| {
        let index = nix::net::if_::if_nametoindex(interface)?;
        Ok((open(interface, libc::SOCK_RAW, 0)?, index))
    })?;
    if past_programs {
        let on: libc::c_int = 1;
        // SAFETY: the pointer and the length are those of one integer.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        ensure!(
            set == 0,
            "PACKET_QDISC_BYPASS: {}",
            io::Error::last_os_error()
        );
    }
    for frame in frames {
        // SAFETY: all of `sockaddr_ll` may be zero.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
        to.sll_ifindex = i32::try_from(index)?;
        // SAFETY: buffer and address are as long as is said, and are only read.
        let _dropped = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
    }
    Ok(())
}

/// A capture of an interface's frames, from its creation on.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    /// Starts to capture on an interface.
    ///
    /// # Errors
    /// If there is no link of this name.
    pub fn of(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns.run(|| open(interface, libc::SOCK_RAW, libc::ETH_P_ALL))?;
        Ok(Self(socket))
    }

    /// Returns all frames since the last call.
    #[must_use]
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let mut frame = vec![0; 2048];
            // SAFETY: the buffer is as long as is said.
            let length = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let Ok(length) = usize::try_from(length) else {
                return frames;
            };
            frame.truncate(length);
            frames.push(frame);
        }
    }
}

/// Length of an Ethernet header.
const IP: usize = 14;

/// Corrects the length and the IPv4 checksum (RFC 791, RFC 8200).
fn repair(packet: &mut [u8]) {
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
