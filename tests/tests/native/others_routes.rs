//! A node with BGP: hundreds of thousands of foreign routes cost nothing, and neither do their changes.

use std::{collections::HashMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_kernel::{
    netlink::{
        Netlink,
        direct::{Direct, Received},
        link::Link,
        model::{Action, NamespacePlan, Neighbour, Route, Rule, Selector},
        notification::{Notification, Notifications, RouteGone},
        state::NamespaceState,
    },
    node::{Interest, NodeFacts, Subscription},
};
use ebbtide_tests::chained::ChainedInterface;
use ebbtide_types::{Family, Mac};
use ebbtide_vpc::others_routes::OthersRoutes;
use ebbtide_vpc::{lab::Lab, netns::Netns, patience::eventually, plan::Plan, snapshot::ip};
use tokio::runtime::Runtime;

/// The number of foreign routes, and of neighbours.
const ROUTES: u32 = 200_000;
const NEIGHBOURS: u32 = 4_000;
/// A table of ours.
const TABLE: u32 = 7702;

/// Creates a namespace with all objects of `plan`.
fn node(name: &str) -> Result<(Netns, NamespacePlan)> {
    let netns = Netns::new(name)?;
    for command in [
        "link set lo up",
        "link add near0 type veth peer name far0",
        "link set near0 up",
        "link set far0 up",
        "address add 10.9.0.5/24 dev near0",
        "-6 address add fd09::5/64 dev near0 nodad",
        "route add default via 10.9.0.1",
        "route add 10.1.0.0/16 dev near0 scope link table 7702 proto 235",
        "route add default via 10.9.0.9 dev near0 onlink table 7702 proto 235",
        "-6 route add fd01::/64 dev near0 table 7702 proto 235",
        "rule add pref 1000 oif near0 lookup 7702 protocol 235",
        "neighbour add 10.9.0.9 dev near0 lladdr 02:00:00:00:00:09 nud permanent",
        "-6 neighbour add fd09::9 dev near0 lladdr 02:00:00:00:00:09 nud permanent",
    ] {
        ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    let route = |destination: &str, via: Option<&str>| -> Result<Route> {
        Ok(Route {
            link: "near0".into(),
            destination: destination.parse()?,
            via: via.map(str::parse).transpose()?,
            source: None,
            table: TABLE,
        })
    };
    let neighbour = |address: &str| -> Result<Neighbour> {
        Ok(Neighbour {
            link: "near0".into(),
            address: address.parse()?,
            mac: Mac([2, 0, 0, 0, 0, 9]),
        })
    };
    let rule = Rule {
        family: Family::V4,
        priority: 1000,
        selector: Selector::OutLink {
            from: Family::V4.everything(),
            link: "near0".into(),
        },
        action: Action::Table(TABLE),
    };
    let plan = NamespacePlan {
        routes: vec![
            route("10.1.0.0/16", None)?,
            route("0.0.0.0/0", Some("10.9.0.9"))?,
            route("fd01::/64", None)?,
        ],
        rules: vec![rule],
        neighbours: vec![neighbour("10.9.0.9")?, neighbour("fd09::9")?],
        ..NamespacePlan::default()
    };
    Ok((netns, plan))
}

/// Returns what is missing of the plan, and how much the kernel answered.
fn look(
    runtime: &Runtime,
    netlink: &Netlink,
    plan: &NamespacePlan,
) -> Result<(Vec<String>, Received)> {
    runtime.block_on(async {
        let before = netlink.received().await;
        let state = NamespaceState::read(netlink, plan).await?;
        let missing = state
            .missing(plan)
            .iter()
            .map(ToString::to_string)
            .collect();
        Ok((missing, netlink.received().await - before))
    })
}

fn runtime() -> Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    Ok(runtime.enable_all().build()?)
}

#[test]
fn a_look_reads_what_is_ours_however_much_others_have() -> Result<()> {
    let (netns, plan) = node("beside-bgp")?;
    let runtime = runtime()?;
    let filtered = netns.run(|| Ok(Netlink::open("in the test")?))?;
    let (missing, alone) = look(&runtime, &filtered, &plan)?;
    ensure!(missing.is_empty(), "{missing:#?}");
    let others = OthersRoutes::over(&netns, "near0")?;
    others.add(0..ROUTES)?;
    others.add_neighbours(NEIGHBOURS)?;
    let (missing, beside) = look(&runtime, &filtered, &plan)?;
    ensure!(missing.is_empty(), "{missing:#?}");
    ensure!(
        beside == alone,
        "{beside:?} is read beside others, {alone:?} alone"
    );
    ensure!(beside.messages < 30, "{beside:?}");
    let facts = runtime.block_on(NodeFacts::read(&filtered))?;
    ensure!(facts.defaults.len() == 1, "{:?}", facts.defaults);
    for wipe in [
        "route del 10.1.0.0/16 table 7702",
        "-6 route del fd01::/64 table 7702",
        "neighbour del 10.9.0.9 dev near0",
    ] {
        ip(&netns, &wipe.split(' ').collect::<Vec<_>>())?;
    }
    // A kernel that does not filter sends more, with the same result.
    let unfiltered = netns.run(|| Ok(Direct::open_unfiltered("in the test")?))?;
    let (slowly, everything) = look(&runtime, &unfiltered.into(), &plan)?;
    ensure!(everything.messages > u64::from(ROUTES), "{everything:?}");
    let (missing, _) = look(&runtime, &filtered, &plan)?;
    ensure!(missing == slowly, "{missing:#?}\nunfiltered: {slowly:#?}");
    let expected = ["neighbour 10.9.0.9", "route 10.1.0.0/16", "route fd01::/64"];
    let named = |(line, name): (&String, &&str)| line.contains(*name);
    ensure!(
        missing.len() == expected.len() && missing.iter().zip(&expected).all(named),
        "{missing:#?}"
    );
    Ok(())
}

#[test]
fn others_routes_that_come_and_go_are_not_heard_of_and_ours_are() -> Result<()> {
    let (netns, plan) = node("flapping")?;
    let runtime = runtime()?;
    let mut events = netns.run(|| {
        let _entered = runtime.enter();
        Ok(Notifications::listen()?)
    })?;
    let links: HashMap<String, Link> =
        netns.run(|| Ok(Direct::open("in the test")?.links(&["near0"])?))?;
    let subscription = Subscription::to_all(events.routes());
    subscription.subscribe(Interest::of(&plan, &links));
    let others = OthersRoutes::over(&netns, "near0")?;
    // Nobody reads meanwhile, so everything must fit into the queue.
    others.add(0..ROUTES)?;
    others.delete(0..ROUTES)?;
    for command in [
        "route add 192.0.2.0/24 dev near0 table 7702 proto bird",
        "route del 192.0.2.0/24 table 7702",
        "route add default via 10.9.0.2 metric 7",
        "route del default via 10.9.0.2 metric 7",
        "route del 10.1.0.0/16 table 7702",
        "-6 route del fd01::/64 table 7702",
    ] {
        ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    let gone = |ours| {
        Notification::RouteGone(RouteGone {
            table: TABLE,
            owned: ours,
        })
    };
    let default = vec![(links["near0"].ifindex, Some([10, 9, 0, 2].into()))];
    let expected = [
        gone(false),
        Notification::Default(default.clone()),
        Notification::DefaultGone(default),
        gone(true),
        gone(true),
    ];
    let heard = runtime.block_on(async {
        let mut heard = Vec::new();
        while heard.len() < expected.len() {
            let event = tokio::time::timeout(Duration::from_secs(20), events.next());
            let event = event.await.context("nothing more is heard")?;
            let event = event.context("the socket was closed")?;
            // Link-local addresses appear at any time.
            if !matches!(event, Notification::Address(_)) {
                heard.push(event);
            }
        }
        anyhow::Ok(heard)
    })?;
    ensure!(heard == expected, "{heard:#?}");
    let drawn = heard.iter().filter(|event| subscription.matches(event));
    ensure!(drawn.count() == 4, "all but the default route that came");
    Ok(())
}

/// Returns how often the agent compared, and how many messages it read the last time.
fn looks(log: &str) -> (usize, Option<u64>) {
    let mut looks = log
        .lines()
        .filter(|line| line.contains("was compared with"));
    let messages = |line: &str| {
        let (_, rest) = line.split_once("messages=")?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let count = looks.clone().count();
    (count, looks.next_back().and_then(messages))
}

#[test]
fn the_agent_puts_ours_back_beside_them_and_does_not_look_when_they_go() -> Result<()> {
    const SLICES: u32 = 8;
    let mut lab = Lab::start(Plan::default())?;
    let _guest = ChainedInterface::on(&mut lab, "master")?;
    let node = lab.vpc.node("master").clone();
    let others = OthersRoutes::over(&node, "ens6")?;
    others.add(0..ROUTES)?;
    let log = || {
        let agents = lab.agents().find(|agent| agent.node() == "master");
        agents
            .map(ebbtide_vpc::agent::Agent::log)
            .unwrap_or_default()
    };
    // What the agent's interest depends on includes the pod that existed then.
    let wipe = || -> Result<()> {
        let before = looks(&log()).0;
        for family in ["-4", "-6"] {
            ip(&node, &[family, "route", "flush", "table", "7700"])?;
        }
        eventually("ours is put back", || {
            let routes = ip(&node, &["route", "show", "table", "7700"])?;
            let (count, messages) = looks(&log());
            ensure!(
                routes.contains("10.88.7.2") && count > before,
                "{routes}\n{}",
                log()
            );
            ensure!(
                messages.is_some_and(|messages| messages < 500),
                "{messages:?}"
            );
            Ok(())
        })
    };
    wipe()?;
    // Its repair may have been an event, too.
    thread::sleep(Duration::from_secs(3));
    let (before, _) = looks(&log());
    for slice in 0..SLICES {
        let one = ROUTES / SLICES;
        others.delete(slice * one..(slice + 1) * one)?;
        thread::sleep(Duration::from_millis(600));
    }
    let (after, _) = looks(&log());
    // One of the half-minute comparisons may be among them; each slice had one.
    ensure!(after - before <= 1, "{} looks\n{}", after - before, log());
    wipe()
}
