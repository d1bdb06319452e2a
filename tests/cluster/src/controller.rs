//! The controller, as its Deployment runs it.

use std::{path::Path, time::Duration};

use anyhow::Result;
use ebbtide_kube::{self as kube, Cluster, controller, leader};
use tokio::runtime::Runtime;

/// One that stands for election, and does the work if it is elected. Dropped it dies at once, as by SIGKILL.
#[derive(Debug)]
pub struct Controller {
    runtime: Option<Runtime>,
}

impl Controller {
    /// Starts one of this name.
    ///
    /// # Errors
    /// When it cannot be started. That the API server is away is none.
    pub fn start(kubeconfig: &Path, name: &str) -> Result<Self> {
        Self::start_with(kubeconfig, name, leader::Times::default())
    }

    /// As [`Controller::start`], with times of its own.
    ///
    /// # Errors
    /// When it cannot be started. That the API server is away is none.
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
