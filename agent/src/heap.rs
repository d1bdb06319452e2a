//! Tuning of glibc's heap for a process with short-lived threads and bursts.

/// Makes all threads share one heap. By default glibc gives new threads their own, up to eight per processor; each ADD
/// has threads that live for a millisecond, and memory that they leave there is not reused. Must be called before any
/// other thread runs.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and keeps nothing.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1)
    };
}

/// Returns memory that a burst has left to the system. glibc itself returns only what is free at the heap's end.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, and locks the heap while it works.
    unsafe {
        nix::libc::malloc_trim(0)
    };
}
