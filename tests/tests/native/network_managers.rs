//! Debian's real systemd-networkd beside Ebbtide, with and without the drop-ins in `deploy/systemd`.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{chained::ChainedInterface, removal::NODE};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::Plan,
    process::Process,
    skip::{Need, skip},
    snapshot::ip,
};
use tempfile::TempDir;

const NETWORKD: &str = "/lib/systemd/systemd-networkd";
const DROP_INS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd");

/// An administrator's file that matches every link.
const EVERY_LINK: &str =
    "[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\nKeepConfiguration=yes\n";

/// Runs systemd-networkd in a mount namespace of its own with the files below `$1`. It takes /sys that is read-only for a
/// container's, where no udev tells which links are ready.
const ENTER: &str = r#"set -e
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir -p /run/systemd/netif
mount --bind "$1/state" /run/systemd/netif
mkdir -p /etc/systemd/network /etc/systemd/networkd.conf.d
mount --bind "$1/network" /etc/systemd/network
if [ -d "$1/networkd.conf.d" ]; then mount --bind "$1/networkd.conf.d" /etc/systemd/networkd.conf.d; fi
mount -t sysfs -o ro sysfs /sys
exec env SYSTEMD_LOG_LEVEL=info SYSTEMD_LOG_TARGET=console "$2"
"#;

/// Starts systemd-networkd on the node.
fn networkd(node: &Netns, directory: &Path) -> Result<Process> {
    for name in ["state", "state/links", "state/leases", "state/lldp"] {
        fs::create_dir_all(directory.join(name))?;
    }
    for name in ["state", "state/links", "state/leases", "state/lldp"] {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o777))?;
    }
    let mut command = node.command("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        ENTER,
        "sh",
    ]);
    command.arg(directory).arg(NETWORKD);
    Ok(Process::start(command, &directory.join("log"))?)
}

fn ours(node: &Netns) -> Result<usize> {
    let mut all = 0;
    for family in ["-4", "-6"] {
        let rules = ip(node, &[family, "rule", "show"])?;
        all += rules
            .lines()
            .filter(|rule| rule.contains("proto 235"))
            .count();
    }
    Ok(all)
}

/// Returns how systemd-networkd treats a link, as its state file has it.
fn treats(node: &Netns, directory: &Path, link: &str) -> Result<String> {
    let index = node.netlink()?.index(link)?;
    let path = directory.join(format!("state/links/{index}"));
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let mut states = text
        .lines()
        .filter_map(|line| line.strip_prefix("ADMIN_STATE="));
    Ok(states.next().context(text.clone())?.to_owned())
}

#[test]
fn systemd_networkd_takes_rules_and_links_away_and_with_the_drop_ins_it_does_not() -> Result<()> {
    if !Path::new(NETWORKD).exists() {
        skip(Need::Host, "systemd-networkd is not installed");
        return Ok(());
    }
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let _chained = ChainedInterface::on(&mut lab, NODE)?;
    let before = ours(&node)?;
    ensure!(before > 0, "no rule of Ebbtide's");
    for with_drop_ins in [true, false] {
        lab.agent(NODE).stop()?;
        let directory = TempDir::with_prefix("ebbtide-networkd-")?;
        let at = |name: &str| directory.path().join(name);
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        }
        fs::create_dir(at("network"))?;
        fs::write(at("network/80-all.network"), EVERY_LINK)?;
        if with_drop_ins {
            fs::create_dir(at("networkd.conf.d"))?;
            for (from, to) in [
                ("70-ebbtide.network", "network/70-ebbtide.network"),
                ("ebbtide-networkd.conf", "networkd.conf.d/ebbtide.conf"),
            ] {
                fs::copy(Path::new(DROP_INS).join(from), at(to)).context(from)?;
            }
        }
        let _networkd = networkd(&node, directory.path())?;
        let log = || fs::read_to_string(at("log")).unwrap_or_default();
        let manages = |link: &str| treats(&node, directory.path(), link);
        eventually("it manages the NICs", || {
            let state = manages("ens5")?;
            ensure!(state == "configured", "{state}");
            Ok(())
        })
        .with_context(log)?;
        if with_drop_ins {
            thread::sleep(Duration::from_secs(1));
            ensure!(
                ours(&node)? == before,
                "{} of {before} rules: {}",
                ours(&node)?,
                log()
            );
            let state = manages("ebbtide0")?;
            ensure!(state == "unmanaged", "ebbtide0 is {state}");
        } else {
            eventually("it removes our rules", || {
                let left = ours(&node)?;
                ensure!(left < before, "{left}");
                Ok(())
            })
            .with_context(log)?;
            // The agent puts them back.
            lab.agent(NODE).launch()?;
            lab.agent(NODE).wait_ready()?;
            eventually("they are back", || {
                let now = ours(&node)?;
                ensure!(now == before, "{now}");
                Ok(())
            })
            .with_context(log)?;
            break;
        }
        lab.agent(NODE).launch()?;
        lab.agent(NODE).wait_ready()?;
    }
    Ok(())
}
