//! Calls of bpf(2) that aya does not have.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};
use nix::libc;

/// Returns an attribute in which everything is zero.
#[must_use]
pub fn attribute() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers and arrays of them: zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// Runs a command that returns a descriptor. Whatever the attribute points to must be alive.
///
/// # Errors
/// If the kernel refuses the command.
pub fn open(command: bpf_cmd, attribute: &mut bpf_attr) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attribute)?;
    // SAFETY: the kernel has just given this descriptor to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Calls bpf(2). Whatever the attribute points to must be alive.
///
/// # Errors
/// If the kernel refuses the command.
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
