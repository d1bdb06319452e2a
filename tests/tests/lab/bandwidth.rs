//! Limits of pods' bandwidth: what passes, measured, and that they are there as long as the pod.

mod load;
mod no_queue;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use ebbtide_layout::Limits;
use ebbtide_tests::two_ways::{Site, Way};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    pod::{NIC_SIDE, NODE_SIDE},
    scrape::Scrape,
    snapshot::run,
};
use load::{Flow, Load, Towards};
use serde_json::{Value, json};

/// Bits per second: far below what the slowest machine carries.
const RATE: u64 = 16_000_000;

/// What a runtime writes that knows no burst.
const UNLIMITED: u64 = i32::MAX as u64;

fn limited() -> Value {
    json!({
        "capabilities": {"bandwidth": true},
        "runtimeConfig": {"bandwidth": {
            "ingressRate": RATE, "ingressBurst": UNLIMITED, "egressRate": RATE, "egressBurst": UNLIMITED,
        }},
    })
}

#[expect(
    clippy::print_stdout,
    reason = "what was measured, for whoever runs it by hand"
)]
fn tell(line: &str) {
    println!("{line}");
}

/// Whether a measured rate is that of the limit. On a busy machine sender or reader may stand still for a part of the time, and
/// what waited meanwhile is then read at once: so it is measured again. Without a limit it would be a hundred times as much.
fn is_limited(what: &str, measure: impl Fn() -> Result<f64>) -> Result<()> {
    let mut found = Vec::new();
    for _ in 0..5 {
        let part = measure().with_context(|| what.to_owned())? / RATE as f64;
        tell(&format!("{what}: {part:.2} of the limit"));
        ensure!(part < 2.0, "{what}: {part:.2} of the limit");
        if (0.6..1.2).contains(&part) {
            return Ok(());
        }
        found.push(part);
    }
    bail!("{what}: {found:.2?} of the limit")
}

