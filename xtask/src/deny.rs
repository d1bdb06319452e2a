//! `deny`: checks dependencies for known vulnerabilities, licences, sources and duplicates.
//!
//! The rules are `xtask/deny/deny.toml`. The advisories are an archive beside them, so that a check has the same result
//! on every day and needs no network. `--database` updates the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, GzBuilder, read::GzDecoder};

use crate::exec::{self, Output};
use crate::setup::installed::Program;
use crate::ui;
use crate::workspace::Workspace;

const DENY: Program = Program {
    name: "cargo-deny",
    version: "0.20.2",
};

/// The name of cargo-deny's directory for RustSec's database; it contains a digest of the database's address.
const DATABASE: &str = "advisory-db-3157b0e258782691";

/// The parts of the database that are kept: no crate here depends on an advisory about the compiler itself.
const KEPT: [&str; 3] = ["crates", "LICENSES", "LICENSE.txt"];

/// Options of `deny`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// First take in the advisories of this clone of RustSec's database (github.com/rustsec/advisory-db)
    #[arg(long, value_name = "CLONE")]
    database: Option<PathBuf>,
}

/// Checks all dependencies.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if let Some(clone) = &options.database {
        take_in(ws, clone)?;
        ui::note(format_args!("  advisories as of {}", as_of(ws)));
    }
    check(ws, Output::Show)
}

/// Returns the date of the advisories.
pub(crate) fn as_of(ws: &Workspace) -> String {
    let text = fs::read_to_string(version(ws)).unwrap_or_default();
    let date = text.split_whitespace().nth(1);
    date.unwrap_or("an unknown date").to_owned()
}

/// As [`run`], with the archived advisories.
pub(crate) fn check(ws: &Workspace, output: Output) -> Result<()> {
    let deny = DENY.ensure(ws)?;
    let advisories = unpack(ws)?;
    let metadata = advisories.join("metadata.json");
    let mut described = ws.cargo("metadata");
    described.args(["--locked", "--format-version", "1"]);
    fs::write(&metadata, exec::bytes(&mut described)?)
        .with_context(|| format!("write {}", metadata.display()))?;
    let mut command = Command::new(deny);
    command
        .current_dir(&ws.root)
        .env("ADVISORIES", &advisories)
        .args(["--offline", "--locked", "--metadata-path"])
        .arg(&metadata)
        .arg("--config")
        .arg(directory(ws).join("deny.toml"))
        .args(["check", "--hide-inclusion-graph"]);
    exec::run(&mut command, output)
}

fn directory(ws: &Workspace) -> PathBuf {
    ws.root.join("xtask/deny")
}

/// Returns the path of the file with the archive's commit and date.
fn version(ws: &Workspace) -> PathBuf {
    directory(ws).join("advisory-db.version")
}

fn archive(ws: &Workspace) -> PathBuf {
    directory(ws).join("advisory-db.tar.gz")
}

/// Unpacks the advisories, and returns the directory for cargo-deny.
fn unpack(ws: &Workspace) -> Result<PathBuf> {
    let (all, archive) = (ws.target.join("advisories"), archive(ws));
    let place = all.join(DATABASE);
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    }
    let git = place.join(".git");
    fs::create_dir_all(&git).with_context(|| format!("make {}", git.display()))?;
    let packed = fs::File::open(&archive).with_context(|| format!("open {}", archive.display()))?;
    tar::Archive::new(GzDecoder::new(packed))
        .unpack(&place)
        .with_context(|| format!("unpack {}", archive.display()))?;
    // By this file's time cargo-deny decides whether the database is outdated. The caller reports the archive's age,
    // and an old archive must not make a test fail.
    let fetched = git.join("FETCH_HEAD");
    fs::write(&fetched, "").with_context(|| format!("write {}", fetched.display()))?;
    Ok(all)
}

/// Packs those parts of a clone that are kept.
fn take_in(ws: &Workspace, clone: &Path) -> Result<()> {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-C").arg(clone).args(arguments);
        exec::bytes(&mut git)
    };
    let packed = git(&[&["archive", "--format=tar", "HEAD"], &KEPT[..]].concat())?;
    if packed.is_empty() {
        bail!("{} has nothing in {KEPT:?}", clone.display());
    }
    let version = git(&["log", "-1", "--format=%H %cs"])?;
    let (path, mut all) = (archive(ws), Vec::new());
    // Without a time, the same advisories make the same file.
    let mut gz = GzBuilder::new().read(&packed[..], Compression::best());
    std::io::copy(&mut gz, &mut all).context("compress the advisories")?;
    fs::write(&path, all).with_context(|| format!("write {}", path.display()))?;
    let path = self::version(ws);
    fs::write(&path, version).with_context(|| format!("write {}", path.display()))
}
