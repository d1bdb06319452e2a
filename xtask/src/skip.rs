//! Skipped tests: a test that can prove nothing on this machine is neither passed nor failed.
//!
//! libtest has no such result. So a skip is written to the file that the environment variable `EBBTIDE_SKIPS` names,
//! one line each, where the runner reads it.

use std::{
    env,
    ffi::OsStr,
    fmt::Display,
    fs::File,
    io::{self, Write as _},
};

pub use crate::need::Need;

/// The variable with the file to which skips are appended.
const FILE: &str = "EBBTIDE_SKIPS";

/// Records that the test is skipped because this machine lacks `need`. The caller then ends the test normally.
///
/// It appends `NEED<TAB>REASON` to the file that `EBBTIDE_SKIPS` names, if it is set, and also prints a line to
/// standard error.
///
/// # Panics
/// If the file cannot be written: an unreported skip is worse than a failure.
pub fn skip(need: Need, reason: impl Display) {
    write_down(env::var_os(FILE).as_deref(), need, &reason.to_string());
}

fn write_down(file: Option<&OsStr>, need: Need, reason: &str) {
    let reason = one_line(reason);
    // Written directly, since libtest captures what macros print and drops it if the test passes. The file is what
    // counts, so an error here does no harm.
    let _ = io::stderr().write_all(format!("skipped: {need}: {reason}\n").as_bytes());
    let Some(file) = file else {
        return;
    };
    if let Err(error) = append(file, &format!("{need}\t{reason}\n")) {
        panic!(
            "{FILE}: {} cannot be written ({error}), and nobody would know that this was skipped",
            file.display()
        );
    }
}

/// Joins all words with single spaces.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Appends in one write: tests of other threads and processes append, too.
fn append(file: &OsStr, line: &str) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(file)?;
    file.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A text as in programs' errors.
    const REASON: &str = "no nft:\n  exit status: 1\tError\r\n";

    #[test]
    fn each_skip_is_a_line_of_the_file_whatever_its_reason_looks_like() {
        let file = env::temp_dir().join(format!("xtask-skips-{}", std::process::id()));
        for _ in 0..2 {
            write_down(Some(file.as_os_str()), Need::Nft, REASON);
        }
        let line = "nft\tno nft: exit status: 1 Error\n";
        let written = fs::read_to_string(&file).expect("it was written");
        fs::remove_file(file).expect("it can be removed");
        assert_eq!(written, line.repeat(2));
    }

    #[test]
    #[should_panic(expected = "cannot be written")]
    fn a_skip_that_cannot_be_written_down_is_a_failure() {
        write_down(Some(env::temp_dir().as_os_str()), Need::Nft, REASON);
    }
}
