//! The demonstration: every kind of traffic that Ebbtide is for, in the strict VPC, as a table.

mod arrival;
mod check;
mod cloud;
mod cluster_ip;
mod offers;
mod report;
mod scenario;
mod table;
mod told;

use std::time::Instant;

use anyhow::{Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    progress::{print, step},
};

pub use arrival::Arrival;
use arrival::Followed;
pub use check::{Check, Line, Measurement, SeenAs, Transport};
pub use cloud::{Addresses, CLOUDS};
pub use report::Report;
pub use scenario::{LOCAL_AT_MASTER, Scenario, WAYS_TO_C};

/// The options of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether every exchange is printed, and the packets of those that failed.
    pub verbose: bool,
    /// Whether the output is coloured.
    pub colour: bool,
    /// What tells the agents the addresses for pods.
    pub addresses: Addresses,
}

/// Runs everything, and prints progress.
///
/// # Errors
/// If the lab cannot be built, or an agent does not believe its cloud. A row that fails is in the report and is not an
/// error.
pub fn run(options: Options) -> Result<Report> {
    let begin = Instant::now();
    let addresses = options.addresses;
    let mut lab = step(
        "building the strict VPC (2 nodes with 2 NICs each, NAT gateway, load balancer, outside)",
        || Lab::without_agents(addresses.plan()),
    )?;
    print(&addresses.remark());
    let _metadata = step(&addresses.title(), || addresses.start_agents(&mut lab))?;
    if let Addresses::Told(_) = addresses {
        step("waiting until they have been told everything twice", || {
            addresses.wait_believed(&lab)
        })?;
    }
    let mut scenario = step(
        "creating 5 pods through the CNI plugin, Services and load balancers",
        || Scenario::create(&lab),
    )?;
    let mut followed = match addresses {
        Addresses::Declared => None,
        Addresses::Told(cloud) => Some(step(
            "assigning an address to a NIC that has none left for a sixth pod",
            || Followed::begin(&lab, cloud),
        )?),
    };
    let checks = scenario.checks();
    let mut lines = step(&scenario.title(), || {
        let mut lines = Vec::new();
        for check in &checks {
            if let Some(followed) = &mut followed {
                followed.look()?;
            }
            lines.push(check.run(&lab, options.verbose));
        }
        Ok(lines)
    })?;
    let arrival = match followed {
        None => None,
        Some(followed) => Some(step("waiting for that address, and sending to it", || {
            let (pod, arrival) = followed.wait()?;
            let checks = scenario.add(&lab, pod)?;
            lines.extend(checks.iter().map(|check| check.run(&lab, options.verbose)));
            Ok(arrival)
        })?),
    };
    let mut report = Report::new(&lab, arrival)?;
    lines.push(step(
        "sending once more without Ebbtide's programs",
        || scenario.detached(&mut lab),
    )?);
    step("deleting the pods through the CNI plugin", || {
        scenario.delete()
    })?;
    report.finish(lines, begin.elapsed());
    print(&report.text(options.colour));
    Ok(report)
}

/// Runs checks for tests: each must be as expected, and the VPC must have dropped nothing.
///
/// # Errors
/// If anything failed; the error lists it, with the agents' logs.
pub fn all_go_their_way(lab: &Lab, checks: &[Check]) -> Result<()> {
    let failed: Vec<String> = checks
        .iter()
        .map(|check| check.run(lab, false))
        .filter(|line| !line.ok)
        .map(|line| {
            format!(
                "{}: {} → {}: {}\n{}",
                line.traffic, line.from, line.to, line.path, line.note
            )
        })
        .collect();
    let violations = lab.vpc.assert_no_violations();
    ensure!(
        failed.is_empty() && violations.is_ok(),
        "{}\n{violations:?}\n{}",
        failed.join("\n"),
        lab.logs()
    );
    Ok(())
}
