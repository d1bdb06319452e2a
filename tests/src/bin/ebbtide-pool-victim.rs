//! `ebbtide-pool-victim DIR`: what `native_pool_kill` kills.

use std::path::Path;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).context("which directory?")?;
    ebbtide_tests::victim::run(Path::new(&dir))
}
