//! An ADD for a container that has its interface already, with another request.

use anyhow::{Result, ensure};
use ebbtide_vpc::{
    cni::Sandbox,
    lab::Lab,
    netns::Netns,
    plan::Plan,
    snapshot::{Snapshot, ip},
};
use serde_json::json;

#[test]
fn another_namespace_is_refused_while_the_first_one_is_there() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let other = Netns::new("other")?;
    let moved = Sandbox {
        netns: Some(other.path()),
        ..pod.sandbox.clone()
    };
    let before = (Snapshot::of(&pod.netns)?, Snapshot::of(&other)?);
    let used = lab.agent("master").addresses_in_use()?;
    let error = plugin.call("ADD", Some(&moved), &config)?.error()?;
    ensure!(error.code == 4, "{error}");
    for part in ["CNI_NETNS", "eth0", "still there"] {
        ensure!(error.msg.contains(part), "{part:?} in {error}");
    }
    before.0.assert_same(&Snapshot::of(&pod.netns)?)?;
    before.1.assert_same(&Snapshot::of(&other)?)?;
    ensure!(lab.agent("master").addresses_in_use()? == used);
    pod.call("CHECK")?;
    ensure!(pod.call("ADD")? == pod.result);
    // DEL removes the recorded interface, in whatever namespace the runtime says it is.
    plugin.call("DEL", Some(&moved), &config)?.success()?;
    ensure!(
        !Snapshot::of(&pod.netns)?.mentions("eth0"),
        "an address without an owner"
    );
    ensure!(lab.agent("master").addresses_in_use()? == 0);
    pod.delete()
}

#[test]
fn another_namespace_is_taken_when_the_first_one_is_gone() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let id = format!("again-{}", std::process::id());
    let first = Netns::new("first")?;
    let sandbox = Sandbox::new(&first, id.clone(), "again");
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    drop((first, sandbox));
    let second = Netns::new("second")?;
    let sandbox = Sandbox::new(&second, id, "again");
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    ensure!(Snapshot::of(&second)?.mentions("eth0"));
    plugin.call("CHECK", Some(&sandbox), &config)?.success()?;
    plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    ensure!(lab.agent("master").addresses_in_use()? == 0);
    Ok(())
}

#[test]
fn another_network_is_refused_and_pods_shows_the_one_that_is_there() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let plugin = lab.agent("master").plugin();
    let before = Snapshot::of(&pod.netns)?;
    let address = ip(&pod.netns, &["-4", "address", "show", "eth0"])?;
    let mut chained = plugin.config("default/ipvlan-ens5");
    chained["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.9/24"}]});
    let mut inline = plugin.config("");
    inline["network"] = json!(null);
    inline["master"] = json!("ens5");
    inline["mode"] = json!("l2");
    for (what, config, part) in [
        (
            "network",
            plugin.config("default/ipvlan-ens6"),
            "default/ipvlan-ens5",
        ),
        ("behind another plugin", chained, "another plugin"),
        ("inline", inline, "network"),
    ] {
        let outcome = plugin.call("ADD", Some(&pod.sandbox), &config.to_string())?;
        let error = outcome.error()?;
        ensure!(error.code == 7, "{what}: {error}");
        ensure!(error.msg.contains(part), "{what}: {part:?} in {error}");
        before.assert_same(&Snapshot::of(&pod.netns)?)?;
    }
    ensure!(ip(&pod.netns, &["-4", "address", "show", "eth0"])? == address);
    ensure!(pod.call("ADD")? == pod.result);
    pod.call("CHECK")?;
    pod.delete()
}
