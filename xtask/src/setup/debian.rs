//! Debian's archive. Programs are installed if the user is root; everything else is downloaded and unpacked below the
//! target directory, which needs no root.
//!
//! The archive's address is that of apt's configuration. apt verifies what it downloads.

mod download;
mod lists;
mod programs;
mod retry;
mod system;

pub(crate) use download::{Show, ask, download, download_from, unpack, verify};
pub(crate) use programs::{
    BUILD, DEMO, GUEST, IP, NODE, PEERS, Program, QEMU, QEMU_ARM64, TESTS, ZSTD, missing, packages,
    programs,
};
pub(crate) use system::System;
