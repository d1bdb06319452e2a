//! The process's heap: glibc's, told that this process has short-lived threads and bursts.

/// One heap for all threads. glibc gives each new thread its own until there are eight a processor; each
/// ADD has threads that live for a millisecond, and what they leave in all those heaps is not used again.
/// To be called before any other thread runs.
pub fn share_one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and keeps nothing.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1)
    };
}

/// Gives back to the system what a burst has left. glibc itself gives back only what is free at the heap's
/// end.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, and locks the heap while it works.
    unsafe {
        nix::libc::malloc_trim(0)
    };
}
