//! An agent in a container, and programs of the host: they are found and run as on the host.

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
/// The host's plugin directory, which does not exist in the agent's container.
const PLUGINS: &str = "/opt/host-cni/bin";
/// host-local's default data directory.
const STATE: &str = "var/lib/cni/networks";

/// Creates a host's root directory with Debian's host-local, and with a plugin that needs an interpreter and files of
/// the host.
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

/// Returns the error of an ADD with this `ipam`. The address is in no network of the NIC, so it is released.
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

    // Without the host's root, neither plugin exists.
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
    // The address was allocated and released in the host's own directory.
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
