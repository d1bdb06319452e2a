//! As many slow requests as are served at once: queries and the agent's shutdown do not wait for them.

use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, ensure};
use ebbtide_plugin::wire::{self, Invocation, Request};
use ebbtide_tests::slow_ipam::SlowIpam;
use ebbtide_vpc::{lab::Lab, netns::Netns, patience::eventually, plan::Plan};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

/// The number of commands that the agent serves at once. Others wait.
const PLACES: usize = 256;

#[test]
fn with_all_places_taken_by_slow_adds_status_is_answered_and_sigterm_is_heard() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    // Without an address, so nothing is checked or made.
    let mut ipam = SlowIpam::new(r#"{"cniVersion": "1.0.0", "ips": []}"#)?;
    ipam.hold("ADD")?;
    let netns = Netns::new("slow")?;
    let agent = lab.agent("master");
    let config = json!({
        "cniVersion": "1.0.0", "name": "slow", "type": "ebbtide", "master": "ens5",
        "ipam": {"type": SlowIpam::NAME},
    });
    let mut streams = Vec::new();
    for number in 0..PLACES + 8 {
        let mut stream = UnixStream::connect(agent.socket())?;
        let invocation = Invocation {
            command: "ADD".into(),
            container_id: format!("slow-{number}"),
            netns: netns.path().display().to_string(),
            if_name: "eth0".into(),
            path: ipam.path(),
            config: config.to_string(),
            ..Invocation::default()
        };
        wire::send(&mut stream, &Request::Cni(invocation))?;
        streams.push(stream);
    }
    ipam.wait_called(PLACES)?;
    // The readiness probe's command.
    agent.control(&["status"])?;
    let id = agent.process_id().context("the agent does not run")?;
    kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM)?;
    eventually("SIGTERM is heard", || {
        ensure!(agent.log().contains("SIGTERM"), "{}", agent.log());
        Ok(())
    })?;
    ipam.release()?;
    agent.stop()
}
