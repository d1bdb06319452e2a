//! The agent's netlink layer on the running kernel.

use anyhow::{Context as _, Result, ensure};
use ebbtide_kernel::netlink::{Batch, Netlink, direct::Direct, model::Route};
use ebbtide_vpc::{netns::Netns, snapshot::ip};
use tokio::runtime::Runtime;

/// So many links that the kernel cannot answer a dump with one message: only then can a second dump find the first one
/// unfinished.
const LINKS: usize = 150;

/// Opens a connection in the namespace, with the runtime that drives it.
fn opened(netns: &Netns) -> Result<(Runtime, Netlink)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let netlink = netns.run(|| {
        let _entered = runtime.enter();
        Ok(Netlink::open("in the test")?)
    })?;
    Ok((runtime, netlink))
}

#[test]
fn many_questions_at_once_are_all_answered_in_full() -> Result<()> {
    let netns = Netns::new("crowded")?;
    for number in 0..LINKS {
        ip(
            &netns,
            &["link", "add", &format!("b{number}"), "type", "bridge"],
        )?;
    }
    let (runtime, netlink) = opened(&netns)?;
    let answers = runtime.block_on(futures::future::join_all((0..32).map(|_| netlink.links())));
    for answer in answers {
        let links = answer.context("one of many")?;
        ensure!(links.len() == LINKS + 1, "{} links", links.len());
    }
    Ok(())
}

