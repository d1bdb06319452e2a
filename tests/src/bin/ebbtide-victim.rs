//! `ebbtide-victim`: takes and releases addresses until the test `native::pool_kill` kills it.

use std::path::Path;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1);
    let dir = dir.context("usage: ebbtide-victim DIRECTORY, where the pools are or will be")?;
    ebbtide_tests::victim::run(Path::new(&dir))
}
