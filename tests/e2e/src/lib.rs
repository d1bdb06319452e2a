//! End-to-end tests: a real cluster with Ebbtide as its network, from its image and by its manifests.
//!
//! Two nodes are machines of their own (user-mode Linux, which has ipvlan) with two NICs each in the strict VPC.
//! containerd, kubelet, kube-proxy and the control plane are the real ones.

mod addresses;
mod cloud;
mod connectivity;
mod datagram;
mod declared;
mod helm;
mod host_port;
mod hostile;
mod http;
mod install;
mod interfaces;
mod lifecycle;
mod objects;
mod report;
mod rows;
mod stage;
mod told;
mod traffic;
mod troubles;

use std::time::Instant;

use anyhow::{Context as _, Result};
use ebbtide_vpc::progress::{print, seconds, step};

pub use addresses::Addresses;
pub use cloud::Cloud;
pub use datagram::serve as serve_datagrams;
pub use report::{Report, Row};
use rows::Checked;
pub use stage::Stage;

/// The options of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The cloud.
    pub cloud: Cloud,
    /// What says which addresses pods may have.
    pub addresses: Addresses,
    /// The last row: the first one with this in its name.
    pub until: Option<String>,
    /// Whether the cluster keeps running until standard input ends.
    pub stay: bool,
}

/// Builds the cluster, checks every row, and prints progress. Returns `None`, after a [`skip`](ebbtide_vpc::skip), if
/// this machine has no Kubernetes binaries.
///
/// # Errors
/// If the cluster does not start. A row that fails is in the report and is not an error.
pub fn run(options: &Options) -> Result<Option<Report>> {
    let begin = Instant::now();
    print(&format!("\n{}\n", options.cloud));
    let built = step("VPC and control plane", || {
        Stage::build(options.cloud, options.addresses)
    })?;
    let Some(stage) = built else {
        return Ok(None);
    };
    let mut report = Report {
        cloud: options.cloud,
        addresses: options.addresses,
        ..Report::default()
    };
    let ready = ready(&stage);
    match ready {
        Ok(()) => {
            for checked in rows::rows(options.cloud, options.addresses) {
                report.rows.push(look_at(&stage, checked));
                let last = options.until.as_deref();
                if last.is_some_and(|last| checked.0.contains(last)) {
                    break;
                }
            }
        }
        Err(error) => {
            print(&format!("{error:#}\n{}\n", stage.logs()));
            let result = format!("{error:#}");
            let (row, how) = ("a cluster with ready pods".into(), "kubectl apply".into());
            report.rows.push(Row {
                row,
                how,
                result,
                ok: false,
                seconds: 0.0,
            });
        }
    }
    report.finish(begin.elapsed());
    print(&report.text());
    if !report.ok {
        print(&stage.logs());
    }
    if options.stay {
        print(&format!(
            "\nThe cluster stays until standard input ends. Meanwhile, elsewhere:\n{} get pods -A -o wide\n",
            stage.kubectl_command()?
        ));
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
            .context("waiting for the end of standard input")?;
    }
    Ok(Some(report))
}

fn ready(stage: &Stage) -> Result<()> {
    step("two nodes with two NICs each", || stage.boot())?;
    step(stage.installation(), || stage.install())?;
    step(stage.addresses.title(), || stage.deploy())
}

fn look_at(stage: &Stage, (row, how, look): Checked) -> Row {
    print(&format!("{row} ... "));
    let start = Instant::now();
    let seen = look(stage);
    let took = start.elapsed();
    let (ok, result) = match seen {
        Ok(result) => (true, result),
        Err(error) => (false, format!("{error:#}")),
    };
    let verdict = if ok { "ok" } else { "FAILED" };
    print(&format!("{verdict}, {}\n", seconds(took)));
    if !ok {
        // The table is printed at the end, and rows may take minutes.
        print(&format!("    {result}\n"));
    }
    Row {
        row: row.into(),
        how: how.into(),
        result,
        ok,
        seconds: took.as_secs_f64(),
    }
}