#[test]
fn a_route_of_ours_is_removed_as_it_is_read_whatever_the_kernel_made_of_it() -> Result<()> {
    let netns = Netns::new("removed")?;
    for command in [
        "link add near0 type veth peer name far0",
        "link set near0 up",
        "link set far0 up",
        "address add 10.9.0.5/24 dev near0",
        "-6 address add fd09::5/64 dev near0 nodad",
        // A route without a next hop, and one with next hop 0.0.0.0.
        "route add 10.1.0.0/16 dev near0 scope link table 7703 proto 235",
        "route add 10.2.0.0/16 dev near0 scope global table 7703 proto 235",
        "route add 10.3.0.0/16 dev near0 scope host table 7703 proto 235",
        "route add 0.0.0.0/1 dev near0 scope link table 7703 proto 235",
        "route add default dev near0 scope global table 7703 proto 235",
        "route add 10.4.0.0/16 via 10.9.0.9 dev near0 onlink table 7703 proto 235",
        "route add 10.5.0.0/16 via inet6 fe80::9 dev near0 onlink table 7703 proto 235",
        "route add 10.6.0.0/16 dev near0 src 10.9.0.5 table 7703 proto 235",
        "-6 route add fd01::/64 dev near0 table 7703 proto 235",
        "-6 route add ::/1 dev near0 table 7703 proto 235",
        "-6 route add default via fe80::9 dev near0 onlink table 7703 proto 235",
    ] {
        ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    let (runtime, netlink) = opened(&netns)?;
    runtime.block_on(async {
        let links = netlink.links().await?;
        let index = links.iter().find(|link| link.name == "near0");
        let index = index.context("near0 is not there")?.ifindex;
        let ours = netlink.owned(&links).await?;
        ensure!(ours.routes.len() == 11, "{:#?}", ours.routes);
        let mut batch = Batch::default();
        for route in &ours.routes {
            batch.delete_route(route, index);
        }
        batch.run(&netlink).await?;
        let left = netlink.owned(&links).await?;
        ensure!(left.routes.is_empty(), "{:#?}", left.routes);
        Ok(())
    })
}

/// As a repeated ADD and a take-over do for each of a thousand pods.
#[test]
fn routes_that_are_there_are_found_without_a_list_of_their_whole_table() -> Result<()> {
    const OTHER_PODS: u16 = 2_000;
    let netns = Netns::new("again")?;
    for command in [
        "link add near0 type veth peer name far0",
        "link set near0 up",
        "link set far0 up",
        "link add near1 type veth peer name far1",
        "link set near1 up",
        "link set far1 up",
    ] {
        ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    let route = |link: &str, destination: &str| -> Result<Route> {
        Ok(Route {
            link: link.into(),
            destination: destination.parse()?,
            via: None,
            source: None,
            table: 7700,
        })
    };
    let index = |link| netns.netlink()?.index(link);
    let (near0, near1) = (index("near0")?, index("near1")?);
    let mut all = Batch::default();
    for number in 0..OTHER_PODS {
        let destination = format!("10.{}.{}.1/32", number >> 8, number & 0xff);
        all.add_route(&route("near1", &destination)?, near1);
    }
    let pod = || -> Result<Batch> {
        let mut pod = Batch::default();
        pod.add_route(&route("near0", "10.200.0.1/32")?, near0);
        pod.add_route(&route("near0", "fd00::1/128")?, near0);
        Ok(pod)
    };
    netns.run(|| {
        let mut direct = Direct::open("in the test")?;
        direct.run(all)?;
        direct.run_missing(pod()?)?;
        let before = direct.received();
        direct.run_missing(pod()?)?;
        let read = direct.received() - before;
        ensure!(read.messages < 10, "{read:?}");
        // A deleted route is added, and a foreign one in its place with another destination is replaced.
        ip(
            &netns,
            &["-6", "route", "del", "fd00::1/128", "table", "7700"],
        )?;
        let elsewhere = "route replace 10.200.0.1/32 dev near1 table 7700 proto 235 scope link";
        ip(&netns, &elsewhere.split(' ').collect::<Vec<_>>())?;
        direct.run_missing(pod()?)?;
        for (family, destination) in [("-4", "10.200.0.1"), ("-6", "fd00::1")] {
            let found = ip(
                &netns,
                &[family, "route", "show", destination, "table", "7700"],
            )?;
            ensure!(found.contains("dev near0"), "{destination}: {found}");
        }
        // A foreign route that is the same but for its protocol is not taken for Ebbtide's.
        let foreign = "route replace 10.200.0.1/32 dev near0 table 7700 proto static scope link";
        ip(&netns, &foreign.split(' ').collect::<Vec<_>>())?;
        let refused = direct.run_missing(pod()?);
        let said = refused.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(said.contains("a foreign route"), "{said}");
        let found = ip(&netns, &["route", "show", "10.200.0.1", "table", "7700"])?;
        ensure!(found.contains("proto static"), "{found}");
        Ok(())
    })
}

#[test]
fn what_the_kernel_takes_for_itself_is_local_and_nothing_else_is() -> Result<()> {
    let netns = Netns::new("local")?;
    for command in [
        "link set lo up",
        "link add near0 type veth peer name far0",
        "link set near0 up",
        "link set far0 up",
        "address add 10.9.0.5/24 dev near0",
        "address add 10.9.1.5/32 dev lo",
        "-6 address add fd09::5/64 dev near0 nodad",
        "-6 address add fd09:1::5/128 dev lo",
        "route add blackhole 198.51.100.0/24",
        "route add unreachable 203.0.113.0/24",
        "-6 route add prohibit 2001:db8:7::/64",
    ] {
        ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    let (runtime, netlink) = opened(&netns)?;
    for (address, expected) in [
        ("10.9.0.5", true),
        ("10.9.1.5", true),
        ("127.0.0.1", true),
        ("10.9.0.6", false),
        ("192.0.2.1", false),
        ("198.51.100.1", false),
        ("203.0.113.1", false),
        ("fd09::5", true),
        ("fd09:1::5", true),
        ("::1", true),
        ("fd09::6", false),
        ("2001:db8::1", false),
        ("2001:db8:7::1", false),
    ] {
        let found = runtime.block_on(netlink.is_local(address.parse()?));
        let found = found.with_context(|| format!("asking for {address}"))?;
        ensure!(found == expected, "{address}: {found}");
    }
    Ok(())
}

/// The kernel creates the main table with its first route: a node without IPv4 has none.
#[test]
fn a_namespace_without_a_route_has_no_ways_and_is_no_error() -> Result<()> {
    let netns = Netns::new("bare")?;
    let (runtime, netlink) = opened(&netns)?;
    let look = || {
        runtime.block_on(async {
            let links = netlink.links().await?;
            let defaults = netlink.default_routes(&links).await?;
            Ok::<_, ebbtide_kernel::netlink::Error>((defaults, netlink.routes_by_gateways().await?))
        })
    };
    let (defaults, by_gateways) = look()?;
    ensure!(defaults.is_empty() && by_gateways.is_empty(), "bare");
    for command in [
        "link set lo up",
        "link add near0 type veth peer name far0",
        "link set near0 up",
        "link set far0 up",
        "address add 10.9.0.5/24 dev near0",
        "route add default via 10.9.0.1",
        "route add 203.0.113.0/24 via 10.9.0.7",
    ] {
        ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    let (defaults, by_gateways) = look()?;
    ensure!(defaults.len() == 1, "{defaults:?}");
    let [one] = &by_gateways[..] else {
        anyhow::bail!("{by_gateways:?}");
    };
    let text = format!("{} via {}", one.destination, one.via);
    ensure!(text == "203.0.113.0/24 via 10.9.0.7", "{text}");
    Ok(())
}
