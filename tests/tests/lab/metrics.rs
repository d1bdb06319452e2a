//! What the agent tells of pods: their ADDs, and what they try.

use anyhow::{Context as _, Result, ensure};
use ebbtide_programs::packets::{between_macs, udp};
use ebbtide_vpc::{
    lab::Lab,
    packet_socket::send_raw,
    patience::eventually,
    plan::{Family, Plan},
    pod::NIC_SIDE,
    scrape::{ADDRESS, Scrape, get},
};

const NODE: &str = "master";
const NIC: &str = "ens5";

const SPOOFED: &str = "ebbtide_spoofed_packets_total";

#[test]
fn an_add_a_spoofed_packet_and_a_del_are_counted() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let before = Scrape::of(&node).with_context(|| lab.logs())?;
    let added = &["command=\"ADD\"", "result=\"success\""];
    ensure!(before.sum("ebbtide_cni_requests_total", added) == 0.0);
    ensure!(before.sum("ebbtide_ready", &[]) == 1.0);
    ensure!(before.sum(SPOOFED, &[]) == 0.0);
    let (status, _) = get(&node, ADDRESS, "/readyz")?;
    ensure!(status == 200, "{status}");

    let pod = lab.pod(NODE, NIC, "hostile")?;
    // Forged, to its own NIC's gateway.
    let nic = lab.vpc.nic(NODE, NIC);
    let gateway = nic.subnet(Family::V4).gateway.to_string();
    let forged = udp(("198.51.100.66", 666), (&gateway, 4000));
    let frames = vec![between_macs(forged, nic.mac, nic.mac); 3];
    let told = |what: &str, at_least: f64| {
        eventually(what, || {
            let told = Scrape::of(&node)?;
            ensure!(
                told.sum(SPOOFED, &["by=\"nic\""]) >= at_least,
                "{}",
                told.text
            );
            Ok(told)
        })
    };
    send_raw(&pod.netns, NIC_SIDE, &frames, false)?;
    let after = told("what it sent is told", 3.0)?;
    for (name, labels, expected) in [
        ("ebbtide_cni_requests_total", &added[..], 1.0),
        (
            "ebbtide_cni_request_duration_seconds_count",
            &["command=\"ADD\""],
            1.0,
        ),
        ("ebbtide_interfaces", &["kind=\"ipvlan\""], 1.0),
        ("ebbtide_pool_addresses", &["state=\"used\""], 2.0),
    ] {
        let found = after.sum(name, labels);
        ensure!(
            found == expected,
            "{name} {labels:?}: {found}\n{}",
            after.text
        );
    }
    let step = ["command=\"ADD\"", "step=\"make the links\""];
    ensure!(
        after.sum("ebbtide_cni_step_duration_seconds_count", &step) > 0.0,
        "{}",
        after.text
    );
    // No label has a pod's name.
    ensure!(!after.text.contains("hostile"), "{}", after.text);

    // What a pod did stays counted when it is gone.
    pod.delete()?;
    eventually("the pod is gone", || {
        let gone = Scrape::of(&node)?;
        ensure!(gone.sum("ebbtide_interfaces", &[]) == 0.0, "{}", gone.text);
        ensure!(
            gone.sum(
                "ebbtide_cni_requests_total",
                &["command=\"DEL\"", "code=\"0\""]
            ) == 1.0
        );
        Ok(())
    })?;
    told("its packets stay counted", 3.0)?;

    // An agent that starts does not tell as new what was counted before it.
    let pod = lab.pod(NODE, NIC, "hostile")?;
    send_raw(&pod.netns, NIC_SIDE, &frames, false)?;
    told("those of another pod are added", 6.0)?;
    let agent = lab.agent(NODE);
    agent.stop()?;
    agent.launch()?;
    agent.wait_ready()?;
    let anew = told("it is told again", 0.0)?.sum(SPOOFED, &["by=\"nic\""]);
    ensure!(anew < 3.0, "{anew}");
    send_raw(&pod.netns, NIC_SIDE, &frames, false)?;
    told("what comes after is new", anew + 3.0)?;
    pod.delete()
}
