//! `ebbtidectl log-level`: what the agent logs.

use clap::Args;
use ebbtide_agent::log::LogLevel;
use ebbtide_plugin::wire::Query;

/// The options of the log's filter.
#[derive(Args)]
pub(super) struct Options {
    /// A level (error, warn, info, debug, trace, off), or levels by module: `info,ebbtide_agent::cni=debug`. Without it
    /// the one in use is shown.
    filter: Option<String>,
    /// After how many seconds it is again as it was at the agent's start; 0: when the agent ends.
    #[arg(
        long = "for",
        value_name = "SECONDS",
        default_value_t = 600,
        requires = "filter"
    )]
    seconds: u64,
}

impl Options {
    /// Returns the query.
    pub(super) fn query(&self) -> Query {
        Query::Log {
            filter: self.filter.clone(),
            seconds: Some(self.seconds).filter(|seconds| *seconds > 0),
        }
    }
}

/// Says what is logged.
pub(super) fn show(level: &LogLevel) -> String {
    let filter = match level.filter.as_str() {
        "" => "the default filter (info)".to_owned(),
        filter => format!("the filter {filter:?}"),
    };
    match level.seconds {
        Some(seconds) => format!("the log has {filter} for {seconds} s\n"),
        None => format!("the log has {filter}\n"),
    }
}
