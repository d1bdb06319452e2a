//! The interfaces of all pods in memory, and their addresses: every ADD asks whether addresses of the node are pods'.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::Deref,
    sync::Arc,
};

use ebbtide_ipam::pool::Owner;
use ebbtide_kernel::podnet::PodNet;
use ipnet::IpNet;

/// The interfaces by their owners. They are read as a map.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    all: HashMap<Owner, Arc<PodNet>>,
    /// How many interfaces have an address: two for a moment, where another plugin assigned it.
    addresses: BTreeMap<IpAddr, usize>,
}

impl Interfaces {
    /// Adds an interface, in place of the owner's present one.
    pub(super) fn insert(&mut self, owner: Owner, net: Arc<PodNet>) {
        for address in addresses(&net) {
            *self.addresses.entry(address).or_default() += 1;
        }
        if let Some(before) = self.all.insert(owner, net) {
            self.leave(&before);
        }
    }

    /// Removes the interface of an owner, if there is one.
    pub(super) fn remove(&mut self, owner: &Owner) {
        if let Some(net) = self.all.remove(owner) {
            self.leave(&net);
        }
    }

    fn leave(&mut self, net: &PodNet) {
        for address in addresses(net) {
            let Some(count) = self.addresses.get_mut(&address) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
    }

    /// Whether an interface has this address.
    pub(super) fn have(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Whether an interface has an address of this network.
    pub(super) fn have_within(&self, net: &IpNet) -> bool {
        let mut within = self.addresses.range(net.network()..=net.broadcast());
        within.next().is_some()
    }
}

impl Deref for Interfaces {
    type Target = HashMap<Owner, Arc<PodNet>>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

/// Returns the addresses of an interface.
pub(super) fn addresses(net: &PodNet) -> impl Iterator<Item = IpAddr> {
    net.addresses.iter().map(|own| own.address.addr())
}

#[cfg(test)]
mod tests {
    use ebbtide_kernel::{
        node::NodeFacts,
        podnet::{self, Existing, NetworkSpec, PodAddress, Sandbox},
    };
    use ebbtide_types::settings::Settings;

    use super::*;

    fn owner(container: &str) -> Owner {
        Owner {
            network: "net".into(),
            container_id: container.into(),
            interface: "eth0".into(),
        }
    }

    fn net(texts: &[&str]) -> Arc<PodNet> {
        let sandbox = Sandbox {
            container_id: "c".into(),
            interface: "eth0".into(),
            netns: "/run/netns/c".into(),
            netns_inode: 1,
            pid_namespace: None,
            pod: "default/web".into(),
        };
        let spec = NetworkSpec {
            made_before: Some(1500),
            ..NetworkSpec::named("net")
        };
        let own = |text: &&str| PodAddress {
            address: text.parse().unwrap(),
            pool: String::new(),
            gateway: None,
            routes: Vec::new(),
        };
        let addresses: Vec<PodAddress> = texts.iter().map(own).collect();
        let (existing, facts, settings) = (
            Existing::default(),
            NodeFacts::default(),
            Settings::default(),
        );
        let net = podnet::plan(&sandbox, &existing, &spec, &addresses, &facts, &settings);
        Arc::new(net.unwrap())
    }

    #[test]
    fn an_address_is_there_as_long_as_any_interface_has_it() {
        let mut interfaces = Interfaces::default();
        let [a, b]: [IpAddr; 2] = ["10.0.0.5", "fd00::5"].map(|text| text.parse().unwrap());
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        let both = net(&["10.0.0.5/24", "fd00::5/64"]);
        interfaces.insert(owner("one"), Arc::clone(&both));
        interfaces.insert(owner("two"), net(&["10.0.0.5/24"]));
        assert!(interfaces.have(a) && interfaces.have(b));
        for (text, is_there) in [
            ("10.0.0.4/31", true),
            ("10.0.0.6/31", false),
            ("0.0.0.0/0", true),
            ("fd00::/64", true),
            ("fd01::/64", false),
        ] {
            assert_eq!(interfaces.have_within(&range(text)), is_there, "{text}");
        }
        // The same one again, and another plan of it.
        interfaces.insert(owner("one"), both);
        interfaces.insert(owner("one"), net(&["10.0.0.5/24"]));
        assert!(interfaces.have(a) && !interfaces.have(b));
        interfaces.remove(&owner("one"));
        assert!(interfaces.have(a));
        interfaces.remove(&owner("two"));
        interfaces.remove(&owner("two"));
        assert!(!interfaces.have(a) && interfaces.addresses.is_empty());
        assert!(interfaces.is_empty());
    }
}
