//! How fast it is, beside what people use today and beside what the kernel alone takes.
//!
//! - [`pools`], [`host_local`], [`report`]: addresses and what they cost, in one run on one disk;
//! - [`add`]: a pod's ADD and DEL, by whoever is a [`contender`], down to the [`floor`];
//! - [`agent`]: the agent's memory, its time until it is ready, its CPU at rest;
//! - [`datapath`]: what a packet pays for its reply's way, beside iptables;
//! - [`programs`]: what each eBPF program costs;
//! - [`figures`], [`timeline`], [`machine`]: what was measured, as tables, pictures and JSON;
//! - [`testbed`]: the node it is measured on.

pub mod add;
pub mod agent;
pub mod contender;
pub mod datapath;
pub mod figures;
pub mod floor;
pub mod host_local;
mod load;
pub mod machine;
pub mod pools;
pub mod programs;
pub mod report;
mod svg;
pub mod testbed;
pub mod timeline;

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
