//! What the tests of agents begin with and wait for: an API server that knows our kinds.

use std::{
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use ebbtide_cluster::{ControlPlane, Member, Options};

/// What is shipped.
pub(crate) const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// For agents that hand out at once what was given back.
pub(crate) const NO_REST: Duration = Duration::ZERO;

/// For what must not happen: long enough for it to happen.
pub(crate) const SHORT: Duration = Duration::from_secs(4);

/// For what must: longer than it takes to notice that an agent is dead.
pub(crate) const LONG: Duration = Duration::from_secs(150);

/// A control plane with our kinds and no controllers; `None`, and a skip, where there are no binaries for it.
pub(crate) fn cluster() -> Result<Option<ControlPlane>> {
    let options = Options {
        // No controllers: nobody makes the service accounts that pods would need.
        api_server_arguments: vec!["--disable-admission-plugins=ServiceAccount".into()],
        ..Options::default()
    };
    let Some(cluster) = ControlPlane::start(options)? else {
        return Ok(None);
    };
    cluster.install_crds(&Path::new(DEPLOY).join("crds"))?;
    Ok(Some(cluster))
}

/// Adds until it works: others have to notice something first.
pub(crate) fn add_in_the_end(agent: &Member, pod: &str) -> Result<IpAddr> {
    let start = Instant::now();
    loop {
        match agent.add(pod, SHORT) {
            Err(_) if start.elapsed() < LONG => thread::sleep(Duration::from_millis(500)),
            result => return result,
        }
    }
}
