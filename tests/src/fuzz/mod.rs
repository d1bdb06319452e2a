//! Fuzzing: inputs from outside are damaged at random and given to each reader alone, and to a running agent.
//!
//! The inputs are mutated from the valid files of `tests/corpus`. `cargo xtask fuzz` runs as long as one wants; the
//! tests run a few inputs, the same in each run. The checks: no panic, no crash, an answer in time, and memory as
//! before.

mod clouds;
mod memory;
mod mutate;
mod node;
mod readers;

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

pub use mutate::mutated;
pub use node::{Answers, requests};
pub use readers::{ALL, Reader};

use ebbtide_vpc::random::Random;

/// The time after which a reader counts as stuck on an input. The largest inputs take a few milliseconds.
const STUCK: Duration = Duration::from_secs(20);

/// The memory that one input of at most a MiB may take, and that may remain after all inputs. More is a defect.
const MOST_MEMORY: u64 = 512 << 20;

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// After this number of inputs.
    Inputs(u64),
    /// After this time.
    Time(Duration),
}

impl End {
    fn is_reached(self, inputs: u64, begun: Instant) -> bool {
        match self {
            Self::Inputs(most) => inputs >= most,
            Self::Time(longest) => begun.elapsed() >= longest,
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The number of inputs.
    pub inputs: u64,
    /// How many of them were understood, at least in part.
    pub understood: u64,
    /// The longest time for one input. That input is kept with the suffix `slowest`.
    pub slowest: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            inputs,
            understood,
            slowest,
        } = self;
        write!(
            f,
            "{inputs} inputs, {understood} of them understood, the slowest in {slowest:.1?}"
        )
    }
}

/// Returns the directory where harmful inputs are kept.
#[must_use]
pub fn kept() -> PathBuf {
    std::env::var_os("EBBTIDE_FUZZ_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz"),
        PathBuf::from,
    )
}

impl Reader {
    /// Reads one input. Panics are not caught.
    ///
    /// # Errors
    /// If there is no directory for it to write in.
    pub fn once(&self, bytes: &[u8]) -> Result<bool> {
        let scratch = tempfile::tempdir().context("make a directory")?;
        Ok((self.read)(scratch.path(), bytes))
    }

    /// Checks that each file of the corpus is understood unchanged: mutations begin with inputs that readers accept.
    ///
    /// # Errors
    /// If one is not; the error names it.
    pub fn understands_its_corpus(&self) -> Result<()> {
        let corpus = self
            .corpus()
            .with_context(|| format!("read the corpus of {}", self.name))?;
        ensure!(!corpus.is_empty(), "{} has no corpus", self.name);
        for (path, bytes) in corpus {
            ensure!(
                self.once(&bytes)?,
                "{} does not understand {}",
                self.name,
                path.display()
            );
        }
        Ok(())
    }

    /// Reads damaged inputs until the end.
    ///
    /// # Errors
    /// The first input that did harm, and what; the input is kept in [`kept`].
    pub fn run(&self, seed: u64, end: End) -> Result<Outcome> {
        let corpus = self
            .corpus()
            .with_context(|| format!("read the corpus of {}", self.name))?;
        let corpus: Vec<Vec<u8>> = corpus.into_iter().map(|(_, bytes)| bytes).collect();
        let scratch = tempfile::tempdir().context("make a directory")?;
        fs::create_dir_all(kept()).with_context(|| format!("make {}", kept().display()))?;
        // The input is written before it is read, so it is there if it ends the process.
        let current = kept().join(format!("{}.{}.current", self.name, std::process::id()));
        let mut random = Random::new(seed);
        let mut outcome = Outcome {
            inputs: 0,
            understood: 0,
            slowest: Duration::ZERO,
        };
        let (begun, mut before) = (Instant::now(), memory::resident()?);
        while !end.is_reached(outcome.inputs, begun) {
            let input = mutated(&mut random, &corpus);
            fs::write(&current, &input).with_context(|| format!("write {}", current.display()))?;
            let peak = memory::Peak::begin()?;
            let start = Instant::now();
            let read = catch_unwind(AssertUnwindSafe(|| (self.read)(scratch.path(), &input)));
            let took = start.elapsed();
            let harm = match read {
                Err(_) => Some("it panicked".to_owned()),
                Ok(_) if took > STUCK => Some(format!("it took {took:.1?}")),
                Ok(understood) => {
                    outcome.understood += u64::from(understood);
                    let most = peak.end()?;
                    (most > MOST_MEMORY).then(|| format!("it took {} MiB", most >> 20))
                }
            };
            if let Some(harm) = harm {
                let number = outcome.inputs;
                let file = kept().join(format!("{}-{seed}-{number}", self.name));
                fs::rename(&current, &file).with_context(|| format!("keep {}", file.display()))?;
                bail!(
                    "{}: input {number} of seed {seed}: {harm}; it is kept as {}",
                    self.name,
                    file.display()
                );
            }
            outcome.inputs += 1;
            if took > outcome.slowest {
                outcome.slowest = took;
                let file = kept().join(format!("{}.slowest", self.name));
                fs::copy(&current, &file).with_context(|| format!("keep {}", file.display()))?;
            }
            if outcome.inputs == 500 {
                // Tables and memory pools that are allocated once exist by now.
                before = memory::resident()?;
            }
        }
        let grown = memory::resident()?.saturating_sub(before);
        ensure!(
            grown < MOST_MEMORY,
            "{}: {} MiB were left behind",
            self.name,
            grown >> 20
        );
        fs::remove_file(&current).with_context(|| format!("remove {}", current.display()))?;
        Ok(outcome)
    }
}
