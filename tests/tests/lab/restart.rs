//! The agent may die at any moment: running pods are not affected, and nothing is lost or duplicated.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use ebbtide_kernel::datapath::key;
use ebbtide_layout::{Address, NodeAddress, OWNER_IN_L3, OWNER_IS_FOLLOWED};
use ebbtide_plugin::wire::{self, Invocation, Request};
use ebbtide_tests::steady::SteadyClients;
use ebbtide_tests::two_ways::{
    Case, Site, Way,
    talk::{echoed, udp_pair},
};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    foreign::addresses,
    lab::Lab,
    netns::Netns,
    patience::PATIENCE,
    plan::{Family, Plan},
    pod::{NIC_SIDE, NODE_SIDE},
    snapshot::{Snapshot, run},
    traffic::{Protocol, socket},
};
use serde_json::Value;

#[test]
fn traffic_goes_on_without_a_loss_while_the_agent_is_killed_and_restarted() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens6", "c")?;
    let clients = SteadyClients::of(&lab, &pod)?;
    let agent = lab.agent("master");
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(200));
        agent.kill()?;
        thread::sleep(Duration::from_millis(200));
        agent.launch()?;
        agent.wait_ready()?;
    }
    thread::sleep(Duration::from_millis(200));
    clients.all_were_answered()?;
    lab.vpc.assert_no_violations()?;
    pod.call("CHECK").context("the new agent's view")?;
    let hooks = lab.agent("master").control_json(&["datapath"])?;
    let hooks = hooks.as_array().context("a list of hooks")?;
    ensure!(
        hooks.iter().all(|hook| hook["attached"] == true),
        "{hooks:?}"
    );
    pod.delete()
}

/// Pools with enough addresses for twenty pods.
const LARGE_POOLS: &str = "\
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: z-large-v4}
spec:
  subnet: 172.31.16.0/20
  ips: [172.31.17.1-172.31.17.30]
  gateway: 172.31.16.1
  default: true
  nodeName: [master]
  multusName: [default/ipvlan-ens5]
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: z-large-v6}
spec:
  subnet: fd00:16::/64
  ips: ['fd00:16::1:1-fd00:16::1:30']
  gateway: fd00:16::1
  default: true
  nodeName: [master]
  multusName: [default/ipvlan-ens5]
";

const PODS: usize = 20;

fn add_all(plugin: &Plugin, sandboxes: &[Sandbox], config: &str) -> Vec<Result<Value>> {
    thread::scope(|scope| {
        let threads: Vec<_> = sandboxes
            .iter()
            .map(|sandbox| scope.spawn(|| plugin.call("ADD", Some(sandbox), config)?.success()))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a caller panicked")))
            })
            .collect()
    })
}

// One after the other, these would take longer than all other tests beside them.

#[test]
fn killed_5_ms_into_twenty_adds_nothing_leaks_and_no_address_is_doubled() -> Result<()> {
    killed_after(Duration::from_millis(5))
}

#[test]
fn killed_40_ms_into_twenty_adds_nothing_leaks_and_no_address_is_doubled() -> Result<()> {
    killed_after(Duration::from_millis(40))
}

#[test]
fn killed_150_ms_into_twenty_adds_nothing_leaks_and_no_address_is_doubled() -> Result<()> {
    killed_after(Duration::from_millis(150))
}

#[test]
fn killed_400_ms_into_twenty_adds_nothing_leaks_and_no_address_is_doubled() -> Result<()> {
    killed_after(Duration::from_millis(400))
}

/// Starts a lab whose master has addresses for twenty pods.
fn large_lab() -> Result<Lab> {
    let mut lab = Lab::without_agents(Plan::default())?;
    lab.start_agents_with(LARGE_POOLS)?;
    Ok(lab)
}

/// Creates the namespaces of twenty pods, and their descriptions for the runtime.
fn twenty_pods() -> Result<(Vec<Netns>, Vec<Sandbox>)> {
    let namespaces = (0..PODS)
        .map(|number| Netns::new(&format!("p{number}")))
        .collect::<Result<Vec<_>>>()?;
    let sandboxes = namespaces.iter().enumerate();
    let sandboxes = sandboxes.map(|(number, netns)| {
        Sandbox::new(netns, format!("crash{number}"), &format!("p{number}"))
    });
    let sandboxes = sandboxes.collect();
    Ok((namespaces, sandboxes))
}

