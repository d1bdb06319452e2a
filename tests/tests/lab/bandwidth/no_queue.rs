//! A kernel without `sch_fq`, as where a distribution has it in a package of its own: what is asked of it, and who says so.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    plan::Plan,
    skip::{Need, skip},
    snapshot::{Snapshot, run},
};
use serde_json::json;

use super::{RATE, limited, limits};

/// The program that loads modules for the kernel (Documentation/admin-guide/sysctl/kernel.rst).
const LOADER: &str = "/proc/sys/kernel/modprobe";

/// This kernel, with the module removed and nobody who loads it. Dropping it brings the loader back.
struct WithoutFairQueue {
    loader: String,
}

impl WithoutFairQueue {
    /// Returns `None` where it is built in.
    fn start(node: &Netns) -> Result<Option<Self>> {
        let loader = fs::read_to_string(LOADER).with_context(|| format!("reading {LOADER}"))?;
        fs::write(LOADER, "/bin/false").with_context(|| format!("writing {LOADER}"))?;
        let without = Self { loader };
        // It may not have been loaded.
        let _ = run(node, "rmmod", &["sch_fq"]);
        run(node, "ip", &["link", "add", "try", "type", "dummy"])?;
        let tried = run(node, "tc", &["qdisc", "add", "dev", "try", "root", "fq"]);
        run(node, "ip", &["link", "del", "try"])?;
        if tried.is_ok() {
            skip(Need::Modules, "sch_fq cannot be removed from this kernel");
            return Ok(None);
        }
        Ok(Some(without))
    }
}

impl Drop for WithoutFairQueue {
    fn drop(&mut self) {
        // Nothing could be done.
        let _ = fs::write(LOADER, self.loader.trim());
    }
}

#[test]
fn without_sch_fq_only_a_limit_out_of_the_pod_is_refused_and_the_doctor_says_so() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node("master").clone();
    let before = Snapshot::of(&node)?;
    let Some(without) = WithoutFairQueue::start(&node)? else {
        return Ok(());
    };
    let Err(error) = lab.pod_with("master", "ens5", "bad", &limited()) else {
        bail!("a limit that nothing keeps was taken");
    };
    let error = format!("{error:#}");
    for named in ["sch_fq", "modprobe", "kubernetes.io/egress-bandwidth"] {
        ensure!(error.contains(named), "{named}: {error}");
    }
    let used = lab.agent("master").addresses_in_use()?;
    ensure!(used == 0, "{used} addresses are kept");
    ensure!(limits(&mut lab)?.keys().count() == 0);
    before.comes_back(&node)?;

    let inward = json!({
        "capabilities": {"bandwidth": true},
        "runtimeConfig": {"bandwidth": {"ingressRate": RATE}},
    });
    for (name, fields) in [("inward", inward), ("free", json!({}))] {
        let pod = lab.pod_with("master", "ens5", name, &fields)?;
        pod.call("CHECK").context(name)?;
        pod.delete()?;
    }
    let is_told = |lab: &mut Lab| -> Result<bool> {
        let (findings, _) = lab.agent("master").doctor()?;
        Ok(findings
            .iter()
            .any(|finding| finding.what.contains("lacks sch_fq")))
    };
    ensure!(is_told(&mut lab)?, "the doctor finds nothing");

    drop(without);
    ensure!(!is_told(&mut lab)?, "the doctor finds what is not so");
    lab.pod_with("master", "ens5", "good", &limited())?.delete()
}
