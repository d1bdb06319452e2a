//! A real Prometheus that asks agents and controllers every second.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    netns::Netns,
    process::Process,
    scrape::{get, get_here},
    skip::{Need, skip},
    workspace::PROMETHEUS,
};
use serde_json::Value;
use tempfile::TempDir;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// Returns a program of Prometheus'; `None`, after a skip, without it.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let found = PROMETHEUS.file(name);
    if let Err(e) = &found {
        skip(Need::Prometheus, format!("{e:#}"));
    }
    found.ok()
}

/// Tries again until it succeeds, for as long as an alert may take on a busy machine.
///
/// # Errors
/// The last error, if no attempt succeeded in time.
pub fn in_the_end<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(_) if start.elapsed() < limit => thread::sleep(PAUSE),
            ended => return ended.with_context(|| format!("not within {limit:?}")),
        }
    }
}

/// A Prometheus with rules. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    directory: TempDir,
    /// Where it is; `None`: where the test is.
    netns: Option<Netns>,
    address: String,
}

/// An alert as Prometheus has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// Whether it fires, and is not only about to.
    pub is_firing: bool,
    /// Its labels.
    pub labels: String,
    /// What it says.
    pub summary: String,
}

impl Prometheus {
    /// Starts one at this address of a namespace. `targets` are jobs, each with an address.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(
        program: &PathBuf,
        netns: Option<&Netns>,
        address: &str,
        targets: &[(&str, &str)],
        rules: &str,
    ) -> Result<Self> {
        let directory = TempDir::with_prefix("ebbtide-prometheus-")?;
        let path = |name: &str| directory.path().join(name);
        fs::write(path("alerts.yaml"), rules)?;
        let jobs = targets.iter().map(|(job, target)| {
            format!("- {{job_name: {job}, static_configs: [{{targets: ['{target}']}}]}}\n")
        });
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [alerts.yaml]\n\
             scrape_configs:\n{}",
            jobs.collect::<String>()
        );
        fs::write(path("prometheus.yml"), config)?;
        let mut command = match netns {
            Some(netns) => netns.command(program),
            None => std::process::Command::new(program),
        };
        command
            .arg(format!(
                "--config.file={}",
                path("prometheus.yml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let process = Process::start(command, &path("log"))?;
        Ok(Self {
            process,
            directory,
            netns: netns.cloned(),
            address: address.to_owned(),
        })
    }

    /// Returns what it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Returns what its API says of this path.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub fn ask(&self, path: &str) -> Result<Value> {
        let (status, body) = match &self.netns {
            Some(netns) => get(netns, &self.address, path)?,
            None => get_here(&self.address, path)?,
        };
        ensure!(status == 200, "{path}: {status} {body}");
        // There may be the lengths of chunks around it.
        let start = body.find('{').context("no JSON")?;
        let end = body.rfind('}').context("no JSON")?;
        let body = body.get(start..=end).context("no JSON")?;
        let mut said: Value = serde_json::from_str(body)?;
        Ok(said["data"].take())
    }

    /// Returns what a query gives now.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn query(&self, query: &str) -> Result<Value> {
        self.ask(&format!("/api/v1/query?query={}", encoded(query)))
    }

    /// Waits until all targets are scraped.
    ///
    /// # Errors
    /// If they are not in time; the error has the log.
    pub fn wait(&self) -> Result<()> {
        let scraped = || {
            let said = self.ask("/api/v1/targets")?;
            let targets = said["activeTargets"].as_array().context("no targets")?;
            let is_up = |target: &Value| target["health"] == "up";
            ensure!(!targets.is_empty() && targets.iter().all(is_up), "{said}");
            Ok(())
        };
        in_the_end(Duration::from_secs(60), scraped).with_context(|| self.log())
    }

    /// Returns the alerts that fire or are about to.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn alerts(&self) -> Result<Vec<Alert>> {
        let said = self.ask("/api/v1/alerts")?;
        let alerts = said["alerts"].as_array().context("no alerts")?;
        let alert = |alert: &Value| Alert {
            name: text(&alert["labels"]["alertname"]),
            is_firing: alert["state"] == "firing",
            labels: alert["labels"].to_string(),
            summary: text(&alert["annotations"]["summary"]),
        };
        Ok(alerts.iter().map(alert).collect())
    }

    /// Returns the names of alerts that fire.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn firing(&self) -> Result<Vec<String>> {
        let firing = self.alerts()?.into_iter().filter(|alert| alert.is_firing);
        Ok(firing.map(|alert| alert.name).collect())
    }

    /// Returns the alerts that fired in the last half an hour, by their labels, and how often each began to.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn began(&self) -> Result<Vec<(Value, usize)>> {
        // The value is when it became active. So an evaluation that a busy machine missed is no end.
        let since = "ALERTS_FOR_STATE * ignoring (alertstate) ALERTS{alertstate=\"firing\"}";
        let said = self.query(&format!("({since})[30m:1s]"))?;
        let series = said["result"].as_array().context("no series")?;
        let counted = |series: &Value| {
            let samples = series["values"].as_array().into_iter().flatten();
            let since: BTreeSet<String> = samples.map(|sample| sample[1].to_string()).collect();
            (series["metric"].clone(), since.len())
        };
        Ok(series.iter().map(counted).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Its data goes away with it.
        let _ = self.process.kill();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Returns the text as a part of an address.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}
