//! An agent that finds what a newer release wrote does not start, says what to do, and changes nothing: not on disk, not in
//! the kernel. Pods keep their network meanwhile.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{removal::Stage, steady::SteadyClients};
use ebbtide_vpc::{footprint::Footprint, lab::Lab, netns::Netns, plan::Plan};

/// What a release after this one may have written: the next version, and fields that this one does not know.
const NEWER: &str = r#"{"version": 2, "boot": 7, "settings": [], "new": {"a": null}}"#;

/// The files with a version, in the state directory.
const FILES: [&str; 7] = [
    "pool.journal",
    "settings-before.json",
    "settings-before-forwarding.json",
    "settings-before-qdiscs.json",
    "cloud.json",
    "cloud-asked.json",
    "chained/c@eth0@0.json",
];

/// Returns the newer content of a file.
fn newer(file: &str) -> Vec<u8> {
    match file {
        "pool.journal" => {
            // Every version of it begins with a line that has the version, and closes a batch by its checksum.
            let batch = "% {\"schema\":4,\"store\":7,\"new\":true}\n! what nobody knows\n= 1 ";
            format!("{batch}{:08x}\n", crc32(batch.as_bytes())).into_bytes()
        }
        _ => NEWER.as_bytes().to_vec(),
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// Returns what is pinned below a directory.
fn pins(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(pins(&path)?);
        }
        found.insert(path);
    }
    Ok(found)
}

#[test]
fn what_a_newer_release_wrote_is_refused_with_the_way_back_and_pods_do_not_notice() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", |_: &Lab, _: &Netns| Ok(()))?;
    stage.start()?;
    let pod = stage.pod("ens6", "asked")?;
    let clients = SteadyClients::of(&stage.lab, &pod)?;
    stage.agent().kill()?;
    let state = stage.agent().state();
    let bpf = stage.agent().bpf().to_owned();
    // Not the maps' contents: pods go on.
    let mut directories = stage.agent().directories();
    directories.retain(|directory| *directory != bpf);
    let pinned = pins(&bpf)?;
    Footprint::settled(&stage.node, &directories)?;
    for file in FILES {
        let path = state.join(file);
        let before = fs::read(&path).ok();
        fs::write(&path, newer(file)).with_context(|| file.to_owned())?;
        let found = Footprint::of(&stage.node, &directories)?;
        stage.agent().launch()?;
        let refused = stage.agent().wait_listening();
        let refused = refused
            .err()
            .with_context(|| format!("{file}: it starts"))?;
        let refused = format!("{refused:#}");
        let path = path.display().to_string();
        for part in [&path, "this agent knows", "Install that release again"] {
            ensure!(refused.contains(part), "{file}: no {part:?} in {refused}");
        }
        let uninstalled = stage.agent().uninstall_with(&["--purge"])?;
        ensure!(
            uninstalled.code == Some(1) && uninstalled.log.contains(&path),
            "{file}: {uninstalled:#?}"
        );
        found
            .comes_back(&stage.node, &directories)
            .with_context(|| file.to_owned())?;
        ensure!(pins(&bpf)? == pinned, "{file}: {pinned:?} were pinned");
        match before {
            Some(before) => fs::write(&path, before)?,
            None => fs::remove_file(&path)?,
        }
    }
    // The release that wrote what is there now goes on with it.
    stage.start()?;
    pod.call("CHECK")?;
    clients.all_were_answered()?;
    stage.lab.vpc.assert_no_violations()?;
    pod.delete()
}
