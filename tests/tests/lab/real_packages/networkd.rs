//! The real systemd-networkd of this machine, on a node, with fixed addresses in place of DHCP. It runs before the agent does.

use std::path::Path;

use anyhow::{Result, ensure};
use ebbtide_vpc::{
    image::{Image, unpacked},
    metadata::Cloud,
    netns::Netns,
    patience::eventually,
    plan::{Family, Nic},
    skip::{Need, skip},
    snapshot::ip,
    vpc::Vpc,
};
use ipnet::IpNet;

use super::super::cloud::{NODE, Site};

/// networkd with D-Bus, and the NICs that it has configured when `$SHARED/online` is there.
const BEGIN: &str = r#"
mkdir -p /run/dbus /run/systemd/network
dbus-daemon --system --fork --nopidfile
for nic in ens5 ens6; do ip address flush dev $nic scope global; done
/lib/systemd/systemd-networkd &
for nic in ens5 ens6; do
    /lib/systemd/systemd-networkd-wait-online -i $nic --timeout 20
done
touch "$SHARED/online"
"#;

/// Builds a VPC of AWS, with networkd and then `script` on the node. `prefix` is how the package begins the name of its
/// files for NICs, as `70` in `70-ens5.network`. Returns none where a program is missing: the test is skipped.
pub(super) fn start(
    package: &str,
    file: &str,
    programs: &[&str],
    prefix: &str,
    script: &str,
) -> Result<Option<(Site, Image)>> {
    let Some(package) = unpacked(package, file) else {
        return Ok(None);
    };
    let own = ["/lib/systemd/systemd-networkd", "/usr/bin/dbus-daemon"];
    for program in own.iter().chain(programs) {
        if !Path::new(program).exists() {
            skip(Need::Images, format!("this machine has no {program}"));
            return Ok(None);
        }
    }
    let site = Site::build(Cloud::Aws)?;
    ask_with_own_address(site.lab.vpc.node(NODE))?;
    let script = files(&site.lab.vpc, prefix) + BEGIN + script;
    let image = Image::start(site.lab.vpc.node(NODE), package.as_os_str(), &script)?;
    eventually("networkd has configured the NICs", || {
        image.runs()?;
        ensure!(image.shared("online").exists(), "{}", image.log());
        Ok(())
    })?;
    Ok(Some((site.started(Cloud::Aws)?, image)))
}

/// Has the node ask for neighbours with its own address.
///
/// A known gap of the agent's, and not of this test's: where a NIC has a pod's address, the kernel's ARP request for a packet
/// of that pod has the pod's as its sender (`arp_solicit`, net/ipv4/arp.c), and ipvlan gives the reply to the pod
/// (`ipvlan_handle_mode_l3`). networkd's reload forgets all neighbours, so this comes about: without this setting the gateway stays
/// unknown until the node itself sends something there.
fn ask_with_own_address(node: &Netns) -> Result<()> {
    let all = ["ens5", "ens6"].map(|nic| format!("net/ipv4/conf/{nic}/arp_announce"));
    node.sysctls(&[(&all[0], "2"), (&all[1], "2")])
}

/// Returns the lines that stand in for DHCP and router advertisements at a NIC.
fn fixed(nic: &Nic) -> String {
    let [v4, v6] = Family::BOTH.map(|family| nic.subnet(family));
    let route = |gateway, more: &str| format!("[Route]\nGateway={gateway}\n{more}");
    let routes = match nic.name.as_str() {
        "ens5" => [route(v4.gateway, ""), route(v6.gateway, "")].concat(),
        _ => [
            route(v6.gateway, "Metric=2000\n"),
            route(v4.gateway, "Table=10001\n"),
            route(v6.gateway, "Table=10001\n"),
        ]
        .concat(),
    };
    format!(
        "[Match]\nDriver=\nDriver=veth\nName={}\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nIPv6DuplicateAddressDetection=0\n\
         Address={}\nAddress={}\n{routes}",
        nic.name, v4.primary, v6.primary
    )
}

/// Returns commands that write [`fixed`] for a NIC by itself, and in addition to what the package writes.
fn files(vpc: &Vpc, prefix: &str) -> String {
    let of_nic = |name: &str| {
        let text = fixed(vpc.nic(NODE, name));
        format!(
            "mkdir -p /etc/systemd/network/{prefix}-{name}.network.d\n\
             cat > /etc/systemd/network/75-{name}.network <<'EOF'\n{text}EOF\n\
             cp /etc/systemd/network/75-{name}.network /etc/systemd/network/{prefix}-{name}.network.d/vpc.conf\n"
        )
    };
    ["ens5", "ens6"].map(of_nic).concat()
}

/// Whether a NIC of the node has an address.
pub(super) fn has(node: &Netns, nic: &str, address: IpNet) -> Result<bool> {
    let all = ip(node, &["-4", "-o", "address", "show", "dev", nic])?;
    Ok(all.contains(&format!(" {address} ")))
}
