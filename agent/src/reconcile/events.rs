//! Decides which events of pods' namespaces are relevant. Pure functions: an event only names what is to be compared,
//! and the comparison decides. For the host's events see [`ebbtide_kernel::node::Interest`].

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use ebbtide_kernel::{
    netlink::other_netns::Change,
    node::is_link_local,
    podnet::{PodNet, has_alias},
};
use ebbtide_types::IpvlanMode;

/// Whether netlink events of other namespaces may be changes to Ebbtide's interfaces there. An interface that is being
/// made has no record yet: the comparison then costs a little, and finds nothing.
#[must_use]
pub fn concern_guarded_pods<'a>(
    events: &[Change],
    interfaces: impl Iterator<Item = &'a Arc<PodNet>>,
) -> bool {
    let (mut own, mut modes) = (HashSet::<IpAddr>::new(), HashSet::<IpvlanMode>::new());
    for net in interfaces {
        own.extend(net.ips());
        modes.extend(net.ipvlan.as_ref().map(|ipvlan| ipvlan.mode));
    }
    events.iter().any(|event| match event {
        // The kernel refuses another pod's address on the same NIC, though not on another NIC.
        Change::Address(address) => {
            !address.is_loopback() && (is_link_local(address) || !own.contains(address))
        }
        Change::Mode(mode) => modes.len() > 1 || !modes.contains(mode),
        Change::Up(_) => false,
        Change::HookGone | Change::Overrun => true,
    })
}

/// Whether the events may come from a link that was set up in a pod beside Ebbtide's. A link without the flag has no
/// routes; with it, it may have one at any time, whatever its addresses. Ebbtide's have their alias before they are up.
#[must_use]
pub fn are_foreign(events: &[Change]) -> bool {
    events.iter().any(|event| match event {
        Change::Up(link) => !has_alias(link),
        Change::Overrun => true,
        Change::Address(_) | Change::Mode(_) | Change::HookGone => false,
    })
}

/// Whether the spoof guard is on for what the interface sends.
#[must_use]
pub fn is_guarded(net: &PodNet) -> bool {
    let mut filters = net.in_pod.filters.iter();
    net.ipvlan.is_some()
        && filters.any(|filter| {
            filter.link == net.interface && filter.only_from.is_some() && !filter.is_limit()
        })
}

/// Whether programs of the interface must stay attached: the spoof guard's, or those of a limit.
#[must_use]
pub fn is_held(net: &PodNet) -> bool {
    is_guarded(net) || net.bandwidth().is_some()
}

/// Whether something foreign in the pod would change the plan: a rule by mark would misroute its sockets' packets,
/// anything else its replies. Replies of another plugin's interface have their rule in any case.
#[must_use]
pub fn is_open_to_foreign(net: &PodNet) -> bool {
    let Some(spec) = &net.spec else {
        return false;
    };
    let lacks_rule = net.ipvlan.is_some() && spec.reply_rule != Some(true);
    net.host_veth().is_some() && (spec.accept_marks || lacks_rule)
}

#[cfg(test)]
mod tests {
    use ebbtide_kernel::{
        netlink::link::Link,
        node::{Nic, NodeFacts},
        podnet::{self, Existing, NetworkSpec, PodAddress, Sandbox},
    };
    use ebbtide_types::settings::Settings;

    use super::*;

    fn net(address: &str, mode: IpvlanMode) -> Arc<PodNet> {
        let nic = Nic::named("ens5", 2);
        let facts = NodeFacts {
            nics: vec![nic],
            ..NodeFacts::default()
        };
        let sandbox = Sandbox {
            container_id: address.into(),
            interface: "eth0".into(),
            netns: "/run/netns/pod".into(),
            netns_inode: 1,
            pid_namespace: None,
            pod: "default/pod".into(),
        };
        let network = NetworkSpec {
            master: "ens5".into(),
            mode,
            ..NetworkSpec::named("network")
        };
        let own = PodAddress {
            address: format!("{address}/24").parse().unwrap(),
            pool: "pool".into(),
            gateway: None,
            routes: Vec::new(),
        };
        let (existing, settings) = (Existing::default(), Settings::default());
        Arc::new(podnet::plan(&sandbox, &existing, &network, &[own], &facts, &settings).unwrap())
    }

    #[test]
    fn addresses_and_modes_that_no_record_has_concern_the_guarded_pods() {
        let [l3, l2] = [IpvlanMode::L3, IpvlanMode::L2];
        let one = [net("10.0.0.4", l3)];
        let two = [net("10.0.0.4", l3), net("10.0.1.4", l2)];
        let address = |text: &str| Change::Address(text.parse().unwrap());
        for (event, of_one, of_two) in [
            (address("10.0.0.4"), false, false),
            (address("10.0.0.5"), true, true),
            (address("fe80::7"), true, true),
            (address("127.0.0.1"), false, false),
            (Change::Mode(l3), false, true),
            (Change::Mode(l2), true, true),
            (Change::HookGone, true, true),
            (Change::Overrun, true, true),
        ] {
            for (nets, expected) in [(&one[..], of_one), (&two[..], of_two)] {
                let found = concern_guarded_pods(std::slice::from_ref(&event), nets.iter());
                assert_eq!(found, expected, "{event:?} beside {} pods", nets.len());
            }
        }
        assert!(!concern_guarded_pods(&[], one.iter()));
    }

    fn link(name: &str, alias: Option<&str>) -> Link {
        Link {
            alias: alias.map(Into::into),
            mtu: 1500,
            up: true,
            ..Link::named(name, 7)
        }
    }

    #[test]
    fn a_link_that_is_set_up_may_be_foreign_unless_its_alias_says_otherwise() {
        for (event, expected) in [
            (Change::Up(link("wg0", None)), true),
            (Change::Up(link("net1", Some("a macvlan"))), true),
            (
                Change::Up(link("net1", Some("ebbtide: default/web net1"))),
                false,
            ),
            (Change::Address("10.0.0.5".parse().unwrap()), false),
            (Change::Mode(IpvlanMode::L2), false),
            (Change::HookGone, false),
            (Change::Overrun, true),
        ] {
            assert_eq!(
                are_foreign(std::slice::from_ref(&event)),
                expected,
                "{event:?}"
            );
        }
        assert!(!are_foreign(&[]));
    }

    #[test]
    fn a_pod_whose_plan_knows_of_everything_foreign_is_left_alone() {
        for (accept_marks, reply_rule, expected) in [
            (true, None, true),
            (true, Some(false), true),
            (true, Some(true), true),
            (false, None, true),
            (false, Some(false), true),
            (false, Some(true), false),
        ] {
            let mut net = PodNet::clone(&net("10.0.0.4", IpvlanMode::L3));
            let spec = net.spec.as_mut().unwrap();
            (spec.accept_marks, spec.reply_rule) = (accept_marks, reply_rule);
            assert_eq!(
                is_open_to_foreign(&net),
                expected,
                "{accept_marks} {reply_rule:?}"
            );
            // Without the pair there are no replies.
            (net.veth, net.shared_veth) = (None, None);
            assert!(!is_open_to_foreign(&net));
        }
    }
}
