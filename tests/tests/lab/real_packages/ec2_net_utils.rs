//! amazon-ec2-net-utils, whose timer puts all secondary addresses on the NIC, with the systemd-networkd that it configures.
//!
//! Real are its scripts, networkd, and the reload by D-Bus. A loop stands in for systemd's timer, every three seconds instead
//! of every minute, and fixed addresses for DHCP.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{patience::eventually, snapshot::ip};
use ipnet::IpNet;

use super::{
    super::cloud::{NODE, v4},
    Beside, in_the_end,
    networkd::{self, has},
};

/// The units of the package, once `$SHARED/go` is there, until `$SHARED/stop` is.
const SCRIPT: &str = r#"
cp "$PACKAGE"/usr/lib/systemd/network/80-ec2.network /usr/lib/systemd/network/
export LIBDIR_OVERRIDE="$PACKAGE/usr/share/amazon-ec2-net-utils"
unit() { "$PACKAGE/usr/bin/setup-policy-routes" "$1" "$2" && "$PACKAGE/usr/bin/setup-policy-routes" "$1" cleanup; }
until [ -e "$SHARED/go" ]; do sleep 0.1; done
for nic in ens5 ens6; do EC2_IF_INITIAL_SETUP=true unit $nic start; done
touch "$SHARED/went"
until [ -e "$SHARED/stop" ]; do
    sleep 3
    for nic in ens5 ens6; do unit $nic start || echo "$nic: failed"; done
done
for nic in ens5 ens6; do unit $nic stop; done
touch "$SHARED/stopped"
wait
"#;

#[test]
fn pods_live_on_beside_the_real_ec2_net_utils_and_networkd_without_dhcp() -> Result<()> {
    let started = networkd::start(
        "amazon-ec2-net-utils",
        "usr/bin/setup-policy-routes",
        &["/usr/bin/curl"],
        "70",
        SCRIPT,
    )?;
    let Some((site, image)) = started else {
        return Ok(());
    };
    let beside = Beside::start(site)?;
    let (site, node) = (&beside.site, beside.node());
    let log = || beside.log(&image);
    let earlier = site.pod("ens6", "earlier")?;
    beside
        .lives(&earlier)
        .context("beside networkd alone")
        .with_context(log)?;

    fs::write(image.shared("go"), "")?;
    let own = v4(&earlier);
    let held = |what: &str, address: IpNet, expected: bool| {
        in_the_end(
            &format!("{what}: {address} on the NIC is {expected}"),
            || {
                let rules = ip(node, &["rule"])?;
                let found = (
                    has(node, "ens6", address)?,
                    rules.contains(&address.addr().to_string()),
                );
                ensure!(found.0 == expected, "{found:?}, {rules}");
                Ok(())
            },
        )
        .with_context(log)
    };
    held("at first", own, true)?;
    ensure!(has(node, "ens5", v4(&beside.other))?, "{}", image.log());
    eventually("all traffic goes on", || beside.lives(&earlier)).with_context(log)?;

    // The node has what is not in use, too.
    beside.refuses(&image)?;

    // Prefixes get no address, but a rule.
    let range: IpNet = "210.22.16.64/28".parse()?;
    site.lab.vpc.assign(NODE, "ens6", range)?;
    site.becomes("the prefix is usable", || {
        ensure!(site.blocks("ens6", "usable")?.contains(&range));
        Ok(())
    })?;
    in_the_end("it has a rule", || {
        let rules = ip(node, &["rule"])?;
        ensure!(
            rules.contains("from 210.22.16.64/28 lookup 10001"),
            "{rules}"
        );
        Ok(())
    })
    .with_context(log)?;
    let later = site.pod("ens6", "later").with_context(log)?;
    ensure!(range.contains(&v4(&later)), "{:?}", later.addresses);
    eventually("a pod of the prefix", || beside.lives(&later)).with_context(log)?;

    site.lab.vpc.unassign(NODE, "ens6", own)?;
    held("taken away", own, false)?;
    eventually("within the node it lives on", || {
        beside.lives_within(&earlier)
    })
    .with_context(log)?;
    site.lab.vpc.assign(NODE, "ens6", own)?;
    held("given back", own, true)?;
    eventually("it lives again", || beside.lives(&earlier)).with_context(log)?;
    beside.lives(&later).with_context(log)?;

    earlier.delete()?;
    later.delete()?;
    ensure!(
        has(node, "ens6", own)?,
        "the pod's end is nothing to ec2-net-utils"
    );
    image.runs()?;
    fs::write(image.shared("stop"), "")?;
    held("stopped", own, false)?;
    beside.recovers(&image)
}
