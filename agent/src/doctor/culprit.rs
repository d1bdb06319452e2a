//! Who put an address on the host, and how its users turn that off.

use std::{fs, io, path::Path};

use ebbtide_kernel::netlink::{
    foreign::ForeignRule,
    local_routes::{GOOGLE_GUEST_AGENT, LocalRoute},
};

use crate::host_root::HostRoot;

/// Where amazon-ec2-net-utils writes what it adds to a NIC: a directory for each, `70-NIC.network.d`.
const NETWORKD: &str = "/run/systemd/network";
const EC2_NET_UTILS: &str = "ec2net_alias.conf";
/// What cloud-init writes, with netplan, NetworkManager or ifupdown.
const CLOUD_INIT: [&str; 3] = [
    "/etc/netplan/50-cloud-init.yaml",
    "/etc/NetworkManager/system-connections/cloud-init-",
    "/etc/network/interfaces.d/50-cloud-init",
];
/// The priorities of nm-cloud-setup's rules (nm-cloud-setup/main.c of NetworkManager).
const NM_CLOUD_SETUP: [u32; 3] = [30_200, 30_350, 30_400];

/// The files of programs that put addresses on NICs, and their rules.
#[derive(Debug, Default)]
pub(super) struct Culprits {
    /// Paths and contents, of amazon-ec2-net-utils and of cloud-init.
    ec2_net_utils: Vec<(String, String)>,
    cloud_init: Vec<(String, String)>,
    nm_cloud_setup: bool,
}

impl Culprits {
    /// Reads the host's files, below its root directory.
    pub(super) fn read(root: &HostRoot, rules: &[ForeignRule]) -> Self {
        let of_nm = |rule: &ForeignRule| NM_CLOUD_SETUP.contains(&rule.priority);
        let files = root.run(|| (drop_ins(NETWORKD.as_ref()), cloud_init()));
        let (ec2_net_utils, cloud_init) = files.unwrap_or_default();
        Self {
            ec2_net_utils,
            cloud_init,
            nm_cloud_setup: rules.iter().any(of_nm),
        }
    }

    /// Returns who put the address on the link, and its switch.
    pub(super) fn of(&self, address: &str, link: &str) -> String {
        let named = |files: &[(String, String)]| {
            let mut files = files.iter();
            let found = files.find(|(_, text)| mentions(text, address));
            found.map(|(path, _)| path.clone())
        };
        if let Some(path) = named(&self.ec2_net_utils) {
            return format!(
                "amazon-ec2-net-utils put it there ({path}), and does again within a minute: `systemctl mask --now \
                 refresh-policy-routes@{link}.timer policy-routes@{link}.service`, give {link} a file of your own in \
                 /etc/systemd/network, or remove the package"
            );
        }
        if let Some(path) = named(&self.cloud_init) {
            return format!(
                "cloud-init put it there ({path}): set `datasource: {{Ec2: {{apply_full_imds_network_config: false}}}}` \
                 (on Azure `datasource: {{Azure: {{apply_network_config_for_secondary_ips: false}}}}`), or `network: \
                 {{config: disabled}}`, in /etc/cloud/cloud.cfg.d, and take it out of that file"
            );
        }
        if self.nm_cloud_setup {
            return format!(
                "NetworkManager's nm-cloud-setup runs here and puts such addresses on NICs: set \
                 `org.freedesktop.nm-cloud-setup.skip=yes` in the section `user` of the profile of {link}, or `systemctl \
                 disable --now nm-cloud-setup.timer`"
            );
        }
        format!(
            "tell what put it there (cloud-init, ec2-net-utils, NetworkManager) to leave {link} alone"
        )
    }
}

/// Returns who added a local route, and its switch.
pub(super) fn of_route(route: &LocalRoute) -> String {
    if route.protocol == GOOGLE_GUEST_AGENT {
        return "google-guest-agent added it (protocol 66): set `ip_aliases = false` in the section `[IpForwarding]` of \
                /etc/default/instance_configs.cfg, or `ip_forwarding = false` in `[NetworkInterfaces]`, and restart it"
            .to_owned();
    }
    format!(
        "tell what added it to leave these addresses out (its protocol is {}: `ip route show table local`)",
        route.protocol
    )
}

/// Whether the text has this address, and not only one that it is the beginning or the end of.
fn mentions(text: &str, address: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != ':');
    words.any(|word| word == address)
}

fn read_file(path: &Path) -> Option<(String, String)> {
    let text = fs::read_to_string(path).ok()?;
    Some((path.display().to_string(), text))
}

fn drop_ins(directory: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let entries = entries.filter_map(io::Result::ok);
    let files = entries.map(|entry| entry.path().join(EC2_NET_UTILS));
    files.filter_map(|path| read_file(&path)).collect()
}

fn cloud_init() -> Vec<(String, String)> {
    let named = CLOUD_INIT.iter().flat_map(|start| {
        let path = Path::new(start);
        let parent = path.parent().unwrap_or(path);
        let entries = fs::read_dir(parent).into_iter().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(move |found| found.to_string_lossy().starts_with(start))
    });
    named.filter_map(|path| read_file(&path)).collect()
}

#[cfg(test)]
mod tests {
    use ebbtide_types::Family;

    use super::*;

    #[test]
    fn who_put_an_address_there_is_known_by_its_files_and_rules() {
        let directory = tempfile::tempdir().unwrap();
        let of_nic = directory.path().join("70-ens6.network.d");
        fs::create_dir(&of_nic).unwrap();
        let text = "# Generated by policy-routes\n[Network]\nAddress=10.71.8.41/32\nAddress=10.71.8.42/32\n";
        fs::write(of_nic.join(EC2_NET_UTILS), text).unwrap();
        let ec2_net_utils = drop_ins(directory.path());
        assert_eq!(ec2_net_utils.len(), 1);
        let netplan = "      addresses:\n      - \"10.71.8.4/24\"\n      - fd71:8::4/64\n";
        let culprits = Culprits {
            ec2_net_utils,
            cloud_init: vec![(CLOUD_INIT[0].to_owned(), netplan.to_owned())],
            nm_cloud_setup: false,
        };
        for (address, who, switch) in [
            ("10.71.8.41", "amazon-ec2-net-utils", "policy-routes@ens6"),
            ("10.71.8.4", "cloud-init", "apply_full_imds_network_config"),
            ("fd71:8::4", "50-cloud-init.yaml", "config: disabled"),
            ("10.71.8.1", "tell what put it there", "ens6"),
        ] {
            let told = culprits.of(address, "ens6");
            assert!(told.contains(who) && told.contains(switch), "{told}");
        }
        let rules = [ForeignRule::new(Family::V4, 30_350)];
        let culprits = Culprits {
            nm_cloud_setup: rules
                .iter()
                .any(|rule| NM_CLOUD_SETUP.contains(&rule.priority)),
            ..Culprits::default()
        };
        let told = culprits.of("10.71.8.4", "ens6");
        assert!(told.contains("nm-cloud-setup.skip=yes"), "{told}");
    }

    #[test]
    fn who_added_a_local_route_is_known_by_its_protocol() {
        for (protocol, who) in [(66, "google-guest-agent"), (3, "its protocol is 3")] {
            let net = "10.24.3.0/24".parse().unwrap();
            let told = of_route(&LocalRoute { net, protocol });
            assert!(told.contains(who), "{told}");
        }
    }
}
