//! The log. Every event is one line without control characters or colours, whatever names it contains: they are chosen
//! by whoever makes a pod or a network, and read on a terminal.

use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use ebbtide_types::printable::{printable, printable_json};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::{info, warn};
use tracing_subscriber::{
    Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    reload,
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

/// The filter of the running log, and how it is changed.
static RUNNING: OnceLock<Running> = OnceLock::new();

/// The filter of a log that runs.
struct Running {
    /// As RUST_LOG had it.
    usual: String,
    now: Mutex<Now>,
    handle: reload::Handle<Targets, Registry>,
}

/// What is in use.
struct Now {
    filter: String,
    /// When it ends, if it does.
    until: Option<Instant>,
    /// The number of the change: a later one is not ended by an earlier one's time.
    number: u64,
}

/// What is logged, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLevel {
    /// The filter in use; empty: the default one.
    pub filter: String,
    /// For how many seconds, before it is again as it was at the agent's start; `null`: until the agent ends.
    pub seconds: Option<u64>,
}

/// Starts logging to standard error, filtered by RUST_LOG.
pub fn start(format: LogFormat) {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, refused) = filter(&asked);
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let usual = if refused.is_some() {
        String::new()
    } else {
        asked.clone()
    };
    // A process has one log.
    let _only_one = RUNNING.set(Running {
        now: Mutex::new(Now {
            filter: usual.clone(),
            until: None,
            number: 0,
        }),
        usual,
        handle,
    });
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

/// Returns what is logged now.
#[must_use]
pub fn level() -> LogLevel {
    let Some(running) = RUNNING.get() else {
        return LogLevel {
            filter: String::new(),
            seconds: None,
        };
    };
    let now = running.now();
    LogLevel {
        filter: now.filter.clone(),
        seconds: now
            .until
            .map(|until| until.saturating_duration_since(Instant::now()).as_secs()),
    }
}

/// Logs what `level` says from now on, as long as it says. The change itself is logged.
///
/// # Errors
/// If its filter is not one; then nothing changes.
pub fn set_level(level: &LogLevel) -> Result<(), String> {
    let running = RUNNING.get().ok_or("this process has no log")?;
    let time = level.seconds.map(Duration::from_secs);
    let number = running.set(&level.filter, time)?;
    if let Some(time) = time {
        info!(
            "the log has the filter {:?} for {} s",
            level.filter,
            time.as_secs()
        );
        tokio::spawn(async move {
            sleep(time).await;
            running.end(number);
        });
    } else {
        info!("the log has the filter {:?}", level.filter);
    }
    Ok(())
}

impl Running {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a filter for this time, and returns the number of the change.
    fn set(&self, asked: &str, time: Option<Duration>) -> Result<u64, String> {
        let (filter, refused) = filter(asked);
        if let Some(reason) = refused {
            return Err(format!(
                "{asked:?} is no filter ({reason}): write a level, or levels by module, as in info,ebbtide_agent::cni=debug"
            ));
        }
        let mut now = self.now();
        self.handle.reload(filter).map_err(|e| e.to_string())?;
        *now = Now {
            filter: asked.to_owned(),
            until: time.and_then(|time| Instant::now().checked_add(time)),
            number: now.number + 1,
        };
        Ok(now.number)
    }

    /// Sets the filter of the start, unless there was another change after this one.
    fn end(&self, number: u64) {
        let is_last = self.now().number == number;
        if is_last && self.set(&self.usual, None).is_ok() {
            info!("the log has its filter of the start again");
        }
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
    if let Some(word) = asked
        .split(',')
        .map(str::trim)
        .find(|word| is_misspelt(word))
    {
        let reason = format!(
            "{word} is none of off, error, warn, info, debug and trace, and no module with `=` and one of these behind it"
        );
        return (usual, Some(reason));
    }
    match asked.parse() {
        Ok(filter) => (filter, None),
        Err(e) => (usual, Some(e.to_string())),
    }
}

/// Whether this part of a filter is most likely a misspelt level. The parser takes any word for a module, and logs nothing
/// but that module's events then: not even why the agent ends.
fn is_misspelt(word: &str) -> bool {
    let is_module = word.contains(['=', ':']) || word.starts_with("ebbtide");
    !word.is_empty() && !is_module && word.parse::<LevelFilter>().is_err()
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
    fn a_filter_ends_with_its_time_unless_another_one_came_after_it() {
        let (layer, handle) = reload::Layer::new(filter("warn").0);
        let _log = tracing_subscriber::registry().with(layer);
        let running = Running {
            usual: "warn".into(),
            now: Mutex::new(Now {
                filter: "warn".into(),
                until: None,
                number: 0,
            }),
            handle,
        };
        let enabled = |level| {
            let shown = |targets: &Targets| targets.would_enable("ebbtide_agent::cni", &level);
            running.handle.with_current(shown).unwrap()
        };
        let first = running.set("debug", None).unwrap();
        assert!(enabled(Level::DEBUG));
        let second = running.set("info", Some(Duration::from_secs(9))).unwrap();
        running.end(first);
        assert!(enabled(Level::INFO) && !enabled(Level::DEBUG));
        assert!(
            running
                .set("nonsense=loud", None)
                .unwrap_err()
                .contains("nonsense=loud")
        );
        assert!(enabled(Level::INFO), "what is refused changes nothing");
        running.end(second);
        assert!(enabled(Level::WARN) && !enabled(Level::INFO));
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
            ("inof", true, None, Some(Level::INFO)),
            ("warn, debgu", true, None, Some(Level::INFO)),
            ("WARN", false, Some(Level::WARN), Some(Level::WARN)),
            ("ebbtide_types", false, None, Some(Level::TRACE)),
            (
                "warn,ebbtide_types::timing",
                false,
                Some(Level::WARN),
                Some(Level::TRACE),
            ),
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
