//! Every row of the table of traffic, for TCP, UDP and ICMP and both families, by the wires that packets took: the
//! checks of the demonstration.

use anyhow::{Result, ensure};
use ebbtide_demo::{Scenario, all_go_their_way};
use ebbtide_vpc::{lab::Lab, plan::Plan};

#[test]
fn every_row_takes_its_path_there_and_back_and_the_vpc_drops_nothing() -> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let checks = scenario.checks();
    ensure!(checks.len() > 20, "only {} rows", checks.len());
    all_go_their_way(&lab, &checks)?;
    scenario.delete()
}

#[test]
fn without_the_programs_the_other_nics_reply_is_dropped_by_the_vpc() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let scenario = Scenario::create(&lab)?;
    let line = scenario.detached(&mut lab)?;
    ensure!(line.ok, "{line:#?}");
    scenario.delete()
}
