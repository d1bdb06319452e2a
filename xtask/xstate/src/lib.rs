//! A `ptrace` for a user-mode Linux that does not know the size of this CPU's register set.
//!
//! User-mode Linux saves the extended registers of its processes (x87, SSE, AVX...) and restores them by
//! `PTRACE_SETREGSET`, with a fixed number of bytes. The kernel accepts the whole set only (`xstateregs_set`,
//! arch/x86/kernel/fpu/regset.c): on a CPU with a larger one, the first process of the guest dies. If this library is
//! preloaded (`LD_PRELOAD`), its `ptrace` replaces libc's and completes the set with the process's own registers.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::{c_long, c_uint, c_void, iovec, pid_t};

/// The extended registers, in the layout of XSAVE (the kernel's `elf.h`).
const NT_X86_XSTATE: usize = 0x202;

/// The maximum size of a whole set in bytes; with AMX it has 11008.
const ROOM: usize = 64 * 1024;

/// libc's `ptrace` as it is called here: four registers (see [`ptrace`]).
type Ptrace = unsafe extern "C" fn(c_uint, pid_t, *mut c_void, *mut c_void) -> c_long;

/// The buffer in which a whole set is assembled, by one caller at a time.
///
/// It is not on the stack: user-mode Linux calls this on its kernel's stacks, which have 16 KiB.
struct Whole {
    taken: AtomicBool,
    bytes: UnsafeCell<[u8; ROOM]>,
}

// SAFETY: `bytes` is accessed only by the caller that has set `taken`.
unsafe impl Sync for Whole {}

static WHOLE: Whole = Whole {
    taken: AtomicBool::new(false),
    bytes: UnsafeCell::new([0; ROOM]),
};

/// libc's `ptrace(2)`, except for `PTRACE_SETREGSET` with `NT_X86_XSTATE`: a set shorter than the tracee's is completed
/// by the tracee's own.
///
/// libc's is variadic. In the System V ABI of x86-64 the caller of a variadic function puts integers and pointers into
/// the same registers as for any other, so this definition receives what a caller gave. It passes on four registers, of
/// which libc reads those that the request has.
///
/// # Safety
/// As `ptrace(2)`: the meaning of `address` and `data` depends on the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(
    request: c_uint,
    pid: pid_t,
    address: *mut c_void,
    data: *mut c_void,
) -> c_long {
    if request == libc::PTRACE_SETREGSET && address.addr() == NT_X86_XSTATE && !data.is_null() {
        // SAFETY: for this request `data` is an iovec of the caller's.
        if let Some(result) = unsafe { set_whole(pid, data.cast()) } {
            return result;
        }
    }
    // SAFETY: unchanged, as the caller passed it.
    unsafe { pass_on(request, pid, address, data) }
}

/// Writes the tracee's whole set, with the bytes that `given` points to over its beginning. Returns `None` if nothing
/// was done; the call may then proceed unchanged, with its `errno`.
///
/// # Safety
/// `given` is a valid iovec, as `PTRACE_SETREGSET` takes it.
unsafe fn set_whole(pid: pid_t, given: *mut iovec) -> Option<c_long> {
    // A concurrent caller does not wait: in a signal handler it would wait forever. There is none: user-mode Linux 6.1
    // has one CPU, and sets registers only when it enters a process.
    if WHOLE.taken.swap(true, Ordering::Acquire) {
        return None;
    }
    // SAFETY: errno is the calling thread's own.
    let errno = unsafe { *libc::__errno_location() };
    let bytes = WHOLE.bytes.get().cast::<u8>();
    let note = std::ptr::without_provenance_mut(NT_X86_XSTATE);
    let mut whole = iovec {
        iov_base: bytes.cast(),
        iov_len: ROOM,
    };
    let whole_at = (&raw mut whole).cast();
    // SAFETY: the kernel writes at most `iov_len` bytes to `bytes`, which `taken` reserves for us, and the size of the
    // set to `iov_len`.
    let read = unsafe { pass_on(libc::PTRACE_GETREGSET, pid, note, whole_at) };
    let result = if read == 0 {
        // SAFETY: by the contract, `given` and the `iov_len` bytes that it points to are valid. The destination has
        // `whole.iov_len` bytes, and no caller has a pointer to it.
        unsafe {
            let length = (*given).iov_len.min(whole.iov_len);
            std::ptr::copy_nonoverlapping((*given).iov_base.cast::<u8>(), bytes, length);
            let result = pass_on(libc::PTRACE_SETREGSET, pid, note, whole_at);
            if result == 0 {
                // The kernel returns there how many bytes it used.
                (*given).iov_len = length;
            }
            Some(result)
        }
    } else {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        None
    };
    WHOLE.taken.store(false, Ordering::Release);
    result
}

/// Calls libc's `ptrace`, which is looked up once.
///
/// # Safety
/// As `ptrace(2)`.
unsafe fn pass_on(request: c_uint, pid: pid_t, address: *mut c_void, data: *mut c_void) -> c_long {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let mut found = FOUND.load(Ordering::Relaxed) as *mut c_void;
    if found.is_null() {
        // SAFETY: a name that ends with NUL.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ptrace".as_ptr()) };
        if found.is_null() {
            // SAFETY: errno is the calling thread's own.
            unsafe { *libc::__errno_location() = libc::ENOSYS };
            return -1;
        }
        FOUND.store(found as usize, Ordering::Relaxed);
    }
    // SAFETY: libc's symbol of this name is this function, called with the registers that we got.
    unsafe { std::mem::transmute::<*mut c_void, Ptrace>(found)(request, pid, address, data) }
}

#[cfg(test)]
mod tests;
