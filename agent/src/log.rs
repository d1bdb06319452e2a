//! The log. Every event is one line without control characters or colours, whatever names it contains: they are chosen
//! by whoever makes a pod or a network, and read on a terminal.

use std::io::{self, Write};

use clap::ValueEnum;
use ebbtide_types::printable::{printable, printable_json};
use tracing::warn;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// How the log is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error, filtered by RUST_LOG.
pub fn start(format: LogFormat) {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, refused) = filter(&asked);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false);
    match format {
        LogFormat::Text => registry
            .with(lines.with_writer(|| Lines(|line| printable(line).into_owned())))
            .init(),
        LogFormat::Json => registry
            .with(lines.json().with_writer(|| Lines(printable_json)))
            .init(),
    }
    if let Some(reason) = refused {
        warn!("RUST_LOG={asked:?} cannot be parsed ({reason}): the default level is used");
    }
}

/// Returns the filter for `asked` (a level, or comma-separated levels by module), or the default one with the reason
/// why `asked` is refused.
fn filter(asked: &str) -> (Targets, Option<String>) {
    // The watches report a lost connection better than kube's client.
    let usual = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("kube_client", LevelFilter::OFF);
    if asked.is_empty() {
        return (usual, None);
    }
    // The parser would take a span for a module, and log nothing.
    if asked.contains('[') {
        return (usual, Some("spans and fields have no level".into()));
    }
    match asked.parse() {
        Ok(filter) => (filter, None),
        Err(e) => (usual, Some(e.to_string())),
    }
}

/// Standard error, written in whole lines, each of which is made printable.
struct Lines(fn(&str) -> String);

impl Lines {
    /// Returns the line for one event.
    fn line(&self, event: &[u8]) -> String {
        let text = String::from_utf8_lossy(event);
        let mut line = (self.0)(text.strip_suffix('\n').unwrap_or(&text));
        line.push('\n');
        line
    }
}

impl Write for Lines {
    // The subscriber writes each event at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = self.line(event);
        io::stderr().lock().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn an_event_is_one_line_without_control_characters() {
        let text = Lines(|line| printable(line).into_owned());
        for (event, line) in [
            ("INFO made pod=a/b\n", "INFO made pod=a/b\n"),
            ("INFO a\nERROR b\x1b[2J\n", "INFO a\\nERROR b\\u{1b}[2J\n"),
            ("", "\n"),
        ] {
            assert_eq!(text.line(event.as_bytes()), line);
        }
        let json = Lines(printable_json).line("{\"a\":\"\u{9b}\"}\n".as_bytes());
        assert_eq!(json, "{\"a\":\"\\u009b\"}\n");
    }

    #[test]
    fn the_log_is_filtered_by_level_and_module_and_as_usual_where_that_makes_no_sense() {
        for (asked, is_refused, client, timing) in [
            ("", false, None, Some(Level::INFO)),
            ("debug", false, Some(Level::DEBUG), Some(Level::DEBUG)),
            (
                "info,ebbtide_types::timing=debug",
                false,
                Some(Level::INFO),
                Some(Level::DEBUG),
            ),
            ("warn,kube_client=off", false, None, Some(Level::WARN)),
            ("ebbtide=trace", false, None, Some(Level::TRACE)),
            ("off", false, None, None),
            ("nonsense=loud", true, None, Some(Level::INFO)),
            ("[span]=debug", true, None, Some(Level::INFO)),
        ] {
            let (filter, refused) = filter(asked);
            assert_eq!(refused.is_some(), is_refused, "{asked}: {refused:?}");
            for (target, most) in [
                ("kube_client::client", client),
                ("ebbtide_types::timing", timing),
            ] {
                for level in [
                    Level::ERROR,
                    Level::WARN,
                    Level::INFO,
                    Level::DEBUG,
                    Level::TRACE,
                ] {
                    let expected = most.is_some_and(|most| level <= most);
                    assert_eq!(
                        filter.would_enable(target, &level),
                        expected,
                        "{asked}: {target} {level}"
                    );
                }
            }
        }
    }
}
