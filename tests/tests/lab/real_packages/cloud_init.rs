//! cloud-init, which puts all secondary addresses on the NICs at the first boot, with their subnets' lengths, and does not
//! follow later changes.
//!
//! Real are its data source for EC2, which reads the double, its renderer for networkd, and networkd. A script calls its stages,
//! and tells it what DMI would, and which links are NICs: at two links of one MAC, as the node's ends of pods' pairs have, this
//! version gives up. Only a boot without pods, or one with one, gets further by itself.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{patience::eventually, snapshot::ip};
use ipnet::IpNet;

use super::{
    super::cloud::{NODE, v4},
    Beside, in_the_end,
    networkd::{self, has},
};

/// A boot, once `$SHARED/go` is there. At `$SHARED/stop` it is switched off.
const SCRIPT: &str = r#"
cat > /run/boot.py <<'EOF'
from cloudinit import dmi

UUID = "ec2e1916-9099-7caf-fd21-012345abcdef"
dmi.read_dmi_data = {"system-uuid": UUID, "system-serial-number": UUID}.get

from cloudinit import distros, helpers, net

net.get_devicelist = lambda: ["ens5", "ens6"]

from cloudinit.net import network_state, networkd
from cloudinit.sources import DataSourceEc2

paths = helpers.Paths({"cloud_dir": "/run/cloud", "run_dir": "/run/cloud-init"})
distro = distros.fetch("debian")("debian", {}, paths)
source = DataSourceEc2.DataSourceEc2({}, distro, paths)
assert source.get_data(), "no metadata"
print(source.network_config)
state = network_state.parse_net_config_data(source.network_config)
networkd.Renderer().render_network_state(state)
EOF
until [ -e "$SHARED/go" ]; do sleep 0.1; done
PYTHONPATH="$PACKAGE/usr/lib/python3/dist-packages" PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -S /run/boot.py
networkctl reload
touch "$SHARED/went"
until [ -e "$SHARED/stop" ]; do sleep 0.1; done
rm /etc/systemd/network/10-cloud-init-*.network
networkctl reload
wait
"#;

#[test]
fn pods_live_on_beside_the_real_cloud_init_and_networkd_without_dhcp_and_dmi() -> Result<()> {
    let started = networkd::start(
        "cloud-init",
        "usr/lib/python3/dist-packages/cloudinit/sources/DataSourceEc2.py",
        &["/usr/bin/python3"],
        "10-cloud-init",
        SCRIPT,
    )?;
    let Some((site, image)) = started else {
        return Ok(());
    };
    let beside = Beside::start(site)?;
    let (site, node) = (&beside.site, beside.node());
    let log = || beside.log(&image);
    let earlier = site.pod("ens6", "earlier")?;
    beside.lives(&earlier).with_context(log)?;

    fs::write(image.shared("go"), "")?;
    let own = v4(&earlier);
    // As the NIC has it: with the length of the subnet.
    let on_nic = IpNet::new(own.addr(), 24)?;
    let v6 = earlier.addresses.iter().find(|own| own.is_ipv6());
    let v6 = v6.context("no IPv6 address")?.to_string();
    in_the_end("the node has the pod's addresses", || {
        ensure!(has(node, "ens6", on_nic)?, "{}", image.log());
        let all = ip(node, &["-6", "-o", "address", "show", "dev", "ens6"])?;
        ensure!(all.contains(&format!(" {v6}/")), "{all}");
        Ok(())
    })
    .with_context(log)?;
    eventually("all traffic goes on", || beside.lives(&earlier)).with_context(log)?;
    beside.refuses(&image)?;

    // What is assigned later, it leaves to pods.
    let [new, new6]: [IpNet; 2] = ["210.22.16.64/28".parse()?, "fd00:2116::77/128".parse()?];
    for block in [new, new6] {
        site.lab.vpc.assign(NODE, "ens6", block)?;
        site.becomes("it is usable", || {
            ensure!(site.blocks("ens6", "usable")?.contains(&block));
            Ok(())
        })
        .with_context(log)?;
    }
    let later = site.pod("ens6", "later").with_context(log)?;
    ensure!(new.contains(&v4(&later)), "{:?}", later.addresses);
    eventually("a pod of what is new", || beside.lives(&later)).with_context(log)?;

    // What is taken away stays on the node.
    site.lab.vpc.unassign(NODE, "ens6", own)?;
    site.becomes("held", || {
        ensure!(site.blocks("ens6", "held")?.contains(&own));
        Ok(())
    })?;
    ensure!(has(node, "ens6", on_nic)?);
    beside.lives_within(&earlier).with_context(log)?;
    earlier.delete()?;
    ensure!(
        has(node, "ens6", on_nic)?,
        "the pod's end is nothing to cloud-init"
    );
    beside.lives(&later).with_context(log)?;
    later.delete()?;

    image.runs()?;
    fs::write(image.shared("stop"), "")?;
    beside.recovers(&image)
}
