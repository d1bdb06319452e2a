//! The real google-guest-agent, which adds a local route for each alias range. Accounts, clock and DHCP are left out.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use ebbtide_vpc::{
    image::{self, Image},
    netns::Netns,
    snapshot::ip,
};
use ipnet::IpNet;

/// The package's own configuration, less what would make users and DHCP leases.
const SCRIPT: &str = r#"
cp "$PACKAGE/etc/default/instance_configs.cfg" /etc/default/
sed -i -e 's/^\(accounts_daemon\|clock_skew_daemon\|set_host_keys\|set_boto_config\|setup\) = true/\1 = false/' \
    /etc/default/instance_configs.cfg
exec "$PACKAGE/usr/bin/google_guest_agent"
"#;

/// Returns its package's directory; none if it is not on this machine: the test is skipped.
#[must_use]
pub fn unpacked() -> Option<PathBuf> {
    image::unpacked("google-guest-agent", "usr/bin/google_guest_agent")
}

/// Starts it on a node.
///
/// # Errors
/// If it cannot be started.
pub fn start(node: &Netns, package: &Path) -> Result<Image> {
    Image::start(node, package.as_os_str(), SCRIPT)
}

/// Returns its local routes of IPv4.
///
/// # Errors
/// If `ip` fails.
pub fn routes(node: &Netns) -> Result<Vec<IpNet>> {
    let all = ip(node, &["route", "show", "table", "local", "proto", "66"])?;
    let of_line = |line: &str| -> Result<IpNet> {
        let mut words = line.split_whitespace();
        let destination = words.nth(1).context("a route to nowhere")?;
        Ok(match destination.contains('/') {
            true => destination.parse()?,
            false => destination.parse::<IpAddr>()?.into(),
        })
    };
    all.lines().map(of_line).collect()
}
