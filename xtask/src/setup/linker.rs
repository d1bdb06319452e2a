//! bpf-linker, at exactly one version.

use std::path::PathBuf;

use anyhow::Result;

use super::installed::Program;
use crate::workspace::Workspace;

const LINKER: Program = Program {
    name: "bpf-linker",
    // Older versions emit BTF that the kernel refuses (a union called `MaybeUninit<u32>`); newer ones need another LLVM
    // than the pinned compiler's. LLVM, where most of the time is spent, is the compiler's.
    version: "0.10.4",
};

/// Returns the linker's path, after building it if it is missing.
pub(crate) fn ensure(ws: &Workspace) -> Result<PathBuf> {
    LINKER.ensure(ws)
}
