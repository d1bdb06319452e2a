//! Runs a program on a real link, for what a test run cannot show: the class of its filter.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use ebbtide_kernel::netlink::{
    Batch,
    direct::Direct,
    model::{Direction, Filter},
};
use ebbtide_vpc::{netlink::VethEnd, netns::Netns, packet_socket};
use ipnet::IpNet;
use nix::{
    errno::Errno,
    libc::{self, sockaddr_ll},
};

use super::Bench;

/// A veth pair with a program at its near end. Frames are sent at its far end.
#[derive(Debug)]
pub struct Pair {
    socket: OwnedFd,
    index: u32,
    netns: [Netns; 2],
}

impl Pair {
    /// Creates the pair and attaches the program.
    ///
    /// # Errors
    /// If the kernel refuses a link, the filter or a socket.
    pub fn new(
        bench: &Bench,
        program: &str,
        direction: Direction,
        only_from: Option<u16>,
    ) -> Result<Self> {
        let netns = [Netns::new("near")?, Netns::new("far")?];
        for netns in &netns {
            // Links with an address of their own announce it, a second after they are up. A guard counts that.
            netns.sysctls(&[("net/ipv6/conf/default/addr_gen_mode", "1")])?;
        }
        let links = netns[0].netlink()?;
        let end = |netns, name, last| VethEnd {
            netns,
            name,
            mac: [2, 0, 0, 0, 0, last],
        };
        links.add_veth(&end(&netns[0], "near", 2), &end(&netns[1], "far", 3), 1500)?;
        netns[1].netlink()?.set_up("far")?;
        let near = links.index("near")?;
        let filter = Filter {
            link: "near".into(),
            direction,
            program: program.into(),
            only_from,
        };
        let fd = bench.fd(program);
        netns[0].run(|| {
            let mut batch = Batch::default();
            batch.add_filter(&filter, near, fd);
            Ok(Direct::open("near")?.run(batch)?)
        })?;
        let (sender, name) = match direction {
            Direction::Egress => (&netns[0], "near"),
            Direction::Ingress => (&netns[1], "far"),
        };
        Ok(Self {
            socket: sender.run(|| packet_socket::open(name, libc::SOCK_RAW, 0))?,
            index: sender.netlink()?.index(name)?,
            netns,
        })
    }

    /// Adds addresses to the near end, makes it accept any destination, and runs `work` there.
    ///
    /// # Errors
    /// If an address is refused, or `work` fails.
    pub fn near_with<T: Send>(
        &self,
        addresses: &[&str],
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let [near, _] = &self.netns;
        near.sysctls(&[
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/near/rp_filter", "0"),
            ("net/ipv6/conf/near/accept_dad", "0"),
        ])?;
        let links = near.netlink()?;
        for address in addresses {
            links.add_address("near", IpNet::from(address.parse::<IpAddr>()?))?;
        }
        // Packets whose source has no route are dropped, whatever the filter decides.
        for any in ["0.0.0.0/0", "::/0"] {
            links.add_on_link_route(any.parse()?, "near")?;
        }
        near.run(work)
    }

    /// Sends a frame through the program. The socket declares `ethertype` as its protocol, whatever the frame contains.
    ///
    /// # Errors
    /// If the kernel refuses it. That a program dropped it is not an error.
    pub fn send(&self, frame: &[u8], ethertype: u16) -> Result<()> {
        // SAFETY: `sockaddr_ll` is plain integers: zero is a valid value.
        let mut to: sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(libc::AF_PACKET)?;
        to.sll_protocol = ethertype.to_be();
        to.sll_ifindex = i32::try_from(self.index)?;
        // SAFETY: buffer and address are as long as is said, and are only read.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                u32::try_from(size_of::<sockaddr_ll>())?,
            )
        };
        match Errno::result(sent) {
            // `NET_XMIT_DROP` of a program at egress is this error.
            Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
            Err(e) => Err(e).context("sending a frame"),
        }
    }
}