fn killed_after(delay: Duration) -> Result<()> {
    let mut lab = large_lab()?;
    let node = lab.vpc.node("master").clone();
    let before = Snapshot::of(&node)?;
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5").to_string();
    let (_namespaces, sandboxes) = twenty_pods()?;
    let agent = lab.agent("master");
    let first = thread::scope(|scope| -> Result<_> {
        let adds = scope.spawn(|| add_all(&plugin, &sandboxes, &config));
        thread::sleep(delay);
        agent.kill()?;
        adds.join().map_err(|_| anyhow!("the callers panicked"))
    })?;
    agent.launch()?;
    agent.wait_ready()?;
    let mut owners: BTreeMap<IpAddr, usize> = BTreeMap::new();
    // The kubelet repeats those that failed; repeating all shows that no result changed.
    for (number, (sandbox, first)) in sandboxes.iter().zip(first).enumerate() {
        let again = plugin.call("ADD", Some(sandbox), &config)?.success()?;
        plugin.call("CHECK", Some(sandbox), &config)?.success()?;
        if let Ok(first) = first {
            ensure!(first == again, "{first} became {again}");
        }
        for address in addresses(&again)? {
            if let Some(other) = owners.insert(address, number) {
                anyhow::bail!("{address} belongs to {other} and to {number}");
            }
        }
    }
    ensure!(owners.len() == 2 * PODS);
    let all = Snapshot::of(&node)?;
    let veths = all.links("veth");
    ensure!(
        veths.len() == before.links("veth").len() + PODS,
        "{veths:?}"
    );
    for sandbox in &sandboxes {
        plugin.call("DEL", Some(sandbox), &config)?.success()?;
    }
    before.comes_back(&node)?;
    let used = lab.agent("master").addresses_in_use()?;
    ensure!(used == 0, "{used} addresses are in use");
    lab.vpc.assert_no_violations()
}

#[test]
fn what_ended_while_the_agent_was_down_is_released_when_it_starts() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let stays = lab.pod("master", "ens5", "stays")?;
    let config = lab
        .agent("master")
        .plugin()
        .config("default/ipvlan-ens5")
        .to_string();
    let plugin = lab.agent("master").plugin();
    let netns = Netns::new("ends")?;
    let sandbox = Sandbox::new(&netns, "ends", "ends");
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    lab.agent("master").kill()?;
    drop(netns);
    lab.agent("master").launch()?;
    lab.agent("master").wait_ready()?;
    let pods = lab.agent("master").control(&["pods"])?;
    ensure!(pods.contains("stays") && !pods.contains("ends"), "{pods}");
    stays.call("CHECK")?;
    stays.delete()
}

#[test]
fn what_was_wiped_while_the_agent_was_down_is_back_for_whoever_asks_first() -> Result<()> {
    let mut lab = large_lab()?;
    let plugin = lab.agent("master").plugin();
    let config = plugin.config("default/ipvlan-ens5");
    let (namespaces, sandboxes) = twenty_pods()?;
    let mut checks = Vec::new();
    for (sandbox, result) in sandboxes
        .iter()
        .zip(add_all(&plugin, &sandboxes, &config.to_string()))
    {
        let mut config = config.clone();
        config["prevResult"] = result?;
        checks.push(check(sandbox, &config));
    }
    let agent = lab.agent("master");
    agent.kill()?;
    for netns in &namespaces {
        netns.netlink()?.remove_clsact("eth0")?;
    }
    agent.launch()?;
    agent.wait_listening()?;
    // All at the same time, while it takes the pods over: no CHECK may report missing programs.
    thread::scope(|scope| {
        let socket = plugin.socket();
        let answers: Vec<_> = checks
            .iter()
            .map(|check| scope.spawn(move || wire::ask(socket, check, PATIENCE)))
            .collect();
        answers.into_iter().try_for_each(|answer| {
            let answer = answer.join().map_err(|_| anyhow!("a caller panicked"))??;
            ensure!(answer.exit == 0, "{}", answer.output);
            Ok(())
        })
    })?;
    agent.wait_ready()?;
    for sandbox in &sandboxes {
        plugin
            .call("DEL", Some(sandbox), &config.to_string())?
            .success()?;
    }
    Ok(())
}

/// Returns the plugin's request. Executing the plugin would take longer than the agent needs for the pods.
fn check(sandbox: &Sandbox, config: &Value) -> Request {
    let netns = sandbox.netns.as_deref().unwrap_or(Path::new(""));
    Request::Cni(Invocation {
        command: "CHECK".to_owned(),
        container_id: sandbox.container_id.clone(),
        netns: netns.to_string_lossy().into_owned(),
        if_name: sandbox.interface.clone(),
        config: config.to_string(),
        ..Invocation::default()
    })
}

