//! Debian's real systemd-networkd beside Ebbtide, with and without the drop-ins in `deploy/systemd`.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{
    chained::ChainedInterface,
    removal::{NODE, ip_all},
};
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

/// Returns an administrator's file for ens5 with what it has, which matches a pod's pair, too.
fn administrators(node: &Netns) -> Result<String> {
    let mut text = "[Match]\nName=ens5 pod0\n[Network]\nLinkLocalAddressing=no\n".to_owned();
    let addresses = ip(
        node,
        &["-o", "address", "show", "dev", "ens5", "scope", "global"],
    )?;
    for line in addresses.lines() {
        let address = line.split_whitespace().nth(3).context("an address")?;
        text += &format!("Address={address}\n");
    }
    for family in ["-4", "-6"] {
        let route = ip(node, &[family, "route", "show", "default", "dev", "ens5"])?;
        let mut words = route.split_whitespace().skip_while(|word| *word != "via");
        if let Some(gateway) = words.nth(1) {
            text += &format!("Gateway={gateway}\n");
        }
    }
    Ok(text)
}

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

/// Returns the user's number that systemd-networkd runs as.
fn of_networkd() -> Result<Option<u32>> {
    let all = fs::read_to_string("/etc/passwd")?;
    let mut lines = all
        .lines()
        .filter(|line| line.starts_with("systemd-network:"));
    let number = lines.next().and_then(|line| line.split(':').nth(2));
    Ok(number.map(str::parse).transpose()?)
}

/// Starts systemd-networkd on the node.
fn networkd(node: &Netns, directory: &Path) -> Result<Process> {
    for name in ["state", "state/links", "state/leases", "state/lldp"] {
        fs::create_dir_all(directory.join(name))?;
    }
    let user = of_networkd()?;
    for name in ["state", "state/links", "state/leases", "state/lldp"] {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755))?;
        std::os::unix::fs::chown(directory.join(name), user, user)?;
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
fn systemd_networkd_leaves_rules_and_pairs_alone_with_the_drop_ins() -> Result<()> {
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
        fs::write(at("network/80-all.network"), administrators(&node)?)?;
        if with_drop_ins {
            fs::create_dir(at("networkd.conf.d"))?;
            for (from, to) in [
                ("70-ebbtide.network", "network/70-ebbtide.network"),
                ("ebbtide-networkd.conf", "networkd.conf.d/ebbtide.conf"),
            ] {
                fs::copy(Path::new(DROP_INS).join(from), at(to)).context(from)?;
            }
        }
        // As the node's end of a pod's pair, and as ebbtide0.
        let pair = "link add pod0 address 02:eb:b0:00:00:01 type veth peer name pod1";
        ip_all(&node, &[pair])?;
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
            let state = manages("pod0")?;
            ensure!(state == "unmanaged", "a pod's pair is {state}");
            ip_all(&node, &["link del pod0"])?;
        } else {
            let state = manages("pod0")?;
            ensure!(state != "unmanaged", "a pod's pair is {state}");
            ip_all(&node, &["link del pod0"])?;
        }
        // Whatever it removes, the agent puts back.
        lab.agent(NODE).launch()?;
        lab.agent(NODE).wait_ready()?;
        eventually("all rules are there", || {
            let now = ours(&node)?;
            ensure!(now == before, "{now}");
            Ok(())
        })
        .with_context(log)?;
    }
    Ok(())
}
