//! Common steps of the agents' tests: an API server with Ebbtide's kinds, and time limits.

use std::{
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use ebbtide_cluster::{ControlPlane, Member, Options};

/// The directory of the shipped manifests.
pub(crate) const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// The cooldown of agents that hand out released addresses at once.
pub(crate) const NO_REST: Duration = Duration::ZERO;

/// The time limit for what must not happen: long enough for it to happen.
pub(crate) const SHORT: Duration = Duration::from_secs(4);

/// The time limit for what must happen: longer than it takes to notice a dead agent.
pub(crate) const LONG: Duration = Duration::from_secs(150);

/// Starts a control plane with Ebbtide's kinds and without controllers. Returns `None`, after a skip, if there are no
/// binaries.
pub(crate) fn cluster() -> Result<Option<ControlPlane>> {
    let options = Options {
        // Without controllers nobody creates the service accounts that pods would need.
        api_server_arguments: vec!["--disable-admission-plugins=ServiceAccount".into()],
        ..Options::default()
    };
    let Some(cluster) = ControlPlane::start(options)? else {
        return Ok(None);
    };
    cluster.install_crds(&Path::new(DEPLOY).join("crds"))?;
    Ok(Some(cluster))
}

/// Repeats ADD until it succeeds: other agents must notice something first.
pub(crate) fn add_in_the_end(agent: &Member, pod: &str) -> Result<IpAddr> {
    let start = Instant::now();
    loop {
        match agent.add(pod, SHORT) {
            Err(_) if start.elapsed() < LONG => thread::sleep(Duration::from_millis(500)),
            result => return result,
        }
    }
}
