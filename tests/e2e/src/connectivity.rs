//! `kubectl ebbtide connectivity`, as a user runs it: all is well, and then a NIC is blocked and it says so.

use std::{os::unix::fs::symlink, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{plan::Family, workspace};
use serde_json::Value;

use super::stage::Stage;

/// The table and the rule by which a NIC is blocked: what comes in there is forwarded to nobody.
const BLOCK: &str =
    "ip route add blackhole default table 99; ip rule add pref 1 iif @NIC@ lookup 99";
const UNBLOCK: &str = "ip rule del pref 1; ip route flush table 99";

/// Checks that every row passes, that the replies' NICs were told, and that nothing is left.
pub(super) fn all_is_well(stage: &Stage) -> Result<String> {
    let outside = Stage::outside().to_string();
    let (status, report) = run(stage, &["--outside", &outside])?;
    let rows = rows(&report)?;
    let failed = of(rows, "failed");
    ensure!(
        status == 0 && failed.is_empty() && report["ok"] == true,
        "status {status}: {failed:?}, {}, {}",
        report["notes"],
        report["wrongNic"]
    );
    let of_group = |group: &str| rows.iter().filter(|row| row["group"] == group).count();
    // Each NIC of each node, by TCP and UDP: two networks, from two nodes or four pods.
    for (group, expected) in [
        ("other-node", 4 * 2 * 3),
        ("cluster-from-nodes", 2 * 8 * 2),
        ("local-from-pods", 4 * 8 * 2),
        ("api-server", 4),
        ("outside", 4),
        ("reply-nic", 4 * 5 * 2),
    ] {
        let found = of_group(group);
        ensure!(
            found == expected,
            "{group} has {found} rows, not {expected}"
        );
    }
    for row in rows.iter().filter(|row| row["group"] == "reply-nic") {
        ensure!(row["leftBy"].is_string(), "{row}");
    }
    is_gone(stage)?;
    let skipped = of(rows, "skipped").len();
    Ok(format!("{} rows, {skipped} skipped", rows.len()))
}

/// Checks that the rows of a blocked NIC fail, and no others.
pub(super) fn blocked(stage: &Stage) -> Result<String> {
    let node = stage.nodes().next().context("a node")?;
    let [_, nic] = stage.cloud.nics();
    let host = stage.pod("host", node)?;
    let shell = |script: &str| {
        let exec = ["exec", &host.name, "--", "sh", "-c", script];
        stage.cluster.kubectl(&exec)
    };
    shell(&BLOCK.replace("@NIC@", nic))?;
    let network = stage.cloud.network(nic);
    // Fewer rows, and no patience: most of them have to fail.
    let quick = ["--network", &network, "--tries=1", "--no-trace"];
    let ran = run(stage, &quick);
    shell(UNBLOCK)?;
    let (status, report) = ran?;
    let rows = rows(&report)?;
    let failed = of(rows, "failed");
    ensure!(status == 1 && report["ok"] == false, "status {status}");
    ensure!(!failed.is_empty(), "nothing failed");
    // From another node by that NIC's address nothing can be answered.
    let address = stage.vpc.nic(node, nic).primary(Family::V4).to_string();
    let at_nic = |row: &&&Value| {
        let server = row["server"].as_str().unwrap_or_default();
        server.starts_with(&address)
    };
    let others = rows.iter().filter(|row| {
        let from = row["from"].as_str().unwrap_or_default();
        row["group"] == "local-from-nodes" && at_nic(&row) && !from.contains(node)
    });
    for row in others {
        ensure!(row["verdict"] == "failed", "{row} is ok all the same");
    }
    // What has nothing to do with the node has nothing to do with its NIC.
    for row in &failed {
        ensure!(
            row.to_string().contains(node),
            "{row} has nothing to do with {node}"
        );
    }
    is_gone(stage)?;
    Ok(format!(
        "{} of {} rows fail, {} of them at {address}",
        failed.len(),
        rows.len(),
        failed.iter().filter(at_nic).count()
    ))
}

/// Runs the test. Returns its exit status and its report.
fn run(stage: &Stage, options: &[&str]) -> Result<(i32, Value)> {
    let program = program(stage)?;
    let arguments = [&["-o", "json", "connectivity"], options].concat();
    let output = stage.cluster.client(&program, &arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("kubectl ebbtide connectivity, {}: {said}", output.status))?;
    Ok((output.status.code().unwrap_or(-1), report))
}

/// Returns the plugin: `ebbtidectl` under its other name.
fn program(stage: &Stage) -> Result<PathBuf> {
    let link = stage.cluster.directory().join("kubectl-ebbtide");
    if !link.is_symlink() {
        let program = workspace::BINARIES.file("ebbtidectl")?;
        symlink(program, &link).with_context(|| format!("making {}", link.display()))?;
    }
    Ok(link)
}

fn rows(report: &Value) -> Result<&Vec<Value>> {
    report["rows"].as_array().context("no rows")
}

fn of<'a>(rows: &'a [Value], verdict: &str) -> Vec<&'a Value> {
    let rows = rows.iter();
    rows.filter(|row| row["verdict"] == verdict).collect()
}

/// Checks that no namespace of the test is left.
fn is_gone(stage: &Stage) -> Result<()> {
    let label = "app.kubernetes.io/name=ebbtide-connectivity";
    let left = stage.cluster.get(&["namespaces", "-l", label])?;
    let left = left["items"].as_array().context("no list of namespaces")?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}
