//! What is pinned under the names of the agent's maps is damaged while no agent runs: the next one starts, says so, and pods
//! do not notice.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{removal::Stage, steady::SteadyClients};
use ebbtide_vpc::{lab::Lab, netns::Netns, plan::Plan};

const TAKEN_AWAY: &str = "it is taken away, and the map is made anew";

/// A way to damage pins; `pins` are the maps' files.
struct Damage {
    what: &'static str,
    by: fn(pins: &[PathBuf]) -> Result<()>,
    /// What the log calls each.
    called: &'static str,
}

const ALL: [Damage; 3] = [
    Damage {
        what: "each is another one's map",
        by: |pins| {
            let aside = |pin: &Path| pin.with_file_name(aside_name(pin));
            for pin in pins {
                fs::rename(pin, aside(pin))?;
            }
            for (pin, other) in pins.iter().zip(pins.iter().cycle().skip(1)) {
                fs::hard_link(aside(other), pin)?;
            }
            pins.iter()
                .try_for_each(|pin| fs::remove_file(aside(pin)))
                .map_err(Into::into)
        },
        called: "another object",
    },
    Damage {
        what: "each is a directory",
        by: |pins| {
            pins.iter().try_for_each(|pin| -> Result<()> {
                fs::remove_file(pin)?;
                Ok(fs::create_dir(pin)?)
            })
        },
        called: "was a directory",
    },
    Damage {
        what: "each is a dead link",
        by: |pins| {
            pins.iter().try_for_each(|pin| -> Result<()> {
                fs::remove_file(pin)?;
                Ok(symlink("nowhere", pin)?)
            })
        },
        called: "was a symbolic link",
    },
];

fn aside_name(pin: &Path) -> String {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}-aside")
}

/// Returns the pins of the maps, in a fixed order.
fn pins(bpf: &Path) -> Result<Vec<PathBuf>> {
    let mut layouts = fs::read_dir(bpf)?.filter_map(|entry| Some(entry.ok()?.path()));
    let layout = layouts.find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with('v')
    });
    let layout = layout.context("nothing is pinned")?;
    let mut pins: Vec<PathBuf> = fs::read_dir(&layout)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    pins.sort();
    Ok(pins)
}

#[test]
fn an_agent_starts_with_damaged_pins_says_so_and_pods_do_not_notice() -> Result<()> {
    let mut stage = Stage::build(Plan::default(), "", |_: &Lab, _: &Netns| Ok(()))?;
    stage.start()?;
    let pod = stage.pod("ens6", "asked")?;
    let clients = SteadyClients::of(&stage.lab, &pod)?;
    let bpf = stage.agent().bpf().to_owned();
    let whole = pins(&bpf)?;
    // Without damage nothing is taken away.
    stage.agent().kill()?;
    stage.start()?;
    let log = stage.agent().log();
    ensure!(!log.contains(TAKEN_AWAY), "{log}");
    for damage in ALL {
        let before = stage.agent().log().len();
        stage.agent().kill()?;
        (damage.by)(&whole).with_context(|| damage.what)?;
        stage.start().with_context(|| damage.what)?;
        let log = stage.agent().log();
        let log = log.get(before..).unwrap_or(&log);
        for pin in &whole {
            let pin = pin.display().to_string();
            ensure!(
                log.lines().any(|line| {
                    line.contains(&pin) && line.contains(damage.called) && line.contains(TAKEN_AWAY)
                }),
                "{}: {pin} is not in {log}",
                damage.what
            );
        }
        ensure!(pins(&bpf)? == whole, "{}: {whole:?}", damage.what);
        pod.call("CHECK").with_context(|| damage.what)?;
        let another = stage.pod("ens5", "another").context(damage.what)?;
        another.call("CHECK").with_context(|| damage.what)?;
        another.delete()?;
    }
    clients.all_were_answered()?;
    stage.lab.vpc.assert_no_violations()?;
    pod.delete()
}
