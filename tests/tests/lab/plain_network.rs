//! A network that is not a cloud's: its router resolves pods' addresses by ARP and ND, and the node answers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    patience::{IMPATIENCE, PATIENCE},
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};

const PORT: u16 = 8080;

fn lab(answers: bool) -> Result<Lab> {
    Lab::start(Plan {
        asks: true,
        answers,
        ..Plan::default()
    })
}

fn ask(lab: &Lab, pod: &Pod, family: Family, patience: Duration) -> Result<()> {
    let client = Client::new(&lab.vpc.router, Protocol::Tcp).timeout(patience);
    client.ask(pod.socket(family, PORT))?;
    Ok(())
}

#[test]
fn a_router_that_asks_is_not_answered_by_an_l3_child() -> Result<()> {
    let lab = lab(false)?;
    let pod = lab.pod("master", "ens6", "c")?;
    let _servers = Server::on_any(&pod.netns, PORT)?;
    for family in Family::BOTH {
        ensure!(
            ask(&lab, &pod, family, IMPATIENCE).is_err(),
            "{family}: who answered?"
        );
    }
    pod.delete()
}

#[test]
fn the_node_answers_for_its_pods_with_its_nics_address_and_for_nobody_else() -> Result<()> {
    let lab = lab(true)?;
    let pod = lab.pod("master", "ens6", "c")?;
    let _servers = Server::on_any(&pod.netns, PORT)?;
    let nic = lab.vpc.nic("master", "ens6");
    let [a, b, c, d, e, f] = nic.mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    for family in Family::BOTH {
        ask(&lab, &pod, family, PATIENCE).with_context(|| format!("{family}\n{}", lab.logs()))?;
        let address = pod.socket(family, PORT).ip().to_string();
        let known = ip(&lab.vpc.router, &["neigh", "show", "to", &address])?;
        ensure!(known.contains(&mac), "{known}");
        // The next secondary address belongs to no pod.
        let free = nic.subnet(family).secondary[1].to_string();
        let _no_answer = lab
            .vpc
            .router
            .command("ping")
            .args(["-c1", "-W1", &free])
            .output()?;
        let known = ip(&lab.vpc.router, &["neigh", "show", "to", &free])?;
        ensure!(!known.contains(&mac), "{known}");
    }
    // A hardware NIC receives only the multicast groups that were configured.
    let groups = ip(lab.vpc.node("master"), &["maddress", "show", "dev", "ens6"])?;
    ensure!(groups.contains("33:33:ff:00:00:11 static"), "{groups}");
    lab.vpc.assert_no_violations()?;
    let addresses = Family::BOTH.map(|family| pod.socket(family, PORT).ip().to_string());
    pod.delete()?;
    for address in addresses {
        // The answer ends with the pod: a new request is not answered.
        ip(&lab.vpc.router, &["neigh", "flush", "to", &address])?;
        let _no_answer = lab
            .vpc
            .router
            .command("ping")
            .args(["-c1", "-W1", &address])
            .output()?;
        let known = ip(&lab.vpc.router, &["neigh", "show", "to", &address])?;
        ensure!(!known.contains(&mac), "{known}");
    }
    Ok(())
}
