//! An agent in a container, and programs of the host's: they are found and run as the host has them.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    foreign,
    lab::Lab,
    netns::Netns,
    plan::Plan,
    snapshot::Snapshot,
};
use serde_json::json;
use tempfile::TempDir;

const NODE: &str = "master";
/// Where this host has its plugins: nowhere in the agent's container.
const PLUGINS: &str = "/opt/host-cni/bin";
/// Where host-local keeps what it gave out, unless it is told otherwise.
const STATE: &str = "var/lib/cni/networks";

/// A host's root directory with the plugin host-local of Debian's, and one that needs an interpreter and files of the
/// host's.
fn host() -> Result<TempDir> {
    let root = TempDir::with_prefix("ebbtide-host-")?;
    let plugins = root.path().join(PLUGINS.trim_start_matches('/'));
    fs::create_dir_all(&plugins)?;
    fs::create_dir_all(root.path().join("etc/probe"))?;
    fs::write(root.path().join("etc/probe/conf"), "198.51.100.77/32")?;
    let of_debian = foreign::path().join("host-local");
    fs::copy(&of_debian, plugins.join("host-local"))
        .with_context(|| format!("copying {}", of_debian.display()))?;
    let probe = plugins.join("probe");
    fs::write(
        &probe,
        r#"#!/bin/sh
read -r address </etc/probe/conf
echo "$CNI_COMMAND $CNI_PATH $(stat -Lc %i "$CNI_NETNS")" >>/etc/probe/calls
[ "$CNI_COMMAND" != ADD ] || echo "{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"$address\"}]}"
"#,
    )?;
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755))?;
    Ok(root)
}

/// What an ADD with this `ipam` says: its address is of no network of the NIC's, so that it is given back.
fn add(plugin: &Plugin, netns: &Netns, ipam: &serde_json::Value) -> Result<String> {
    let sandbox = Sandbox::new(netns, format!("host-root-{}", std::process::id()), "d");
    let config = json!({
        "cniVersion": "1.0.0", "name": "delegated", "type": "ebbtide", "master": "ens5",
        "agentSocket": plugin.socket(), "ipam": ipam,
    });
    let path = [("CNI_PATH", PLUGINS.as_ref())];
    let config = config.to_string();
    let error = plugin.call_with("ADD", Some(&sandbox), config.as_bytes(), &path)?;
    let error = error.error()?;
    Ok(format!("{} {}", error.msg, error.details))
}

fn files(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

#[test]
fn a_plugin_is_delegated_to_with_the_host_s_directories_libraries_and_state() -> Result<()> {
    let host = host()?;
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let plugin = lab.agent(NODE).plugin();
    let netns = Netns::new("host-root")?;
    let host_local = json!({
        "type": "host-local",
        "ranges": [[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.9"}]],
    });
    let probe = json!({"type": "probe"});

    // Without the host's root, none of it is there.
    for ipam in [&host_local, &probe] {
        let said = add(&plugin, &netns, ipam)?;
        ensure!(
            said.contains("is not in CNI_PATH") && said.contains("--host-root"),
            "{said}"
        );
    }

    let agent = lab.agent(NODE);
    agent.stop()?;
    agent.launch_beside_host(host.path())?;
    agent.wait_ready()?;
    let before = (Snapshot::of(&node)?, Snapshot::of(&netns)?);
    let elsewhere = Path::new("/").join(STATE).join("delegated");
    ensure!(!elsewhere.exists(), "{} is there", elsewhere.display());

    let said = add(&plugin, &netns, &host_local)?;
    ensure!(
        said.contains("198.51.100.9") && said.contains("foreignSubnets"),
        "{said}"
    );
    // It was given and given back: in the host's own place.
    let kept = files(&host.path().join(STATE).join("delegated"))?;
    ensure!(
        kept.iter().any(|name| name.starts_with("last_reserved_ip"))
            && !kept.iter().any(|name| name.starts_with("198.")),
        "{kept:?}"
    );
    ensure!(!elsewhere.exists(), "{} is there", elsewhere.display());

    let said = add(&plugin, &netns, &probe)?;
    ensure!(
        said.contains("198.51.100.77") && said.contains("foreignSubnets"),
        "{said}"
    );
    let calls = fs::read_to_string(host.path().join("etc/probe/calls"))?;
    let inode = fs::metadata(netns.path())?.ino();
    let expected = format!("ADD {PLUGINS} {inode}\nDEL {PLUGINS} {inode}\n");
    ensure!(calls == expected, "{calls:?}, not {expected:?}");

    let said = add(&plugin, &netns, &json!({"type": "missing"}))?;
    let place = host.path().display().to_string();
    ensure!(
        said.contains("is not in CNI_PATH") && said.contains(&place),
        "{said}"
    );
    before.0.comes_back(&node)?;
    before.1.comes_back(&netns)
}