fn measured(site: &Site, load: Load, ways: &[Way]) -> Result<()> {
    for family in Family::BOTH {
        for way in ways {
            for towards in Towards::BOTH {
                let what = format!("{family}, {way}, {load} {towards}");
                is_limited(&what, || {
                    let case = site.case(*way, family);
                    Flow::of(&case, load)?.measure(towards)
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_a_pod_sends_and_receives_by_tcp_has_the_rate_of_its_limit_by_all_ways() -> Result<()> {
    let site = Site::create_with(Plan::default(), &limited())?;
    measured(&site, Load::Tcp, &Way::ALL)
}

#[test]
fn what_a_pod_sends_and_receives_by_udp_has_the_rate_of_its_limit_by_all_ways() -> Result<()> {
    let mut site = Site::create_with(Plan::default(), &limited())?;
    measured(&site, Load::Udp, &[Way::Straight, Way::NodePort])?;
    // What was above the limit into the pod is told.
    let node = site.node().clone();
    let told = Scrape::of(&node)?;
    let dropped = told.sum(
        "ebbtide_bandwidth_dropped_packets_total",
        &["direction=\"ingress\""],
    );
    ensure!(dropped > 100.0, "{dropped}: {}", told.text);
    let hooks = site.lab.agent("master").control_json(&["datapath"])?;
    let hooks = hooks.as_array().context("a list of hooks")?;
    let line = hooks.iter().find(|hook| hook["program"] == "limit_ingress");
    let line = line.context("no line of limit_ingress")?;
    ensure!(line["dropped"].as_f64() == Some(dropped), "{line}");
    Ok(())
}

#[test]
fn both_interfaces_of_a_pod_share_its_limit_and_the_pod_beside_it_has_none() -> Result<()> {
    let site = Site::create_with(Plan::default(), &limited())?;
    let free = site.lab.pod("master", "ens6", "free")?;
    for interface in [NIC_SIDE, NODE_SIDE] {
        let queues = run(&free.netns, "tc", &["qdisc", "show", "dev", interface])?;
        ensure!(!queues.contains("fq"), "{queues}");
        for direction in ["ingress", "egress"] {
            let filters = run(
                &free.netns,
                "tc",
                &["filter", "show", "dev", interface, direction],
            )?;
            ensure!(!filters.contains("limit_"), "{filters}");
        }
    }
    for family in Family::BOTH {
        let cases = [Way::Straight, Way::NodePort].map(|way| site.case(way, family));
        let flows = cases.iter().map(|case| Flow::of(case, Load::Tcp));
        let flows = flows.collect::<Result<Vec<_>>>()?;
        is_limited(&format!("{family}, both ways together"), || {
            std::thread::scope(|scope| {
                let each = flows
                    .iter()
                    .map(|flow| scope.spawn(|| flow.measure(Towards::Client)));
                let each: Vec<_> = each.collect();
                each.into_iter()
                    .try_fold(0.0, |sum, flow| match flow.join() {
                        Ok(rate) => Ok(sum + rate?),
                        Err(panic) => std::panic::resume_unwind(panic),
                    })
            })
        })?;
        // While the other one uses all of its own.
        let case = site.case(Way::Straight, family);
        let own = Flow::of(&case, Load::Tcp)?;
        let beside = Flow::straight(site.client(), &free, &case)?;
        let (own, beside) = std::thread::scope(|scope| {
            let own = scope.spawn(|| own.measure(Towards::Client));
            let beside = beside.measure(Towards::Client);
            let own = own
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (own, beside)
        });
        let (own, beside) = (own? / RATE as f64, beside? / RATE as f64);
        tell(&format!(
            "{family}: {own:.2} of the limit, the pod beside it {beside:.2}"
        ));
        ensure!(
            own < 2.0 && beside > 4.0,
            "{family}: {own:.2}, beside it {beside:.2}"
        );
    }
    free.delete()
}

fn queues(pod: &Netns) -> Result<String> {
    let links = [NIC_SIDE, NODE_SIDE].map(|link| run(pod, "tc", &["qdisc", "show", "dev", link]));
    let [own, veth] = links;
    Ok(own? + &veth?)
}

fn is_paced(pod: &Netns) -> Result<()> {
    let queues = queues(pod)?;
    let count = queues.matches("qdisc fq eb: root").count();
    ensure!(count == 2, "{queues}");
    Ok(())
}

fn limits(lab: &mut Lab) -> Result<HashMap<MapData, u32, Limits>> {
    let inside = lab.agent("master").bpf().read_dir()?;
    let inside = inside.collect::<Result<Vec<_>, _>>()?;
    let mut pins = inside.iter().map(|entry| entry.path().join("limits"));
    let pin = pins.find(|pin| pin.exists()).context("no pinned map")?;
    Ok(HashMap::try_from(Map::HashMap(MapData::from_pin(pin)?))?)
}

#[test]
fn a_limit_outlives_the_agent_is_repaired_and_leaves_nothing_behind() -> Result<()> {
    let mut site = Site::create_with(Plan::default(), &limited())?;
    let pod = site.pod.netns.clone();
    is_paced(&pod)?;
    ensure!(limits(&mut site.lab)?.keys().count() == 1);
    let agent = site.lab.agent("master");
    let explained = agent.control(&["explain", "default/c"])?;
    for line in [
        "qdisc fq on eth0",
        "qdisc fq on veth0",
        "egress 16 Mbit/s, ingress 16 Mbit/s",
    ] {
        ensure!(explained.contains(line), "{line} is not in {explained}");
    }
    let line = &agent.control_json(&["pods"])?[0];
    ensure!(
        line["bandwidth"]["egress"]["bitsPerSecond"] == RATE,
        "{line}"
    );

    // Detached by hand.
    for damage in [
        "qdisc del dev eth0 root",
        "qdisc replace dev veth0 root pfifo",
        "filter del dev eth0 egress pref 236",
    ] {
        run(&pod, "tc", &damage.split(' ').collect::<Vec<_>>())?;
        eventually(damage, || {
            is_paced(&pod)?;
            let filters = run(&pod, "tc", &["filter", "show", "dev", "eth0", "egress"])?;
            ensure!(filters.contains("limit_egress"), "{filters}");
            Ok(())
        })?;
    }
    site.pod.call("CHECK").context("repaired")?;

    let straight = |site: &Site| {
        let case = site.case(Way::Straight, Family::V4);
        is_limited("out of the pod", || {
            Flow::of(&case, Load::Tcp)?.measure(Towards::Client)
        })
    };
    let agent = site.lab.agent("master");
    agent.kill()?;
    straight(&site).context("without an agent")?;
    let agent = site.lab.agent("master");
    agent.launch()?;
    agent.wait_ready()?;
    site.pod.call("CHECK").context("the new agent's view")?;
    straight(&site).context("with the new agent")?;

    // A lost entry is found, and put back by a repeated ADD.
    let keys: Vec<u32> = limits(&mut site.lab)?.keys().collect::<Result<_, _>>()?;
    for key in &keys {
        limits(&mut site.lab)?.remove(key)?;
    }
    let Err(error) = site.pod.call("CHECK") else {
        bail!("CHECK found nothing");
    };
    ensure!(format!("{error:#}").contains("LIMITS"), "{error:#}");
    site.pod.call("ADD")?;
    site.pod.call("CHECK")?;

    let Site { pod, mut lab } = site;
    let netns = pod.netns.clone();
    pod.delete()?;
    ensure!(limits(&mut lab)?.keys().count() == 0);
    let left = run(&netns, "tc", &["qdisc", "show"])?;
    ensure!(!left.contains("fq") && !left.contains("clsact"), "{left}");
    Ok(())
}

#[test]
fn what_is_no_limit_is_refused_and_takes_no_address() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    for (bandwidth, named) in [
        (json!({"egressRate": 5}), "between 1k and 1P"),
        (json!({"egressRate": "10M"}), "no whole number"),
        (json!({"ingressBurst": 5}), "no rate"),
    ] {
        let fields = json!({"runtimeConfig": {"bandwidth": bandwidth}});
        let Err(error) = lab.pod_with("master", "ens5", "bad", &fields) else {
            bail!("{fields} was taken");
        };
        ensure!(format!("{error:#}").contains(named), "{error:#}");
        ensure!(
            lab.agent("master").addresses_in_use()? == 0,
            "an address is kept"
        );
    }
    ensure!(limits(&mut lab)?.keys().count() == 0);
    Ok(())
}
