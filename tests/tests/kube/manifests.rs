//! A real API server accepts everything in `deploy/`, and the manifests allow no more than they should.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::{ControlPlane, Options};

use crate::setup::DEPLOY;

const AGENT: &str = "--as=system:serviceaccount:ebbtide-system:ebbtide";

fn deploy(path: &str) -> String {
    Path::new(DEPLOY).join(path).display().to_string()
}

#[test]
fn the_manifests_are_accepted_and_the_agent_may_do_its_work_and_no_more() -> Result<()> {
    let Some(cluster) = ControlPlane::start(Options::default())? else {
        return Ok(());
    };
    cluster.install_crds(Path::new(&deploy("crds")))?;
    let applied = cluster.kubectl(&["apply", "-f", &deploy("ebbtide.yaml")])?;
    ensure!(
        applied.contains("daemonset.apps/ebbtide created")
            && applied.contains("deployment.apps/ebbtide-controller created"),
        "{applied}"
    );
    for (verb, what, allowed) in [
        ("watch", "spiderippools.spiderpool.spidernet.io", true),
        ("list", "pods", true),
        ("create", "spiderendpoints.spiderpool.spidernet.io", true),
        ("create", "events.events.k8s.io", true),
        ("patch", "pods", false),
        (
            "create",
            "network-attachment-definitions.k8s.cni.cncf.io",
            false,
        ),
        ("get", "secrets", false),
        ("list", "configmaps", false),
        ("delete", "pods", false),
        ("create", "pods/exec", false),
        ("update", "nodes", false),
        ("delete", "spiderippools.spiderpool.spidernet.io", false),
        ("create", "clusterroles.rbac.authorization.k8s.io", false),
    ] {
        let asked = ["auth", "can-i", verb, what, "--all-namespaces", AGENT];
        // kubectl's exit status is 1 for "no", too.
        let answer = cluster.kubectl(&asked).is_ok();
        ensure!(answer == allowed, "may it {verb} {what}? {answer}");
    }
    for (verb, what) in [
        ("get", "leases/ebbtide-agent"),
        ("watch", "configmaps"),
        ("update", "configmaps"),
    ] {
        let asked = ["auth", "can-i", verb, what, "-n", "ebbtide-system", AGENT];
        let asked = cluster.kubectl(&asked);
        asked.with_context(|| format!("may it {verb} {what} of its own namespace?"))?;
    }
    Ok(())
}

#[test]
fn the_examples_are_accepted() -> Result<()> {
    let Some(cluster) = ControlPlane::start(Options::default())? else {
        return Ok(());
    };
    cluster.install_crds(Path::new(&deploy("crds")))?;
    for cloud in ["aws", "aws/declared", "alibaba", "alibaba/declared"] {
        let directory = deploy(&format!("examples/{cloud}"));
        ensure!(
            fs::read_dir(&directory)?.count() > 0,
            "{directory} is empty"
        );
        // The kinds were just created: their endpoints may not be served yet.
        let mut applied = cluster.kubectl(&["apply", "-f", &directory]);
        for _ in 0..20 {
            if applied.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(250));
            applied = cluster.kubectl(&["apply", "-f", &directory]);
        }
        applied.with_context(|| directory)?;
    }
    let pools = cluster.kubectl(&["get", "spiderippools"])?;
    ensure!(pools.lines().count() == 9, "{pools}");
    Ok(())
}
