//! bpf-linker, at exactly one version.

use std::path::PathBuf;

use anyhow::Result;

use super::installed::Program;
use crate::workspace::Workspace;

const LINKER: Program = Program {
    name: "bpf-linker",
    // Older ones emit BTF that the kernel refuses (a union called `MaybeUninit<u32>`); newer ones
    // want another LLVM than the pinned compiler's. What works long in it is the compiler's LLVM.
    version: "0.10.4",
};

/// The linker's path; it is built first if it is missing.
pub(crate) fn ensure(ws: &Workspace) -> Result<PathBuf> {
    LINKER.ensure(ws)
}
