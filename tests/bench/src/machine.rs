//! The machine of a measurement.

use std::{fmt, fs};

use serde::Serialize;

/// What results depend on, as far as a program can tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// The CPU's name.
    pub cpu: String,
    /// The number of CPUs.
    pub cpus: usize,
    /// Whether it is user-mode Linux: a process of another kernel, whose system calls are slow.
    pub user_mode: bool,
    /// The load before the measurement: processes that wanted to run in the last minute (proc(5), loadavg).
    pub load: f64,
}

impl Machine {
    /// Returns this machine's data.
    #[must_use]
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let values = |key: &'static str| {
            cpuinfo.lines().filter_map(move |line| {
                let (name, value) = line.split_once(':')?;
                (name.trim() == key).then(|| value.trim().to_owned())
            })
        };
        let load = read("/proc/loadavg");
        let load = load.split_whitespace().next().unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: values("model name").next().unwrap_or_default(),
            cpus: values("processor").count(),
            user_mode: values("vendor_id").any(|vendor| vendor == "User Mode Linux"),
            load: load.parse().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            cpu,
            cpus,
            user_mode,
            load,
        } = self;
        let kind = if *user_mode { " (user-mode Linux)" } else { "" };
        write!(
            f,
            "Linux {kernel}{kind}, {cpus} × {cpu}, load before the run {load:.1}"
        )
    }
}
