//! Joins link-layer multicast groups on a NIC.

use std::{io, os::fd::AsRawFd as _};

use ebbtide_types::Mac;
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::Error;

/// Lets a NIC receive the frames of a group, for as long as it exists. Joining is idempotent (`__hw_addr_add_ex` with
/// `global`, net/core/dev_addr_lists.c).
///
/// # Errors
/// If the NIC does not exist, or refuses.
pub fn join(nic: &str, group: Mac) -> Result<(), Error> {
    let failed = |e| {
        let group = String::from(group);
        Error::new(format_args!("let {nic} receive {group} in the host"), e)
    };
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|e| failed(e.into()))?;
    // SAFETY: `ifreq` is plain integers and arrays of them: zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte of the name stays zero.
    let places = request.ifr_name.len() - 1;
    if nic.len() > places {
        return Err(failed(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(nic.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    // Family zero, as `dev_ifsioc` asks for (net/core/dev_ioctl.c).
    let mut address = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    for (place, byte) in address.sa_data.iter_mut().zip(group.0) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: SIOCADDMULTI reads the request, which lives until the call returns, and keeps nothing.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCADDMULTI, &raw const request) };
    if result == 0 {
        Ok(())
    } else {
        Err(failed(io::Error::last_os_error()))
    }
}
