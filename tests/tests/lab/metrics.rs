//! What the agent tells of pods: their ADDs, and what they try.

use anyhow::{Context as _, Result, ensure};
use ebbtide_programs::packets::{between_macs, udp};
use ebbtide_vpc::{
    lab::Lab,
    packet_socket::send_raw,
    patience::eventually,
    plan::{Family, Plan},
    pod::NIC_SIDE,
    scrape::{Scrape, get},
};

const NODE: &str = "master";
const NIC: &str = "ens5";

#[test]
fn an_add_a_spoofed_packet_and_a_del_are_counted() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let before = Scrape::of(&node).with_context(|| lab.logs())?;
    let added = &["command=\"ADD\"", "result=\"success\""];
    ensure!(before.sum("ebbtide_cni_requests_total", added) == 0.0);
    ensure!(before.sum("ebbtide_ready", &[]) == 1.0);
    ensure!(before.sum("ebbtide_spoofed_packets_total", &[]) == 0.0);
    let (status, _) = get(&node, ebbtide_vpc::scrape::ADDRESS, "/readyz")?;
    ensure!(status == 200, "{status}");

    let pod = lab.pod(NODE, NIC, "hostile")?;
    // Forged, to its own NIC's gateway.
    let gateway = lab
        .vpc
        .nic(NODE, NIC)
        .subnet(Family::V4)
        .gateway
        .to_string();
    let mac = lab.vpc.nic(NODE, NIC).mac;
    let forged = udp(("198.51.100.66", 666), (&gateway, 4000));
    let frames = vec![between_macs(forged, mac, mac); 3];
    send_raw(&pod.netns, NIC_SIDE, &frames, false)?;
    let after = eventually("the pod is told", || {
        let after = Scrape::of(&node)?;
        ensure!(
            after.sum("ebbtide_spoofed_packets_total", &["by=\"nic\""]) == 3.0,
            "{}",
            after.text
        );
        Ok(after)
    })?;
    for (name, labels, expected) in [
        ("ebbtide_cni_requests_total", &added[..], 1.0),
        (
            "ebbtide_cni_request_duration_seconds_count",
            &["command=\"ADD\""],
            1.0,
        ),
        ("ebbtide_interfaces", &["kind=\"ipvlan\""], 1.0),
        ("ebbtide_pool_addresses", &["state=\"used\""], 2.0),
        ("ebbtide_flow_table_buckets", &[], 1.0),
    ] {
        ensure!(
            after.sum(name, labels) == expected,
            "{name} {labels:?}\n{}",
            after.text
        );
    }
    let steps = after.sum(
        "ebbtide_cni_step_duration_seconds_count",
        &["step=\"make the links\""],
    );
    ensure!(steps == 1.0, "{}", after.text);
    // No label has a pod's name.
    ensure!(!after.text.contains("hostile"), "{}", after.text);

    // What a pod had done stays counted, through its end and the agent's.
    pod.delete()?;
    eventually("the pod is gone", || {
        let gone = Scrape::of(&node)?;
        ensure!(gone.sum("ebbtide_interfaces", &[]) == 0.0);
        ensure!(
            gone.sum("ebbtide_spoofed_packets_total", &[]) == 3.0,
            "{}",
            gone.text
        );
        ensure!(
            gone.sum(
                "ebbtide_cni_requests_total",
                &["command=\"DEL\"", "code=\"0\""]
            ) == 1.0
        );
        Ok(())
    })?;
    let pod = lab.pod(NODE, NIC, "hostile")?;
    send_raw(&pod.netns, NIC_SIDE, &frames, false)?;
    let agent = lab.agent(NODE);
    agent.stop()?;
    agent.launch()?;
    agent.wait_ready()?;
    // An agent that starts does not tell as new what was counted before it.
    let anew = Scrape::of(&node)?;
    ensure!(
        anew.sum("ebbtide_spoofed_packets_total", &[]) == 0.0,
        "{}",
        anew.text
    );
    send_raw(&pod.netns, NIC_SIDE, &frames, false)?;
    eventually("what comes after is", || {
        let anew = Scrape::of(&node)?;
        ensure!(
            anew.sum("ebbtide_spoofed_packets_total", &[]) == 3.0,
            "{}",
            anew.text
        );
        Ok(())
    })?;
    pod.delete()
}
