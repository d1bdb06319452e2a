//! `ebbtidectl sysdump`: what is needed to understand this node from elsewhere, in one file.
//!
//! It has what the agent answers and what the kernel has, as the host's own programs print it. It has no secrets: no
//! environment, no file but those named in [`contents`], no setting that is a key.

mod contents;
mod package;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use ebbtide_agent::{
    doctor::may_have_nft,
    host_root::{HostRoot, which},
    program,
};

use self::contents::{Content, ITEMS};
pub(super) use self::package::Package;
use super::{
    agent::ask,
    format::{Output, unix_now},
};

/// How long one of the host's programs may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How much it may print, in bytes.
const MOST: u64 = 32 << 20;

/// The options of a dump.
#[derive(Args)]
pub(super) struct Options {
    /// Where it goes; `-`: standard output [default: ebbtide-sysdump-SECONDS.tar.gz].
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The host's root directory, whose programs (ip, tc, nft) print what the kernel has. The agent's container has it
    /// here; elsewhere programs run as they are.
    #[arg(long, value_name = "DIR", default_value = "/host/root")]
    host_root: PathBuf,
}

impl Options {
    /// Returns where the dump goes.
    pub(super) fn file(&self) -> PathBuf {
        let default = || PathBuf::from(format!("ebbtide-sysdump-{}.tar.gz", unix_now()));
        self.file.clone().unwrap_or_else(default)
    }
}

/// Collects everything. What cannot be had is named in the dump, and on standard error.
pub(super) fn run(
    options: &Options,
    socket: &Path,
    output: Output,
) -> anyhow::Result<(String, ExitCode)> {
    let root = match options.host_root.is_dir() {
        true => HostRoot::open(options.host_root.clone()).unwrap_or_default(),
        false => HostRoot::default(),
    };
    let to_stdout = options.file.as_deref() == Some(Path::new("-"));
    let file = options.file();
    let mut package = match to_stdout {
        true => Package::new(Box::new(io::stdout()), "ebbtide-sysdump"),
        false => Package::create(&file, "ebbtide-sysdump")?,
    };
    let mut missing = Vec::new();
    for (number, item) in ITEMS.iter().enumerate() {
        progress(number + 1, ITEMS.len(), item.name);
        match read(&item.content, socket, &root) {
            Ok(bytes) => package.add(item.name, &bytes)?,
            Err(why) => missing.push(format!("{}: {why:#}", item.name)),
        }
    }
    progress_ends();
    for each in &missing {
        let _closed = writeln!(io::stderr().lock(), "ebbtidectl: left out: {each}");
    }
    package.add("left-out.txt", missing.join("\n").as_bytes())?;
    package.finish()?;
    let told = match to_stdout {
        true => String::new(),
        false => told(&file, &missing, output),
    };
    Ok((told, ExitCode::SUCCESS))
}

/// Says where the dump is, and what is not in it.
fn told(file: &Path, missing: &[String], output: Output) -> String {
    let parts = ITEMS.len() - missing.len();
    match output {
        Output::Text => format!("{} ({parts} of {} parts)\n", file.display(), ITEMS.len()),
        Output::Json => format!(
            "{:#}\n",
            serde_json::json!({ "file": file, "parts": parts, "leftOut": missing })
        ),
    }
}

fn read(content: &Content, socket: &Path, root: &HostRoot) -> anyhow::Result<Vec<u8>> {
    match content {
        Content::Version => Ok(format!("ebbtidectl {}\n", env!("CARGO_PKG_VERSION")).into_bytes()),
        Content::Answer(query) => Ok(ask(socket, query())?.into_bytes()),
        Content::Firewall(_) if !may_have_nft() => {
            bail!("the kernel has no nf_tables, and this would load it")
        }
        Content::Program(words) | Content::Firewall(words) => printed(words, root),
        Content::File(path) => {
            let read = root
                .run(|| std::fs::read(path))
                .context("enter the host's root directory")?;
            read.with_context(|| format!("read {path}"))
        }
        Content::Settings(below) => {
            let text = contents::settings(Path::new(below))?;
            Ok(text.into_bytes())
        }
    }
}

/// Runs a program of the host.
fn printed(words: &[&str], root: &HostRoot) -> anyhow::Result<Vec<u8>> {
    let (name, arguments) = words.split_first().context("no program is named")?;
    let path = root.search_path();
    let ended = root
        .run(|| {
            let file = which(name, &path).with_context(|| format!("there is no {name} {root}"))?;
            let mut command = Command::new(file);
            command
                .args(arguments)
                .env("PATH", &path)
                .env("LC_ALL", "C");
            program::output(&mut command, b"", TIMEOUT, MOST).with_context(|| format!("run {name}"))
        })
        .context("enter the host's root directory")??;
    let mut bytes = ended.stdout;
    if !ended.status.success() {
        bytes.extend_from_slice(format!("\n# {}: {}", words.join(" "), ended.status).as_bytes());
        bytes.extend_from_slice(b"\n# ");
        bytes.extend_from_slice(&ended.stderr);
    }
    Ok(bytes)
}

/// Says how far it is, where somebody looks.
pub(super) fn progress(number: usize, of: usize, name: &str) {
    if io::IsTerminal::is_terminal(&io::stderr()) {
        let done = 20 * number / of.max(1);
        let bar = format!("{}{}", "█".repeat(done), "░".repeat(20 - done));
        let _closed = write!(io::stderr().lock(), "\r\x1b[K{bar} {number}/{of} {name}");
    }
}

/// Removes the line of [`progress`].
pub(super) fn progress_ends() {
    if io::IsTerminal::is_terminal(&io::stderr()) {
        let _closed = write!(io::stderr().lock(), "\r\x1b[K");
    }
}
