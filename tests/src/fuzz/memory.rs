//! Memory usage of this process or another one (proc(5)).

use std::fs;

use anyhow::{Context as _, Result};

/// Returns the resident memory of this process, in bytes.
pub(super) fn resident() -> Result<u64> {
    field("self", "VmRSS:")
}

/// Returns the resident memory of a process, in bytes.
pub(super) fn resident_of(process: u32) -> Result<u64> {
    field(&process.to_string(), "VmRSS:")
}

/// A measurement of the peak memory of some work.
#[derive(Debug)]
pub(super) struct Peak {
    before: u64,
}

impl Peak {
    pub(super) fn begin() -> Result<Self> {
        // 5 resets the peak (proc(5), clear_refs).
        fs::write("/proc/self/clear_refs", "5").context("write /proc/self/clear_refs")?;
        Ok(Self {
            before: resident()?,
        })
    }

    /// Returns the peak in bytes, above the usage at the beginning.
    pub(super) fn end(self) -> Result<u64> {
        Ok(field("self", "VmHWM:")?.saturating_sub(self.before))
    }
}

fn field(process: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
    let value = values
        .next()
        .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    Ok(value.with_context(|| format!("{path} has no {name}"))? << 10)
}
