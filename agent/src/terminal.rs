//! What the commands say to the person who runs them: results, and why there is none.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context as _;

/// Formats an error and its causes, each once: some errors include their cause.
#[must_use]
pub fn error_chain(error: &anyhow::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    let told = causes.reduce(|told, cause| match told.ends_with(&cause) {
        true => told,
        false => format!("{told}: {cause}"),
    });
    told.unwrap_or_default()
}

/// Writes a result and returns `exit`.
///
/// A reader that closes the pipe early (`| head`) is no failure. A full disk is one: half of a result must not count as a
/// whole one.
///
/// # Errors
/// If it cannot be written.
pub fn print(out: &mut impl Write, text: &str, exit: ExitCode) -> anyhow::Result<ExitCode> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(e).context("write the result to standard output")
        }
        _ => Ok(exit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let io = || io::Error::from_raw_os_error(21);
        #[derive(Debug, thiserror::Error)]
        #[error("read /x: {source}")]
        struct Own {
            source: io::Error,
        }
        for (error, said) in [
            (
                anyhow::Error::new(Own { source: io() }),
                "read /x: Is a directory (os error 21)",
            ),
            (
                anyhow::Error::new(Own { source: io() }).context("start"),
                "start: read /x: Is a directory (os error 21)",
            ),
            (
                anyhow::Error::new(io()).context("read /x"),
                "read /x: Is a directory (os error 21)",
            ),
        ] {
            assert_eq!(error_chain(&error), said);
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
        struct Refusing(io::ErrorKind);
        impl Write for Refusing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut written = Vec::new();
        print(&mut written, "all of it\n", ExitCode::SUCCESS).unwrap();
        assert_eq!(written, b"all of it\n");
        let mut closed = Refusing(io::ErrorKind::BrokenPipe);
        assert!(print(&mut closed, "x", ExitCode::SUCCESS).is_ok());
        let mut full = Refusing(io::ErrorKind::StorageFull);
        let said = print(&mut full, "x", ExitCode::SUCCESS).unwrap_err();
        assert!(format!("{said:#}").contains("standard output"), "{said:#}");
    }
}
