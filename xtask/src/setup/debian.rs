//! Debian's archive: programs are installed when we are root, everything else is only downloaded
//! and unpacked below the target directory, which needs no root.
//!
//! The archive's address always comes from apt's own configuration. apt verifies what it downloads.

mod download;
mod lists;
mod programs;
mod retry;
mod system;

pub(crate) use download::{Show, ask, download, download_from, unpack, verify};
pub(crate) use programs::{
    BUILD, DEMO, GUEST, IP, NODE, PEERS, Program, QEMU, TESTS, ZSTD, missing, packages, programs,
};
pub(crate) use system::System;
