//! What an agent answers by HTTP: probes, metrics, and its page.

use std::sync::Arc;

use ebbtide_types::settings::ListenAddress;

use crate::{agent::Agent, http, metrics, page};

/// Answers for an agent at `address`, until the runtime ends.
pub fn serve(agent: &Arc<Agent>, address: ListenAddress) {
    // What an older agent told of must not be told as new.
    agent
        .metrics
        .pods
        .begin(&agent.datapath, &agent.interfaces());
    let Some(socket) = address.socket() else {
        return;
    };
    let listening = agent.metrics.listening.clone();
    let router = page::serve(agent, socket, metrics::of_agent(agent), &listening);
    tokio::spawn(http::serve(socket, router, listening));
}
