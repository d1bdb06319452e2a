//! Ebbtide after other plugins, in this kernel: the path of replies on foreign interfaces.

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::chain;
use ebbtide_vpc::{cni::Sandbox, netns::Netns};
use serde_json::json;
use tempfile::TempDir;

#[test]
fn behind_macvlan_bridge_and_ptp_replies_leave_as_their_requests_came() -> Result<()> {
    for (kind, fields, ranges, neighbours) in [
        (
            "macvlan",
            json!({"master": "ens5", "mode": "bridge"}),
            [
                ("172.31.16.0/20", "172.31.16.4"),
                ("fd00:16::/64", "fd00:16::4"),
            ],
            "eth0",
        ),
        (
            "bridge",
            json!({"bridge": "cni0", "isGateway": true}),
            [
                ("10.88.0.0/24", "10.88.0.10"),
                ("fd00:88::/64", "fd00:88::10"),
            ],
            "eth0",
        ),
        // Neighbours on point-to-point links meet in the host, which forwards by our veth pair.
        (
            "ptp",
            json!({}),
            [
                ("10.89.0.0/24", "10.89.0.10"),
                ("fd00:89::/64", "fd00:89::10"),
            ],
            "veth0",
        ),
    ] {
        let data = TempDir::with_prefix("ebbtide-host-local-")?;
        let path = data.path().to_str().context("a path")?;
        let config = chain::first(kind, &fields, &ranges, path);
        let mut lab = chain::lab()?;
        chain::prove(&mut lab, &config, neighbours)
            .with_context(|| format!("{kind}\n{}", lab.logs()))?;
    }
    Ok(())
}

#[test]
fn an_address_of_a_delegated_ipam_goes_back_when_the_interface_cannot_be_made() -> Result<()> {
    let data = TempDir::with_prefix("ebbtide-host-local-")?;
    let mut lab = chain::lab()?;
    let plugin = lab.agent("master").plugin();
    let netns = Netns::new("unmade")?;
    let sandbox = Sandbox::new(&netns, "unmade", "unmade");
    // The name is in use: whatever the kernel supports, this link cannot be made.
    ebbtide_vpc::snapshot::ip(&netns, &["link", "add", "eth0", "type", "bridge"])?;
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "delegated",
        "type": "ebbtide",
        "master": "ens5",
        "agentSocket": plugin.socket(),
        "ipam": {
            "type": "host-local",
            "dataDir": data.path(),
            "ranges": [[{"subnet": "172.31.16.0/20", "rangeStart": "172.31.16.4"}]],
        },
    });
    for _ in 0..2 {
        let error = plugin
            .call("ADD", Some(&sandbox), &config.to_string())?
            .error()?;
        ensure!(error.code == 102, "{error}");
        let kept: Vec<_> = std::fs::read_dir(data.path().join("delegated"))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("172."))
            .collect();
        ensure!(kept.is_empty(), "host-local keeps {kept:?}");
    }
    let mut unknown = config.clone();
    unknown["ipam"]["type"] = json!("nobodys");
    let error = plugin
        .call("ADD", Some(&sandbox), &unknown.to_string())?
        .error()?;
    ensure!(error.code == 7 && error.msg.contains("nobodys"), "{error}");
    ensure!(error.details.contains("ipam.type"), "{error}");
    Ok(())
}
