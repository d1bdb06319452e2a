//! A VPN in user space, as Tailscale and OpenVPN are: a program copies packets from one TUN device to another.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use anyhow::{Context as _, Result};
use ebbtide_vpc::{family::Family::V4, netns::Netns};
use nix::{
    libc,
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::pipe,
};

use super::{
    cell::By,
    site::{Asking, HOST_PORT, Site, address, batch},
};

/// The device file of TUN; its numbers are 10 and 200 (Documentation/networking/tuntap.rst).
const TUN: &str = "/dev/net/tun";

/// Builds the VPN. Returns what this kernel lacks.
pub(super) fn set_up(site: &mut Site) -> Result<Option<String>> {
    let (node, far) = (site.node.clone(), site.far.clone());
    let devices =
        device(&node, "tailscale0").and_then(|near| Ok([near, device(&far, "tailscale0")?]));
    let devices = match devices {
        Ok(devices) => devices,
        Err(error) => return Ok(Some(format!("VPN in user space: {error:#}"))),
    };
    let [near_address, far_address] = [address("100.127.7.1")?, address("100.127.7.9")?];
    for (host, own, other) in [
        (&node, near_address, far_address),
        (&far, far_address, near_address),
    ] {
        batch(
            host,
            V4,
            &[
                format!("address add {own}/32 dev tailscale0"),
                "link set tailscale0 mtu 1280 up".into(),
                format!("route add {other}/32 dev tailscale0"),
            ],
        )?;
        site.serve(host, own, HOST_PORT);
    }
    site.hand_on = Some(HandOn::start(devices)?);
    let asking = Asking::new(
        "VPN in user space",
        "far → node",
        &far,
        (near_address, HOST_PORT),
    );
    site.ask(&asking.from(far_address), &By::ALL);
    let asking = Asking::new(
        "VPN in user space",
        "node → far",
        &node,
        (far_address, HOST_PORT),
    );
    site.ask(&asking, &By::ALL);
    Ok(None)
}

/// Creates a TUN device in a namespace. It exists as long as the file is open.
fn device(netns: &Netns, name: &str) -> Result<File> {
    if !Path::new(TUN).exists() {
        fs::create_dir_all("/dev/net").context("making /dev/net")?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        mknod(TUN, SFlag::S_IFCHR, mode, makedev(10, 200)).context("making /dev/net/tun")?;
    }
    netns.run(|| {
        let file = File::options().read(true).write(true).open(TUN);
        let file = file.with_context(|| format!("opening {TUN}"))?;
        // SAFETY: all zeros are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives until the call is over.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        nix::errno::Errno::result(made).with_context(|| format!("making the TUN device {name}"))?;
        Ok(file)
    })
}

/// The program between the two devices. Dropping it ends it.
#[derive(Debug)]
pub(super) struct HandOn {
    /// The end of a pipe; closing it wakes the thread.
    end: Option<OwnedFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl HandOn {
    fn start(devices: [File; 2]) -> Result<Self> {
        let (ended, end) = pipe().context("making a pipe")?;
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let is_ready = ready([devices[0].as_fd(), devices[1].as_fd(), ended.as_fd()]);
                if is_ready[2] {
                    break;
                }
                for (number, other) in [(0, 1), (1, 0)] {
                    if is_ready[number]
                        && let Ok(length) = (&devices[number]).read(&mut buffer)
                    {
                        // A device that is down accepts nothing: the packet is lost, as on any network.
                        let _ = (&devices[other]).write(&buffer[..length]);
                    }
                }
            }
        });
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

/// Waits until one of the files can be read or has ended, and returns which.
fn ready(files: [BorrowedFd<'_>; 3]) -> [bool; 3] {
    let mut wanted = files.map(|file| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: three entries of an array that lives until the call is over.
    unsafe { libc::poll(wanted.as_mut_ptr(), 3, -1) };
    wanted.map(|one| one.revents != 0)
}

impl Drop for HandOn {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
