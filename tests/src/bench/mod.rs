//! How fast addresses are, and what they cost: Ebbtide's pools and host-local, in one run on one disk.
//! [`programs`]: what each eBPF program costs.

pub mod host_local;
mod load;
pub mod pools;
pub mod programs;
pub mod report;

pub use load::Load;

use serde::Serialize;

/// One row of the table: so many callers at once.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Who was measured.
    pub what: String,
    /// How many asked at once.
    pub callers: usize,
    /// Durable allocations.
    pub allocations: usize,
    /// Of these, in a second.
    pub per_second: f64,
    /// Half of them were answered within so many microseconds.
    pub p50_us: f64,
    /// Ninety-nine of a hundred were.
    pub p99_us: f64,
}

/// What pools cost at rest.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Resident memory that a pool of a million addresses adds, with one of them in use, in bytes.
    pub per_million_addresses: u64,
    /// Resident memory that 10,000 allocations add, in bytes.
    pub per_10000_allocations: u64,
    /// How long it takes to open the store with 10,000 allocations after `kill -9`, the median, in ms.
    pub recovery_ms: f64,
    /// The store's size with them, in bytes.
    pub store_bytes: u64,
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Throughput and latency.
    pub rows: Vec<Row>,
    /// Memory and recovery.
    pub cost: Cost,
    /// Bytes of the record that is kept with each allocation.
    pub record_bytes: usize,
    /// One fdatasync of 4 KiB on this disk, the median, in microseconds.
    pub fsync_us: f64,
    /// Why something was not measured.
    pub notes: Vec<String>,
}
