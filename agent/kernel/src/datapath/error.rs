//! Errors of loading programs and of using maps.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// An error while loading a program or using a map.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bpf directory is not on a bpf file system.
    #[error(
        "{} is not on a bpf file system: mount one (`mount -t bpf bpf /sys/fs/bpf`) or name another directory with --bpf-dir", .0.display()
    )]
    NoBpffs(PathBuf),
    /// A file or directory could not be used.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error(
        "load the eBPF object (root with CAP_BPF and CAP_NET_ADMIN, kernel 5.10 or newer?): {0}"
    )]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("load the eBPF program {name}: {source}")]
    Program {
        /// Its name in the object.
        name: &'static str,
        /// The error of the verifier or the kernel.
        source: Box<ProgramError>,
    },
    /// The object lacks a program or map: it was built from other sources than the agent.
    #[error("the eBPF object has no {0}: rebuild with `cargo xtask build`")]
    Lacks(&'static str),
    /// A map operation failed.
    #[error("{what}: {}", error_chain(source))]
    Map {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: MapError,
    },
}

impl Error {
    /// Makes an error of the operation `what` on `path`.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

pub(super) fn refused(name: &'static str, source: ProgramError) -> Error {
    Error::Program {
        name,
        source: Box::new(source),
    }
}

pub(super) fn map_error(what: impl Into<String>, source: MapError) -> Error {
    Error::Map {
        what: what.into(),
        source,
    }
}

/// Formats an error with its causes: aya's own text names the call, not the errno.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

pub(super) fn is_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

/// Whether a map has as many entries as it can have (`htab_map_update_elem`, kernel/bpf/hashtab.c).
pub(super) fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::E2BIG)
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
