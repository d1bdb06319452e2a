//! What controllers tell of themselves: who leads, and what the API server answers.

use std::{net::TcpListener, process::Command};

use anyhow::{Result, ensure};
use ebbtide_vpc::{
    patience::eventually,
    process::Process,
    scrape::{Scrape, get_here},
    workspace::BINARIES,
};

use crate::setup::cluster;

/// A controller, as its Deployment runs it.
pub(crate) struct Real {
    process: Process,
    address: String,
}

impl Real {
    pub(crate) fn start(
        kubeconfig: &std::path::Path,
        name: &str,
        log: &std::path::Path,
    ) -> Result<Self> {
        // Free a moment ago; if another process has it now, the controller tries again and the test fails.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = Command::new(BINARIES.file("ebbtide-agent")?);
        command.args(["controller", "--name", name, "--metrics-address", &address]);
        command.arg("--kubeconfig").arg(kubeconfig);
        let process = Process::start(command, &log.join(name))?;
        Ok(Self { process, address })
    }

    /// Returns where it tells of itself.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn scrape(&self) -> Result<Scrape> {
        let (status, text) = get_here(&self.address, "/metrics")?;
        ensure!(status == 200, "{status}: {text}");
        Ok(Scrape { text })
    }

    pub(crate) fn leads(&self) -> Result<f64> {
        Ok(self.scrape()?.sum("ebbtide_controller_leader", &[]))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // Nobody could handle the error.
        let _ = self.process.kill();
    }
}

#[test]
fn one_of_two_controllers_leads_and_both_are_ready_and_tell_what_they_asked() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let logs = tempfile::tempdir()?;
    let first = Real::start(&cluster.kubeconfig(), "first", logs.path())?;
    eventually("the first one leads", || {
        ensure!(first.leads()? == 1.0);
        Ok(())
    })?;
    let second = Real::start(&cluster.kubeconfig(), "second", logs.path())?;
    eventually("the second one watches", || {
        let watches = ["verb=\"WATCH\"", "code=\"200\""];
        let told = second.scrape()?;
        ensure!(
            told.sum("ebbtide_kube_requests_total", &watches) > 0.0,
            "{}",
            told.text
        );
        Ok(())
    })?;
    ensure!(second.leads()? == 0.0);
    for controller in [&first, &second] {
        let (status, _) = get_here(&controller.address, "/readyz")?;
        ensure!(status == 200, "{status}");
    }
    // It writes its Lease.
    let told = first.scrape()?;
    let wrote = |verb| told.sum("ebbtide_kube_requests_total", &[verb]);
    ensure!(
        wrote("verb=\"PUT\"") + wrote("verb=\"POST\"") > 0.0,
        "{}",
        told.text
    );
    ensure!(!told.text.contains("ebbtide_pool"), "{}", told.text);
    Ok(())
}
