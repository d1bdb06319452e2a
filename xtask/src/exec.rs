//! Runs other programs. All of them are run here, so that every failure shows the command line.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output as Captured, Stdio};

use anyhow::{Context as _, Result, bail};

/// The destination of a program's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// The output of xtask.
    Show,
    /// It is collected, and shown in the error if the program fails.
    OnFailure,
}

/// Runs `command`; a status other than 0 is an error.
pub(crate) fn run(command: &mut Command, output: Output) -> Result<()> {
    match output {
        Output::OnFailure => capture(command, true).map(drop),
        Output::Show => {
            let status = command
                .stdin(Stdio::null())
                .status()
                .with_context(|| format!("cannot start `{}`", line(command)))?;
            if !status.success() {
                bail!("`{}` failed ({status})", line(command));
            }
            Ok(())
        }
    }
}

/// Runs `command` and returns what it wrote to stdout; its stderr is shown in the error.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    String::from_utf8(bytes(command)?)
        .with_context(|| format!("the output of `{}` is not UTF-8", line(command)))
}

/// Runs `command` and returns what it wrote to stdout, whatever it is.
pub(crate) fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    capture(command, false).map(|captured| captured.stdout)
}

/// Copies `from` to our stdout until it ends.
pub(crate) fn pass_on(from: &mut dyn Read) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut ours = std::io::stdout().lock();
        // A reader that went away (`| head`) does not end the program.
        let _ = ours.write_all(&buffer[..count]).and_then(|()| ours.flush());
    }
}

/// Calls `each` with the lines of `from` until it ends.
pub(crate) fn each_line(from: impl Read, mut each: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut line) {
        each(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
}

/// Whether `command` can be started and ends with status 0. Its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs `command` and captures its output. With `stdout_tells` its stdout is for people, too, and part of the error.
fn capture(command: &mut Command, stdout_tells: bool) -> Result<Captured> {
    let captured = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !captured.status.success() {
        bail!(
            "`{}` failed ({})\n{}{}",
            line(command),
            captured.status,
            String::from_utf8_lossy(if stdout_tells { &captured.stdout } else { &[] }),
            String::from_utf8_lossy(&captured.stderr)
        );
    }
    Ok(captured)
}

/// Returns the command line for a shell.
pub(crate) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Quotes `word` for a POSIX shell, if that is needed.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Finds `program` in PATH, or in Debian's directories of administrators' programs.
pub(crate) fn find(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program.as_ref()))
        .find(|candidate| candidate.is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(read(Command::new("id").arg("-u"))?.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_a_shell() {
        for word in [
            "plain",
            "",
            "a b",
            "it's",
            "$HOME `id` \"x\" \\",
            "new\nline",
            "*",
        ] {
            let echoed = read(
                Command::new("sh")
                    .arg("-c")
                    .arg(format!("printf %s {}", quote(word))),
            )
            .expect("sh runs");
            assert_eq!(echoed, word, "quoted as {}", quote(word));
        }
    }

    #[test]
    fn a_plain_word_is_left_as_it_is() {
        assert_eq!(
            quote("--target=bpfel-unknown-none"),
            "--target=bpfel-unknown-none"
        );
    }

    #[test]
    fn a_failure_shows_the_command_line_and_its_output() {
        let error = run(
            Command::new("sh").arg("-c").arg("echo why >&2; exit 3"),
            Output::OnFailure,
        )
        .expect_err("status 3");
        let text = format!("{error:#}");
        assert!(
            text.contains("`sh -c 'echo why >&2; exit 3'` failed"),
            "{text}"
        );
        assert!(text.contains("why\n"), "{text}");
    }
}
