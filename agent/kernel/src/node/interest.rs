//! Decides which netlink events can concern Ebbtide's objects in the host.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::debug;

use super::{REDIRECT_DEVICE, is_pod_veth};
use crate::netlink::{
    link::Link,
    model::{NamespacePlan, Selector},
    notification::Notification,
    route_filter::RouteFilter,
};

/// The parts of the host that plans depend on, as of the last comparison of plans and kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    tables: BTreeSet<u32>,
    /// Names of the links in plans, and their indices.
    names: BTreeSet<String>,
    indices: BTreeSet<u32>,
    /// Indices of all other links at that time.
    foreign: BTreeSet<u32>,
    /// Source addresses of routes.
    sources: BTreeSet<IpAddr>,
}

impl Interest {
    /// Creates the interest of a plan on a host with these links.
    #[must_use]
    pub fn of(plan: &NamespacePlan, links: &HashMap<String, Link>) -> Self {
        let mut names = BTreeSet::from([REDIRECT_DEVICE.to_owned()]);
        names.extend(plan.addresses.iter().map(|object| object.link.clone()));
        names.extend(plan.neighbours.iter().map(|object| object.link.clone()));
        names.extend(plan.routes.iter().map(|object| object.link.clone()));
        names.extend(plan.filters.iter().map(|object| object.link.clone()));
        let selectors = plan.rules.iter().map(|rule| &rule.selector);
        names.extend(selectors.filter_map(|selector| match selector {
            Selector::OutLink { link, .. }
            | Selector::InLinkMark { link, .. }
            | Selector::InLinkFromMark { link, .. } => Some(link.clone()),
            _ => None,
        }));
        let (owned, foreign): (Vec<_>, Vec<_>) = links
            .values()
            .partition(|link| names.contains(&link.name) || is_pod_veth(link));
        let indices = |links: Vec<&Link>| links.iter().map(|link| link.ifindex).collect();
        Self {
            tables: plan.routes.iter().map(|route| route.table).collect(),
            indices: indices(owned),
            foreign: indices(foreign),
            sources: plan.routes.iter().filter_map(|r| r.source).collect(),
            names,
        }
    }

    /// Whether the event may have removed or changed one of Ebbtide's objects, or freed its place.
    #[must_use]
    pub fn concerns(&self, event: &Notification) -> bool {
        match event {
            Notification::Overrun
            | Notification::DefaultGone(_)
            | Notification::ForeignRule
            | Notification::RuleGone => true,
            Notification::Default(_)
            | Notification::LocalRoute(_)
            | Notification::LocalRouteGone(_)
            | Notification::Other => false,
            Notification::RouteGone(route) => route.owned || self.tables.contains(&route.table),
            // A new pod's pair is recognised by itself, a replaced NIC by its name.
            Notification::Link(link) | Notification::LinkGone(link) => {
                is_pod_veth(link)
                    || self.names.contains(&link.name)
                    || self.indices.contains(&link.ifindex)
            }
            Notification::Address(own) | Notification::AddressGone(own) => {
                self.indices.contains(&own.ifindex) || self.sources.contains(&own.address.addr())
            }
            // A link that was added since then may be a pod's.
            Notification::HookGone(ifindex) => !self.foreign.contains(ifindex),
        }
    }
}

/// The events that one listener for the host's netlink notifications reacts to.
#[derive(Debug)]
pub struct Subscription {
    /// `None` before the first comparison: then any event may matter.
    interest: Mutex<Option<Interest>>,
    routes: Arc<RouteFilter>,
}

impl Subscription {
    /// Subscribes to all events, with the filter of the listener's socket.
    #[must_use]
    pub fn to_all(routes: Arc<RouteFilter>) -> Self {
        Self {
            interest: Mutex::default(),
            routes,
        }
    }

    /// Narrows the events that wake the reconciler to `interest`. Events of foreign routes outside of it are filtered
    /// in the kernel.
    pub fn subscribe(&self, interest: Interest) {
        let mut known = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = known.as_ref().map(|known| &known.tables);
        if tables != Some(&interest.tables)
            && let Err(e) = self.routes.only(Some(&interest.tables))
        {
            // They are ignored one by one then.
            debug!("set the filter for events of foreign routes on the netlink socket: {e}");
        }
        *known = Some(interest);
    }

