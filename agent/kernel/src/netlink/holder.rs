//! Finds what occupies a link that takes no ipvlan child. A link has one receive handler (`netdev_rx_handler_register`,
//! net/core/dev.c): ipvlan, macvlan, a bridge, a bond and a team each need it, and the kernel refuses the second with
//! EBUSY and nothing more.

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{Error, direct::Direct};

/// The attributes of a link that matter here.
struct Seen {
    ifindex: u32,
    name: String,
    kind: Option<InfoKind>,
    iflink: Option<u32>,
    controller: Option<u32>,
}

impl Direct {
    /// Describes what occupies the link with this index, so that it takes no ipvlan child, and what can be done about
    /// it.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn holder_of(&mut self, ifindex: u32) -> Result<(String, String), Error> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = self.dump("list links", question, |answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(seen(message)),
            _ => None,
        })?;
        Ok(holder(&links, ifindex))
    }
}

fn seen(message: LinkMessage) -> Seen {
    let mut seen = Seen {
        ifindex: message.header.index,
        name: String::new(),
        kind: None,
        iflink: None,
        controller: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => seen.name = name,
            LinkAttribute::Link(index) => seen.iflink = Some(index),
            LinkAttribute::Controller(index) => seen.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        seen.kind = Some(kind);
                    }
                }
            }
            _ => {}
        }
    }
    seen
}

fn holder(links: &[Seen], ifindex: u32) -> (String, String) {
    let by_index = |index| links.iter().find(|link| link.ifindex == index);
    let own = by_index(ifindex);
    let controller = own.and_then(|link| link.controller).and_then(by_index);
    if let Some(controller) = controller.filter(|link| link.kind != Some(InfoKind::Vrf)) {
        let kind = controller
            .kind
            .as_ref()
            .map_or("link".into(), ToString::to_string);
        return (
            format!("it is a port of the {kind} {}", controller.name),
            format!(
                "name {} as the master, or take the NIC out of it",
                controller.name
            ),
        );
    }
    let children: Vec<&str> = links
        .iter()
        .filter(|link| link.iflink == Some(ifindex))
        .filter(|link| matches!(link.kind, Some(InfoKind::MacVlan | InfoKind::MacVtap)))
        .map(|link| link.name.as_str())
        .collect();
    let one_kind =
        "a NIC has children of one kind: use ipvlan for all of them, or another NIC for ebbtide";
    if children.is_empty() {
        return (
            "another kind of link has it, most likely a macvlan interface in a container or a virtual \
             switch (Open vSwitch)"
                .into(),
            one_kind.into(),
        );
    }
    (
        format!("it has the macvlan interface {}", children.join(", ")),
        one_kind.into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, kind: Option<InfoKind>) -> Seen {
        Seen {
            ifindex,
            name: name.into(),
            kind,
            iflink: None,
            controller: None,
        }
    }

    #[test]
    fn a_nic_that_somebody_has_is_told_by_whom() {
        let nic = |controller| Seen {
            controller,
            ..link(2, "ens6", None)
        };
        let child = |kind| Seen {
            iflink: Some(2),
            ..link(4, "child0", Some(kind))
        };
        for (links, named, way_out) in [
            (
                vec![nic(Some(3)), link(3, "br0", Some(InfoKind::Bridge))],
                "a port of the bridge br0",
                "name br0 as the master",
            ),
            (
                vec![nic(Some(3)), link(3, "bond0", Some(InfoKind::Bond))],
                "a port of the bond bond0",
                "name bond0",
            ),
            (
                vec![nic(None), child(InfoKind::MacVlan)],
                "macvlan interface child0",
                "children of one kind",
            ),
            (
                vec![nic(None), child(InfoKind::MacVtap)],
                "macvlan interface child0",
                "another NIC",
            ),
            // Children in containers are not visible from here, and a VRF is no receive handler.
            (vec![nic(None)], "in a container", "another NIC"),
            (
                vec![nic(Some(3)), link(3, "blue", Some(InfoKind::Vrf))],
                "in a container",
                "another NIC",
            ),
        ] {
            let (holder, advice) = holder(&links, 2);
            assert!(holder.contains(named), "{holder}");
            assert!(advice.contains(way_out), "{advice}");
        }
    }
}
