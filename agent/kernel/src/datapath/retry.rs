//! Repeats writes to maps whose elements the kernel allocates on demand.
//!
//! The kernel keeps a few elements ready, and an interrupt allocates more (`bpf_mem_alloc`, kernel/bpf/memalloc.c).
//! Many writes at once may find none and fail with ENOMEM, though there is memory a moment later.

use std::{thread, time::Duration};

use aya::maps::MapError;
use nix::errno::Errno;

use super::Error;

const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// Runs `write`, and repeats it for a tenth of a second while it fails with ENOMEM.
pub(super) fn retry_enomem(mut write: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 1..TRIES {
        match write() {
            Err(e) if is_enomem(&e) => thread::sleep(PAUSE),
            done => return done,
        }
    }
    write()
}

fn is_enomem(error: &Error) -> bool {
    let source = match error {
        Error::Map {
            source: MapError::SyscallError(e),
            ..
        } => &e.io_error,
        Error::Io { source, .. } => source,
        _ => return false,
    };
    source.raw_os_error() == Some(Errno::ENOMEM as i32)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_want_of_memory_that_passes_is_no_refusal_and_all_others_are_at_once() {
        for (refusal, for_how_long, (written, times)) in [
            (Errno::ENOMEM, 3, (true, 4)),
            (Errno::ENOMEM, u32::MAX, (false, TRIES)),
            (Errno::E2BIG, 1, (false, 1)),
        ] {
            let mut asked = 0;
            let done = retry_enomem(|| {
                asked += 1;
                match asked > for_how_long {
                    true => Ok(()),
                    false => Err(Error::Io {
                        what: "write",
                        path: "map".into(),
                        source: io::Error::from(refusal),
                    }),
                }
            });
            assert_eq!((done.is_ok(), asked), (written, times), "{refusal}");
        }
    }
}
