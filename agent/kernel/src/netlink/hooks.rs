//! Finds the links that can have tc filters, and the foreign filters at them.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};

use super::{
    Error, Netlink,
    message::{self, FILTER_HANDLE, FILTER_PRIORITY},
    model::{Direction, Filter},
};

/// A foreign filter, as `tc filter show` names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignFilter {
    priority: u16,
    kind: String,
}

impl fmt::Display for ForeignFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tc filter {} (pref {})", self.kind, self.priority)
    }
}

/// The queueing discipline in a link's only place for filters (`ffff:`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qdisc {
    /// `clsact`: filters for both directions, each with its own list.
    Clsact,
    /// `ingress`, the older one: one list, for ingress. A filter that is added for egress ends up in it, and runs at
    /// ingress (`ingress_tcf_block`, net/sched/sch_ingress.c).
    Ingress,
}

impl Qdisc {
    fn of_kind(kind: &str) -> Option<Self> {
        match kind {
            "clsact" => Some(Self::Clsact),
            "ingress" => Some(Self::Ingress),
            _ => None,
        }
    }
}

/// The links of a namespace that can have tc filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcHooks(HashMap<u32, Qdisc>);

impl TcHooks {
    /// Whether the link with this index can have filters now, in at least one direction.
    #[must_use]
    pub fn are_at(&self, ifindex: u32) -> bool {
        self.0.contains_key(&ifindex)
    }

    /// Whether the link with this index can have filters in both directions: it has the qdisc `clsact`.
    #[must_use]
    pub fn are_both_at(&self, ifindex: u32) -> bool {
        self.0.get(&ifindex) == Some(&Qdisc::Clsact)
    }

    /// Whether a foreign qdisc `ingress` occupies the place of `filter`, which is for egress. A link has one such
    /// place, and removing the qdisc removes foreign filters with it.
    #[must_use]
    pub fn are_taken_for(&self, filter: &Filter, ifindex: u32) -> bool {
        filter.direction == Direction::Egress && self.0.get(&ifindex) == Some(&Qdisc::Ingress)
    }
}

/// A filter at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFilter {
    priority: u16,
    handle: u32,
    /// The name of its program, as `tc filter show` has it.
    program: Option<String>,
}

impl HookFilter {
    /// Returns the name of the eBPF program that this filter runs, if it has priority and handle of Ebbtide's filters.
    #[must_use]
    pub fn program_in_our_place(&self) -> Option<&str> {
        let is_in_our_place = (self.priority, self.handle) == (FILTER_PRIORITY, FILTER_HANDLE);
        self.program.as_deref().filter(|_| is_in_our_place)
    }

    fn of(message: &TcMessage) -> Option<Self> {
        let options = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options),
                _ => None,
            });
        // The kernel also tells the filters' heads, which have no handle and no options.
        let options = options?;
        let program = options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
            _ => None,
        });
        Some(Self {
            priority: u16::try_from(message.header.info >> 16).ok()?,
            handle: u32::from(message.header.handle),
            program,
        })
    }
}

impl Netlink {
    /// Lists the filters at a link's hook; none if the link is gone.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn filters_at(
        &self,
        ifindex: u32,
        direction: Direction,
    ) -> Result<Vec<HookFilter>, Error> {
        let request =
            RouteNetlinkMessage::GetTrafficFilter(message::filter_hook(ifindex, direction));
        let what = format!("list {direction} filters of the link {ifindex}");
        self.dump(&what, request, |answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => HookFilter::of(&filter),
            _ => None,
        })
        .await
        .or_else(|e| if e.is_gone() { Ok(Vec::new()) } else { Err(e) })
    }

    /// Lists the links that can have tc filters.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn tc_hooks(&self) -> Result<TcHooks, Error> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let found = self.dump(
            "list queueing disciplines",
            request,
            |answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(qdisc) => hook(&qdisc),
                _ => None,
            },
        );
        Ok(TcHooks(found.await?.into_iter().collect()))
    }

    /// Lists the filters at a link's hook that run before Ebbtide's.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub async fn preceding_filters(
        &self,
        ifindex: u32,
        direction: Direction,
    ) -> Result<BTreeSet<ForeignFilter>, Error> {
        let request =
            RouteNetlinkMessage::GetTrafficFilter(message::filter_hook(ifindex, direction));
        let what = format!("list {direction} filters of the link {ifindex}");
        let found = self.dump(&what, request, |answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => in_front(&filter),
            _ => None,
        });
        Ok(found.await?.into_iter().collect())
    }
}

fn in_front(message: &TcMessage) -> Option<ForeignFilter> {
    // `tcm_info`: the priority and the protocol (`tcf_fill_node`, net/sched/cls_api.c).
    let priority = u16::try_from(message.header.info >> 16).ok()?;
    (priority < FILTER_PRIORITY).then(|| ForeignFilter {
        priority,
        kind: kind(message).unwrap_or_default().to_owned(),
    })
}

fn kind(message: &TcMessage) -> Option<&str> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.as_str()),
            _ => None,
        })
}

fn hook(message: &TcMessage) -> Option<(u32, Qdisc)> {
    let qdisc = Qdisc::of_kind(kind(message)?)?;
    Some((u32::try_from(message.header.index).ok()?, qdisc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_out_has_no_hook_where_others_use_the_older_qdisc() {
        let hooks: Vec<_> = ["clsact", "ingress", "htb"]
            .into_iter()
            .zip(1..)
            .filter_map(|(kind, index)| {
                let mut message = TcMessage::with_index(index);
                message.attributes.push(TcAttribute::Kind(kind.to_owned()));
                hook(&message)
            })
            .collect();
        let hooks = TcHooks(hooks.into_iter().collect());
        for (ifindex, there, [ingress_taken, egress_taken]) in [
            (1, true, [false, false]),
            (2, true, [false, true]),
            (3, false, [false, false]),
            (4, false, [false, false]),
        ] {
            let filter = |direction| Filter {
                link: "ens5".to_owned(),
                direction,
                program: "any".to_owned(),
                only_from: None,
            };
            let taken = |direction| hooks.are_taken_for(&filter(direction), ifindex);
            assert_eq!(hooks.are_at(ifindex), there, "{ifindex}");
            assert_eq!(taken(Direction::Ingress), ingress_taken, "{ifindex}");
            assert_eq!(taken(Direction::Egress), egress_taken, "{ifindex}");
        }
    }
}
