use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_int;
use xtask::skip::{Need, skip};

use super::*;

/// Runs one test at a time: a caller that finds the buffer taken is passed through unchanged.
static TURN: Mutex<()> = Mutex::new(());

/// The offsets of XMM0, and of the header's list of components in use (Intel's manual, volume 1, 13.4).
const XMM0: usize = 160;
const IN_USE: usize = 512;
/// The size of x87 and SSE registers and the header, which no CPU with AVX accepts as a whole set.
const SHORT: usize = 576;

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stopped process that this one traces; it ends when this is dropped.
struct Tracee(pid_t);

/// The child's exit status if tracing is not permitted.
const REFUSED: c_int = 77;

impl Tracee {
    /// Starts the process. Returns `None`, after a skip, if tracing is not permitted, as in some containers.
    fn new() -> Option<Self> {
        // SAFETY: the child calls nothing but async-signal-safe functions.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // SAFETY: plain system calls; the child ends here at the latest.
            unsafe {
                if libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                    libc::_exit(REFUSED);
                }
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == REFUSED {
            skip(
                Need::Ptrace,
                "the kernel or a sandbox refuses PTRACE_TRACEME",
            );
            return None;
        }
        let tracee = Self(pid);
        assert!(libc::WIFSTOPPED(status), "status {status:#x}");
        Some(tracee)
    }

    /// Calls the kernel's own `ptrace`, without this library. Returns its result, and the number of bytes.
    fn plain(&self, request: c_uint, set: &mut [u8]) -> (c_long, usize) {
        let mut vector = vector(set);
        // SAFETY: an iovec of a slice.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                request,
                self.0,
                NT_X86_XSTATE,
                &raw mut vector,
            )
        };
        (result, vector.iov_len)
    }

    /// Returns all its extended registers; `None` on a CPU without XSAVE.
    fn registers(&self) -> Option<Vec<u8>> {
        let mut set = vec![0; ROOM];
        let (result, size) = self.plain(libc::PTRACE_GETREGSET, &mut set);
        set.truncate(size);
        (result == 0).then_some(set)
    }

    /// Calls this library's `ptrace`. Returns its result, and the number of bytes.
    fn set(&self, set: &mut [u8]) -> (c_long, usize) {
        let mut vector = vector(set);
        let note = std::ptr::without_provenance_mut(NT_X86_XSTATE);
        // SAFETY: an iovec of a slice.
        let result = unsafe {
            ptrace(
                libc::PTRACE_SETREGSET,
                self.0,
                note,
                (&raw mut vector).cast(),
            )
        };
        (result, vector.iov_len)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

fn vector(set: &mut [u8]) -> iovec {
    iovec {
        iov_base: set.as_mut_ptr().cast(),
        iov_len: set.len(),
    }
}

#[test]
fn a_set_that_the_kernel_refuses_as_too_short_is_completed() {
    let _turn = turn();
    let Some(tracee) = Tracee::new() else { return };
    let Some(mut whole) = tracee.registers().filter(|set| set.len() > SHORT) else {
        return skip(Need::Xsave, "no registers besides those of SSE");
    };
    // A value in the upper half of YMM0 (component 2, the first after the header), to see that bytes which are not
    // given stay.
    whole[SHORT..SHORT + 16].copy_from_slice(&[0x5a; 16]);
    whole[IN_USE] |= 0b111;
    assert_eq!(tracee.plain(libc::PTRACE_SETREGSET, &mut whole).0, 0);

    let mut short = whole[..SHORT].to_vec();
    short[XMM0..XMM0 + 16].copy_from_slice(b"put there by us!");
    assert_eq!(
        tracee.plain(libc::PTRACE_SETREGSET, &mut short).0,
        -1,
        "the kernel takes a short set: nothing of this crate is needed"
    );
    assert_eq!(
        tracee.registers().as_ref(),
        Some(&whole),
        "after the refusal"
    );

    assert_eq!(tracee.set(&mut short), (0, SHORT));
    let mut expected = whole;
    expected[..SHORT].copy_from_slice(&short);
    assert_eq!(tracee.registers(), Some(expected));
}

#[test]
fn a_set_that_is_too_long_loses_what_this_cpu_has_not() {
    let _turn = turn();
    let Some(tracee) = Tracee::new() else { return };
    let Some(mut whole) = tracee.registers() else {
        return skip(Need::Xsave, "no XSAVE");
    };
    whole[IN_USE] |= 0b11;
    whole[XMM0] = 42;
    let mut long = whole.clone();
    long.resize(whole.len() + 4096, 0xff);
    assert_eq!(tracee.set(&mut long), (0, whole.len()));
    assert_eq!(tracee.registers(), Some(whole));
}

#[test]
fn a_tracee_that_is_gone_is_the_kernels_error_and_other_requests_are_libcs() {
    let _turn = turn();
    let errno = || std::io::Error::last_os_error().raw_os_error();
    let Some(gone) = Tracee::new() else { return };
    let pid = gone.0;
    drop(gone);
    let note = std::ptr::without_provenance_mut(NT_X86_XSTATE);
    let mut set = [0; SHORT];
    let mut vector = vector(&mut set);
    // SAFETY: an iovec of an array.
    let result = unsafe { ptrace(libc::PTRACE_SETREGSET, pid, note, (&raw mut vector).cast()) };
    assert_eq!((result, errno()), (-1, Some(libc::ESRCH)));

    let Some(tracee) = Tracee::new() else { return };
    let null = std::ptr::null_mut();
    // SAFETY: all zero is a value of it.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes such a structure.
    let result = unsafe {
        ptrace(
            libc::PTRACE_GETREGS,
            tracee.0,
            null,
            (&raw mut registers).cast(),
        )
    };
    assert_eq!(result, 0);
    assert_ne!(registers.rsp, 0);
    // SAFETY: libc returns the word itself, which is what its variadic form is for.
    let word = unsafe {
        ptrace(
            libc::PTRACE_PEEKDATA,
            tracee.0,
            std::ptr::without_provenance_mut(registers.rsp as usize),
            null,
        )
    };
    let mut expected = 0_i64;
    // SAFETY: the raw system call writes the word where its fourth argument points.
    let raw = unsafe {
        let at = &raw mut expected;
        libc::syscall(
            libc::SYS_ptrace,
            libc::PTRACE_PEEKDATA,
            tracee.0,
            registers.rsp,
            at,
        )
    };
    assert_eq!((raw, word), (0, expected));
}

#[test]
fn while_another_one_sets_registers_a_call_goes_its_way_unchanged() {
    let _turn = turn();
    let Some(tracee) = Tracee::new() else { return };
    let Some(mut short) = tracee.registers().filter(|set| set.len() > SHORT) else {
        return skip(Need::Xsave, "no registers besides those of SSE");
    };
    short.truncate(SHORT);
    let plain = tracee.plain(libc::PTRACE_SETREGSET, &mut short);
    WHOLE.taken.store(true, Ordering::Release);
    let ours = tracee.set(&mut short);
    WHOLE.taken.store(false, Ordering::Release);
    assert_eq!(ours, plain);
    assert_eq!(tracee.set(&mut short), (0, SHORT), "and when it is done");
}
