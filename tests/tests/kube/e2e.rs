//! End to end: a real cluster whose network is the shipped image, installed by the shipped manifests.

use anyhow::{Result, ensure};
use ebbtide_e2e::Options;

#[test]
fn a_cluster_has_every_row_as_it_must_be() -> Result<()> {
    if let Some(report) = ebbtide_e2e::run(&Options::default())? {
        ensure!(report.ok, "{}", report.text());
    }
    Ok(())
}