/// Starts the agent of the site's node again, with these lines in its configuration. What `meanwhile` does happens while
/// there is none.
fn start_again(
    site: &mut Site,
    lines: &str,
    meanwhile: impl FnOnce(&Site) -> Result<()>,
) -> Result<()> {
    site.lab.agent("master").stop()?;
    meanwhile(site)?;
    let agent = site.lab.agent("master");
    agent.configure(lines)?;
    agent.launch()?;
    agent.wait_ready()
}

/// Whether the pod has a program for what its interface receives.
fn sees_what_comes_in(site: &Site) -> Result<bool> {
    let ingress = ["filter", "show", "dev", NIC_SIDE, "ingress"];
    Ok(run(&site.pod.netns, "tc", &ingress)?.contains("nic_ingress"))
}

/// Returns the map of the node's addresses and pods.
fn known_addresses(bpf: &Path) -> Result<HashMap<MapData, Address, NodeAddress>> {
    // In the directory of the layout.
    let inside = bpf.read_dir()?.collect::<Result<Vec<_>, _>>()?;
    let mut pins = inside.iter().map(|entry| entry.path().join("addresses"));
    let pin = pins.find(|pin| pin.exists()).context("no pinned map")?;
    let map = MapData::from_pin(pin)?;
    Ok(HashMap::try_from(Map::HashMap(map))?)
}

/// The flags of a pod that the NIC's program follows.
const FOLLOWED: u32 = OWNER_IS_FOLLOWED | OWNER_IN_L3;

/// Whether the programs at the NIC, and those of the pods on it, follow what reaches the pod.
fn is_followed(site: &mut Site) -> Result<bool> {
    let addresses = known_addresses(site.lab.agent("master").bpf())?;
    let flags = |family| addresses.get(&key(site.pod.address(family)), 0);
    let all = Family::BOTH.map(flags);
    let is = |wanted: u32| {
        all.iter()
            .flatten()
            .filter(move |entry| entry.flags & FOLLOWED == wanted)
    };
    match (is(FOLLOWED).count(), is(OWNER_IN_L3).count()) {
        (2, 0) => Ok(true),
        (0, 2) => Ok(false),
        _ => bail!("{all:?}"),
    }
}

/// A client uses a NodePort, and from the same port the pod's address.
fn uses_its_port_again(site: &Site) -> Result<()> {
    for family in Family::BOTH {
        let case = site.case(Way::NodePort, family);
        let (server, first) = udp_pair(&case)?;
        let from = first.local_addr()?;
        drop(first);
        for (way, back) in [
            (Way::NodePort, NODE_SIDE),
            (Way::Straight, NODE_SIDE),
            (Way::NodePort, NODE_SIDE),
        ] {
            let case = Case { way, ..case };
            let client: UdpSocket = socket(site.client(), Protocol::Udp, from)?.into();
            client.connect(case.server())?;
            let mark = case.mark()?;
            client.send(b"now here")?;
            let context = || format!("{family}, {way}");
            echoed(&server, &client, b"now here").with_context(context)?;
            case.came_back_by(back, mark).with_context(context)?;
        }
    }
    Ok(())
}

/// Former versions had that program in every pod. So have pods on a link that is no NIC, and the next agent takes it for
/// one.
#[test]
fn a_pod_with_a_program_for_what_comes_in_loses_it_to_the_nics_when_a_new_agent_starts()
-> Result<()> {
    let mut site = Site::create(Plan::default())?;
    ensure!(!sees_what_comes_in(&site)? && is_followed(&mut site)?);
    start_again(&mut site, "nics: {exclude: [ens6]}\n", |_| Ok(()))?;
    let other = site.replace_pod("older")?;
    ensure!(sees_what_comes_in(&site)? && !is_followed(&mut site)?);
    start_again(&mut site, "", |_| Ok(()))?;
    ensure!(!sees_what_comes_in(&site)?, "the program is still there");
    ensure!(is_followed(&mut site)?, "nobody follows it");
    site.pod.call("CHECK")?;
    uses_its_port_again(&site).context("with the new agent")?;
    // A former version's entries say nothing of who follows a pod.
    let bpf = site.lab.agent("master").bpf().to_owned();
    start_again(&mut site, "", |site| {
        let mut addresses = known_addresses(&bpf)?;
        for family in Family::BOTH {
            let key = key(site.pod.address(family));
            let mut entry = addresses.get(&key, 0)?;
            entry.flags &= !FOLLOWED;
            addresses.insert(key, entry, 0)?;
        }
        Ok(())
    })?;
    ensure!(is_followed(&mut site)?, "nobody follows it any more");
    uses_its_port_again(&site).context("with entries of a former version")?;
    site.lab.vpc.assert_no_violations()?;
    other.delete()?;
    site.pod.delete()
}
