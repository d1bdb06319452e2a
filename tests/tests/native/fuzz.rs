//! Damaged input from outside, for each reader and for the agent: a short run of `cargo xtask fuzz`.

use anyhow::{Result, ensure};
use ebbtide_tests::fuzz::{ALL, End, requests};

/// The number of inputs for each reader.
const INPUTS: u64 = 800;
/// The number of requests to the agent.
const REQUESTS: u64 = 1000;

#[test]
fn what_is_damaged_is_real_and_understood() -> Result<()> {
    ALL.iter()
        .try_for_each(|reader| reader.understands_its_corpus())
}

#[test]
fn no_reader_panics_gets_stuck_or_takes_all_the_memory() -> Result<()> {
    for reader in &ALL {
        let outcome = reader.run(1, End::Inputs(INPUTS))?;
        println!("{}: {outcome}", reader.name);
        // Inputs that nobody understands test nothing.
        ensure!(outcome.understood > 0, "{}: {outcome}", reader.name);
    }
    Ok(())
}

#[test]
fn damaged_requests_are_answered_and_leave_the_node_as_it_was() -> Result<()> {
    let answers = requests(1, End::Inputs(REQUESTS))?;
    println!("{answers:?}");
    ensure!(
        answers.done > 0 && answers.refused > answers.done / 10,
        "{answers:?}"
    );
    Ok(())
}