    /// Whether the event may have removed or changed one of Ebbtide's objects.
    #[must_use]
    pub fn matches(&self, event: &Notification) -> bool {
        let known = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(interest) => interest.concerns(event),
            None => !matches!(
                event,
                Notification::Other | Notification::Default(_) | Notification::LocalRoute(_)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_layout::HOST_MAC;

    use ebbtide_types::{Family, Mac};

    use super::*;
    use crate::netlink::{
        link::LinkAddress,
        model::{Action, Route, Rule},
        notification::RouteGone,
    };

    fn link(name: &str, ifindex: u32) -> Link {
        Link {
            mtu: 1500,
            up: true,
            kind: Some("veth".into()),
            ..Link::named(name, ifindex)
        }
    }

    fn interest() -> Interest {
        let route = Route {
            link: "ens5".into(),
            destination: "172.31.16.0/20".parse().unwrap(),
            via: None,
            source: Some([172, 31, 22, 228].into()),
            table: 7702,
        };
        let rule = Rule {
            family: Family::V4,
            priority: 1000,
            selector: Selector::OutLink {
                from: "172.31.32.0/20".parse().unwrap(),
                link: "ens6".into(),
            },
            action: Action::Table(7703),
        };
        let plan = NamespacePlan {
            routes: vec![route],
            rules: vec![rule],
            ..NamespacePlan::default()
        };
        let links = ["lo", "ens5", "ens6", "docker0"].into_iter().zip(1..);
        let links = links.map(|(name, index)| (name.to_owned(), link(name, index)));
        Interest::of(&plan, &links.collect())
    }

    #[test]
    fn only_what_can_have_to_do_with_ours_is_worth_a_look() {
        use Notification as Event;
        let address = |ifindex, address: &str| LinkAddress {
            ifindex,
            address: address.parse().unwrap(),
        };
        let pods = |change: fn(&mut Link)| {
            let mut pods = link("veth0123", 9);
            change(&mut pods);
            Event::Link(pods)
        };
        let gone = |table, owned| Event::RouteGone(RouteGone { table, owned });
        let interest = interest();
        for (event, expected) in [
            (gone(254, false), false),
            (gone(1000, false), false),
            (gone(254, true), true),
            (gone(7700, true), true),
            // It may have occupied the place of one of Ebbtide's.
            (gone(7702, false), true),
            (Event::Default(vec![(2, None)]), false),
            (Event::DefaultGone(vec![(2, None)]), true),
            (Event::ForeignRule, true),
            (Event::RuleGone, true),
            (Event::Link(link("ens5", 2)), true),
            (Event::Link(link("ens6", 3)), true),
            (Event::Link(link("ens6", 12)), true),
            (Event::Link(link("renamed", 2)), true),
            (Event::LinkGone(link(REDIRECT_DEVICE, 5)), true),
            (Event::LinkGone(link("ens5", 2)), true),
            (Event::Link(link("docker0", 4)), false),
            (Event::LinkGone(link("docker0", 4)), false),
            (Event::Link(link("vethabcd", 20)), false),
            (pods(|pods| pods.mac = Some(Mac(HOST_MAC))), true),
            (pods(|pods| pods.alias = Some("ebbtide: a/b".into())), true),
            (Event::Address(address(2, "172.31.22.229/20")), true),
            (Event::AddressGone(address(3, "fe80::1/64")), true),
            (Event::AddressGone(address(1, "172.31.22.228/32")), true),
            (Event::AddressGone(address(1, "192.0.2.1/32")), false),
            (Event::Address(address(20, "fe80::1/64")), false),
            (Event::HookGone(2), true),
            (Event::HookGone(4), false),
            (Event::HookGone(20), true),
            (Event::Overrun, true),
            (Event::Other, false),
        ] {
            assert_eq!(interest.concerns(&event), expected, "{event:?}");
        }
    }
}
