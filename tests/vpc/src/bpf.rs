//! bpf(2) itself, for what aya has no words for.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};
use nix::libc;

/// An attribute in which everything is zero.
#[must_use]
pub fn attribute() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers and arrays of them: zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// A command that gives a descriptor. Whatever the attribute points to has to be alive.
///
/// # Errors
/// The kernel's.
pub fn open(command: bpf_cmd, attribute: &mut bpf_attr) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attribute)?;
    // SAFETY: the kernel has just given this descriptor to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// bpf(2). Whatever the attribute points to has to be alive.
///
/// # Errors
/// The kernel's.
pub fn bpf(command: bpf_cmd, attribute: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the attribute is whole, and what it points to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<bpf_attr>(),
        )
    };
    i32::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}
