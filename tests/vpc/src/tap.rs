//! Packet capture: which packets passed which place, in which order.
//!
//! A tap is a packet socket. The kernel queues every packet on it as it passes, so there is no thread: a reader gets
//! what has arrived by then, which includes all packets of a finished exchange.

use std::{
    io::IoSliceMut,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    libc,
    sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt},
};

pub use crate::packet::{Direction, Icmp, Place, Seen};
use crate::{netns::Netns, packet::decode, packet_socket, vpc::Vpc};

/// A moment in a capture.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

/// The taps, and what they captured.
#[derive(Debug, Default)]
pub struct Taps {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taps: Vec<Tap>,
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Tap {
    socket: OwnedFd,
    place: Place,
    /// The direction of a packet that the tapped interface sends.
    outgoing: Direction,
}

/// The captured length of a packet: enough for the headers.
const SNAP: usize = 256;
/// The buffer of a tap in bytes, for the packets between two reads.
const BUFFER: usize = 32 << 20;

impl Taps {
    /// Taps the wire of every NIC at the router's end. There the packets are what the node sent or will receive; what
    /// programs on the node do with them afterwards does not matter.
    ///
    /// # Errors
    /// If a packet socket cannot be opened.
    pub fn on_all_wires(vpc: &Vpc) -> Result<Self> {
        let taps = Self::default();
        for nic in vpc.plan.nics() {
            let place = Place::Wire {
                node: nic.node.clone(),
                nic: nic.name.clone(),
            };
            // What the router's port sends goes into the node.
            taps.add(&vpc.router, &nic.port(), place, Direction::In)?;
        }
        Ok(taps)
    }

    /// Taps one more interface. `outgoing` is the direction of its outgoing packets from the node's or pod's point of
    /// view.
    ///
    /// # Errors
    /// If there is no such interface, or the packet socket cannot be opened.
    pub fn add(
        &self,
        netns: &Netns,
        interface: &str,
        place: Place,
        outgoing: Direction,
    ) -> Result<()> {
        let socket = netns
            .run(|| open(interface))
            .with_context(|| format!("tapping {interface} in {}", netns.name()))?;
        self.lock().taps.push(Tap {
            socket,
            place,
            outgoing,
        });
        Ok(())
    }

    /// Removes the taps of these places, before their interfaces are removed.
    pub fn remove(&self, gone: impl Fn(&Place) -> bool) {
        self.lock().taps.retain(|tap| !gone(&tap.place));
    }

    /// Returns a mark for now: [`Taps::since`] returns what is seen after it.
    ///
    /// # Errors
    /// If a tap cannot be read, or overflowed.
    pub fn mark(&self) -> Result<Mark> {
        let mut state = self.lock();
        state.drain()?;
        Ok(Mark(state.seen.len()))
    }

    /// Returns everything seen since a mark, ordered by time.
    ///
    /// # Errors
    /// If a tap cannot be read, or overflowed: then a packet that was not seen would prove nothing.
    pub fn since(&self, mark: Mark) -> Result<Vec<Seen>> {
        let mut state = self.lock();
        state.drain()?;
        let mut seen = state.seen[mark.0..].to_vec();
        seen.sort_by_key(|packet| packet.time);
        Ok(seen)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn drain(&mut self) -> Result<()> {
        for tap in &self.taps {
            while let Some(seen) = tap
                .receive()
                .with_context(|| format!("reading the tap at {}", tap.place))?
            {
                self.seen.extend(seen);
            }
            let lost = lost(&tap.socket)?;
            if lost > 0 {
                bail!("the tap at {} overflowed: {lost} packets lost", tap.place);
            }
        }
        Ok(())
    }
}

impl Tap {
    /// Reads the next packet. Returns `None` if there is none, `Some(None)` if it is not an IP packet.
    fn receive(&self) -> Result<Option<Option<Seen>>> {
        let mut buffer = [0; SNAP];
        let mut control = nix::cmsg_space!(libc::timespec);
        let (length, kept, outgoing, time) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let message = match recvmsg::<LinkAddr>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC,
            ) {
                Ok(message) => message,
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let time = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            });
            let outgoing = message
                .address
                .is_some_and(|address| address.pkttype() == libc::PACKET_OUTGOING);
            let length = message.bytes;
            (length, length.min(SNAP), outgoing, time.unwrap_or_default())
        };
        let direction = match (self.outgoing, outgoing) {
            (Direction::Out, true) | (Direction::In, false) => Direction::Out,
            (Direction::Out, false) | (Direction::In, true) => Direction::In,
        };
        Ok(Some(decode(&buffer[..kept]).map(|decoded| Seen {
            place: self.place.clone(),
            direction,
            length,
            time,
            ..decoded
        })))
    }
}

/// Opens a packet socket on one interface of the calling thread's namespace. It is a cooked one (`SOCK_DGRAM`): packets
/// begin at the IP header, whatever the interface.
fn open(interface: &str) -> Result<OwnedFd> {
    let socket = packet_socket::open(interface, libc::SOCK_DGRAM, libc::ETH_P_ALL)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("enlarging its buffer")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("asking for timestamps")?;
    Ok(socket)
}

/// Returns how many packets were lost to a full buffer since the last call.
fn lost(socket: &OwnedFd) -> Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of one `tpacket_stats`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(std::io::Error::last_os_error()).context("asking a tap for its losses");
    }
    Ok(statistics.tp_drops)
}
