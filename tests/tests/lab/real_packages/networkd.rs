//! The real systemd-networkd of this machine, on a node, with fixed addresses in place of DHCP. It runs before the agent does.

use std::{ffi::OsStr, net::IpAddr, path::Path};

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
    if !are_there(programs) {
        return Ok(None);
    }
    run(package.as_os_str(), prefix, "", script).map(Some)
}

/// Whether this machine has networkd and these programs; else the test is skipped.
fn are_there(programs: &[&str]) -> bool {
    let own = ["/lib/systemd/systemd-networkd", "/usr/bin/dbus-daemon"];
    let mut all = own.iter().chain(programs);
    let missing = all.find(|program| !Path::new(program).exists());
    if let Some(program) = missing {
        skip(Need::Images, format!("this machine has no {program}"));
    }
    missing.is_none()
}

fn run(package: &OsStr, prefix: &str, first: &str, script: &str) -> Result<(Site, Image)> {
    let site = Site::build(Cloud::Aws)?;
    let script = files(&site.lab.vpc, prefix) + first + BEGIN + script;
    let image = Image::start(site.lab.vpc.node(NODE), package, &script)?;
    eventually("networkd has configured the NICs", || {
        image.runs()?;
        ensure!(image.shared("online").exists(), "{}", image.log());
        Ok(())
    })?;
    Ok((site.started(Cloud::Aws)?, image))
}

/// Returns the lines that stand in for DHCP and router advertisements at a NIC.
fn fixed(nic: &Nic) -> String {
    let [v4, v6] = Family::BOTH.map(|family| nic.subnet(family));
    // As networkd's own DHCP client has it: the NIC's primary address is the node's source by its IPv4 routes, whichever
    // address comes first.
    let source = format!("PreferredSource={}\n", v4.primary.addr());
    let route = |gateway: IpAddr, more: &str| {
        let source = if gateway.is_ipv4() {
            source.as_str()
        } else {
            ""
        };
        format!("[Route]\nGateway={gateway}\n{source}{more}")
    };
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
