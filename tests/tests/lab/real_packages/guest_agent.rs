//! google-guest-agent, which adds a local route for each alias range and follows the metadata by long polls.

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::guest_agent;
use ebbtide_vpc::{metadata::Cloud, patience::eventually};
use ipnet::IpNet;

use super::{
    super::cloud::{NODE, Site, v4},
    Beside,
};

#[test]
fn pods_live_on_beside_googles_real_agent_without_its_accounts_and_dhcp() -> Result<()> {
    let Some(package) = guest_agent::unpacked() else {
        return Ok(());
    };
    let beside = Beside::start(Site::known(Cloud::Gcp)?)?;
    let (site, node) = (&beside.site, beside.node());
    let earlier = site.pod("ens6", "earlier")?;
    beside.lives(&earlier).context("alone")?;

    let agent = guest_agent::start(node, &package)?;
    let log = || beside.log(&agent);
    let follows = |what: &str| {
        eventually(format!("{what}: the routes are the alias ranges"), || {
            let mut all = site.lab.vpc.assigned(NODE, "ens5");
            all.extend(site.lab.vpc.assigned(NODE, "ens6"));
            all.retain(|block| matches!(block, IpNet::V4(_)));
            let (mut routes, mut all) = (guest_agent::routes(node)?, all);
            routes.sort_unstable();
            all.sort_unstable();
            ensure!(routes == all, "{routes:?}, assigned: {all:?}");
            Ok(())
        })
        .with_context(log)
    };
    follows("at first")?;
    eventually("all traffic goes on", || beside.lives(&earlier)).with_context(log)?;

    let later = site.pod("ens6", "later")?;
    ensure!(
        guest_agent::routes(node)?.contains(&v4(&later)),
        "{}",
        agent.log()
    );
    // At once: nothing comes after the answer to ADD.
    beside
        .lives(&later)
        .context("added meanwhile")
        .with_context(log)?;

    let range: IpNet = "10.99.0.0/28".parse()?;
    site.lab.vpc.assign(NODE, "ens6", range)?;
    follows("assigned")?;
    site.becomes("the range is usable", || {
        ensure!(site.blocks("ens6", "usable")?.contains(&range));
        Ok(())
    })?;
    let mut pods = Vec::new();
    while pods.last().is_none_or(|pod| !range.contains(&v4(pod))) {
        ensure!(pods.len() < 6, "no pod got an address of {range}");
        pods.push(site.pod("ens6", &format!("p{}", pods.len()))?);
    }
    let last = pods.last().context("no pod")?;
    beside.lives(last).context("of a range").with_context(log)?;

    let gone = v4(&earlier);
    site.lab.vpc.unassign(NODE, "ens6", gone)?;
    follows("taken away")?;
    site.becomes("held", || {
        ensure!(site.blocks("ens6", "held")?.contains(&gone));
        Ok(())
    })?;
    eventually("within the node it lives on", || {
        beside.lives_within(&earlier)
    })
    .with_context(log)?;
    beside.lives(&later).with_context(log)?;
    let again = v4(&later);
    earlier.delete()?;
    later.delete()?;
    for pod in pods {
        pod.delete()?;
    }
    // Nobody has taken a route of the guest agent's.
    follows("without pods")?;
    let next = site.pod("ens6", "next")?;
    beside.lives(&next).with_context(log)?;
    next.delete()?;
    ensure!(guest_agent::routes(node)?.contains(&again));
    agent.runs()?;
    beside.ends()
}
