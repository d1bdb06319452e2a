//! The controller, run as its Deployment does.

use std::{path::Path, time::Duration};

use anyhow::Result;
use ebbtide_kube::{self as kube, Cluster, controller, leader};
use tokio::runtime::Runtime;

/// A candidate for the election, which does the controller's work if it is elected. Dropping it ends it at once, as
/// SIGKILL does.
#[derive(Debug)]
pub struct Controller {
    runtime: Option<Runtime>,
}

impl Controller {
    /// Starts a candidate of this name.
    ///
    /// # Errors
    /// If it cannot be started. An unreachable API server is not an error.
    pub fn start(kubeconfig: &Path, name: &str) -> Result<Self> {
        Self::start_with(kubeconfig, name, leader::Times::default())
    }

    /// As [`Controller::start`], with other times of the election.
    ///
    /// # Errors
    /// If it cannot be started. An unreachable API server is not an error.
    pub fn start_with(kubeconfig: &Path, name: &str, times: leader::Times) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let client = kube::connect(Some(kubeconfig)).await?;
            let cluster = Cluster::start_controller(client, name.to_owned());
            tokio::spawn(leader::lead_with(cluster, times, controller::work));
            anyhow::Ok(())
        })?;
        Ok(Self {
            runtime: Some(runtime),
        })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}
