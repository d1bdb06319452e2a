//! Asks the agent, and reads its answers.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use ebbtide_plugin::wire::{self, Query, Request};
use ebbtide_types::printable::printable_in_json;
use serde::de::DeserializeOwned;

/// How long the agent may take to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the agent's answer unchanged.
pub(super) fn ask(socket: &Path, query: Query) -> anyhow::Result<String> {
    let response = wire::ask(socket, &Request::Query(query), TIMEOUT).with_context(|| {
        format!(
            "ask the agent at {} (is ebbtide-agent running, and are you root?)",
            socket.display()
        )
    })?;
    if response.exit != 0 {
        bail!("{}", response.output);
    }
    Ok(response.output)
}

/// Parses the answer for a terminal, with printable names: they are chosen by others.
pub(super) fn parse<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    understand(&printable_in_json(answer))
}

pub(super) fn understand<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer)
        .context("understand the agent's answer (are ebbtidectl and agent of one release?)")
}
