//! `deny`: whether a dependency has a known hole, a licence we cannot pass on, a source we do not know, or a twin.
//!
//! The rules are `xtask/deny/deny.toml`. The advisories lie beside them as an archive, so that a test says the same
//! today and tomorrow, and needs no network for it; `--database` takes newer ones in.

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

/// How cargo-deny calls the directory of RustSec's database: its name, and a digest of its address.
const DATABASE: &str = "advisory-db-3157b0e258782691";

/// What is kept of the database: nothing here depends on an advisory about the compiler itself.
const KEPT: [&str; 3] = ["crates", "LICENSES", "LICENSE.txt"];

/// Options of `deny`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// First take in the advisories of this clone of RustSec's database (github.com/rustsec/advisory-db)
    #[arg(long, value_name = "CLONE")]
    database: Option<PathBuf>,
}

/// Looks at all dependencies.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if let Some(clone) = &options.database {
        take_in(ws, clone)?;
        ui::note(format_args!("  advisories as of {}", as_of(ws)));
    }
    check(ws, Output::Show)
}

/// The date of the advisories.
pub(crate) fn as_of(ws: &Workspace) -> String {
    let text = fs::read_to_string(version(ws)).unwrap_or_default();
    let date = text.split_whitespace().nth(1);
    date.unwrap_or("an unknown date").to_owned()
}

/// As [`run`], with the advisories that are there.
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

/// Commit and date of what the archive has.
fn version(ws: &Workspace) -> PathBuf {
    directory(ws).join("advisory-db.version")
}

fn archive(ws: &Workspace) -> PathBuf {
    directory(ws).join("advisory-db.tar.gz")
}

/// Unpacks the advisories, and returns the directory that cargo-deny wants to know.
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
    // By its time cargo-deny tells whether anybody still renews the database. That it is ours to renew is said by
    // whoever calls, and is no reason for a test to fail on a day of its own choice.
    let fetched = git.join("FETCH_HEAD");
    fs::write(&fetched, "").with_context(|| format!("write {}", fetched.display()))?;
    Ok(all)
}

/// Packs what is kept of a clone.
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
    // Without a time in it: the same advisories are the same file.
    let mut gz = GzBuilder::new().read(&packed[..], Compression::best());
    std::io::copy(&mut gz, &mut all).context("compress the advisories")?;
    fs::write(&path, all).with_context(|| format!("write {}", path.display()))?;
    let path = self::version(ws);
    fs::write(&path, version).with_context(|| format!("write {}", path.display()))
}
