//! `ebbtide-fuzz`: feeds damaged inputs to everything that reads data from outside. See `cargo xtask fuzz`.

use std::{
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use ebbtide_tests::fuzz::{ALL, End, Reader, requests};

/// The name of the target that is not a reader: a running agent, which needs root.
const REQUESTS: &str = "requests";

/// Damage inputs at random, and see that nothing panics, gets stuck, takes all the memory or leaves anything behind.
///
/// Without names: all readers, and as root a running agent (`requests`).
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// What to feed: `--list` names them
    names: Vec<String>,
    /// For so long each
    #[arg(long, value_name = "SECS", default_value_t = 60)]
    seconds: u64,
    /// The same inputs again; another number otherwise
    #[arg(long)]
    seed: Option<u64>,
    /// Read this file once, as the reader of that name does: what was kept of an earlier run
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Say what there is, and who writes what it reads
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("ebbtide-fuzz: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if cli.list {
        for reader in &ALL {
            say(&format!("{:<16}{}", reader.name, reader.from));
        }
        say(&format!("{REQUESTS:<16}a running agent, by its socket"));
        return Ok(());
    }
    let named: Vec<&Reader> = cli
        .names
        .iter()
        .filter(|name| *name != REQUESTS)
        .map(|name| {
            let found = ALL.iter().find(|reader| reader.name == name);
            found.with_context(|| format!("nothing is called {name}; `--list` says what there is"))
        })
        .collect::<Result<_>>()?;
    if let Some(path) = &cli.input {
        let [reader] = named[..] else {
            bail!("--input takes the name of one reader");
        };
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let understood = reader.once(&bytes)?;
        say(&format!(
            "{}: read, {}",
            reader.name,
            if understood { "understood" } else { "refused" }
        ));
        return Ok(());
    }
    let seed = cli.seed.unwrap_or_else(now);
    let end = End::Time(Duration::from_secs(cli.seconds));
    let all = cli.names.is_empty();
    for reader in if all { ALL.iter().collect() } else { named } {
        say(&format!("{}: seed {seed}, {} s", reader.name, cli.seconds));
        say(&format!("{}: {}", reader.name, reader.run(seed, end)?));
    }
    if all && !nix::unistd::geteuid().is_root() {
        say(&format!(
            "{REQUESTS}: left out, since network namespaces take root"
        ));
    } else if all || cli.names.iter().any(|name| name == REQUESTS) {
        say(&format!("{REQUESTS}: seed {seed}, {} s", cli.seconds));
        say(&format!("{REQUESTS}: {:?}", requests(seed, end)?));
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs())
}

fn say(line: &str) {
    // Nobody can be told if standard output is closed.
    let _ = writeln!(std::io::stdout(), "{line}");
}
