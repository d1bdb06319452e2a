//! What systemd-networkd takes away when it reads its files again and configures NICs again, with the drop-ins in
//! `deploy/systemd` and without.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    image::Image, netns::Netns, patience::eventually, process::Process, snapshot::ip,
};
use tempfile::TempDir;

use super::{Beside, in_the_end, networkd};

/// Configures the NICs again for each number that `$SHARED/go` gets.
const SCRIPT: &str = r##"
last=0
while [ ! -e "$SHARED/stop" ]; do
    now=$(cat "$SHARED/go" 2>/dev/null || echo 0)
    if [ "$now" != "$last" ]; then
        for nic in ens5 ens6; do echo "# $now" >> /etc/systemd/network/75-$nic.network; done
        networkctl reload
        for nic in ens5 ens6; do
            networkctl reconfigure $nic
            /lib/systemd/systemd-networkd-wait-online -i $nic --timeout 20
        done
        echo "$now" > "$SHARED/went"
        last=$now
    fi
    sleep 0.1
done
"##;

const DROP_INS: &str = concat!(
    "mkdir -p /run/systemd/networkd.conf.d\n",
    "cat > /run/systemd/networkd.conf.d/ebbtide.conf <<'EOF'\n",
    include_str!("../../../../deploy/systemd/ebbtide-networkd.conf"),
    "EOF\ncat > /etc/systemd/network/70-ebbtide.network <<'EOF'\n",
    include_str!("../../../../deploy/systemd/70-ebbtide.network"),
    "EOF\n",
);

/// All that is Ebbtide's among the node's rules and routes.
fn ours(node: &Netns) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        for what in [&["rule"][..], &["route", "show", "table", "all"]] {
            let shown = ip(node, &[&[family], what].concat())?;
            let ours = shown.lines().filter(|line| line.contains("proto 235"));
            all.extend(ours.map(|line| format!("{family} {}", line.trim())));
        }
    }
    all.sort();
    Ok(all)
}

/// Follows what is removed of the node's rules and routes.
struct Removals {
    _monitor: Process,
    directory: TempDir,
}

impl Removals {
    fn watch(node: &Netns) -> Result<Self> {
        let directory = TempDir::with_prefix("ebbtide-removals-")?;
        let mut command = node.command("ip");
        command.args(["monitor", "rule", "route"]);
        let monitor = Process::start(command, &directory.path().join("log"))?;
        Ok(Self {
            _monitor: monitor,
            directory,
        })
    }

    /// Returns what was removed of what stays as long as there are pods. Rules by marks and for the node's own addresses,
    /// and the way by the redirect device, the agent itself removes, while a NIC has lost its addresses.
    fn ours(&self) -> Result<Vec<String>> {
        let of_addresses = ["fwmark", "goto", "ebbtide0"];
        let stays = |line: &&str| !of_addresses.iter().any(|word| line.contains(word));
        let text = fs::read_to_string(self.directory.path().join("log"))?;
        let removed = text
            .lines()
            .filter(|line| line.starts_with("Deleted") && line.contains("proto 235"));
        Ok(removed.filter(stays).map(str::to_owned).collect())
    }
}

fn again(image: &Image, number: u32) -> Result<()> {
    fs::write(image.shared("go"), number.to_string())?;
    in_the_end("networkd has configured the NICs again", || {
        image.runs()?;
        let went = fs::read_to_string(image.shared("went")).unwrap_or_default();
        ensure!(went.trim() == number.to_string(), "{}", image.log());
        Ok(())
    })
}

/// Returns what networkd has removed of Ebbtide's in a few reloads; all of it is back in a few seconds.
fn removed(drop_ins: &str) -> Result<Option<Vec<String>>> {
    let Some((site, image)) = networkd::alone(drop_ins, SCRIPT)? else {
        return Ok(None);
    };
    let beside = Beside::start(site)?;
    let log = || beside.log(&image);
    let pod = beside.site.pod("ens6", "pod")?;
    beside.lives(&pod).with_context(log)?;
    let before = ours(beside.node())?;
    ensure!(!before.is_empty(), "nothing of Ebbtide's");
    let removals = Removals::watch(beside.node())?;
    for number in 1..=3 {
        again(&image, number)?;
        let begun = Instant::now();
        eventually("all is there", || {
            let now = ours(beside.node())?;
            ensure!(now == before, "{now:#?}, {before:#?} before");
            Ok(())
        })
        .with_context(log)?;
        let took = begun.elapsed();
        ensure!(took < Duration::from_secs(8), "{took:?}");
        eventually("the pod lives", || beside.lives(&pod)).with_context(log)?;
    }
    thread::sleep(Duration::from_secs(1));
    let removed = removals.ours()?;
    fs::write(image.shared("stop"), "")?;
    pod.delete()?;
    beside.ends()?;
    Ok(Some(removed))
}

#[test]
fn with_the_drop_ins_networkd_removes_nothing_of_ebbtides() -> Result<()> {
    let removed = removed(DROP_INS)?;
    ensure!(removed.iter().all(Vec::is_empty), "{removed:#?}");
    Ok(())
}

#[test]
fn without_them_what_it_removes_is_back_in_a_few_seconds() -> Result<()> {
    if let Some(removed) = removed("")? {
        ensure!(!removed.is_empty(), "this networkd needs no drop-in");
    }
    Ok(())
}
